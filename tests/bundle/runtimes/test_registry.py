"""An exported graph has the outputs of PyTorch at any batch size, and a damaged graph is rejected."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from streetvision.bundle.runtimes.capture import capture
from streetvision.bundle.runtimes.onnx_graph import OnnxGraph
from streetvision.bundle.runtimes.registry import RUNTIMES, open_graph, write_graph
from streetvision.contracts.errors import ArtifactError, ConfigError, MachineError
from streetvision.models.backbone import BackboneConfig
from streetvision.models.config import MlpHeadConfig, ModelConfig
from streetvision.models.device import has_fast_bf16
from streetvision.models.module import load_classifier
from streetvision.models.network import seeded

SIZE = (64, 96)
CLOSE = {"fp32": 1e-5, "bf16": 0.05, "int8": 0.3}
"""Largest difference of a logit; the logits of these models have a range of about 1."""
RUNTIME_PRECISIONS = [(name, precision) for name, graph in RUNTIMES.items() for precision in graph.precisions]
BF16 = has_fast_bf16(torch.device("cpu"))


def classifier(width=32, pooling="cls_mean"):
    backbone = BackboneConfig(source="random", width=width, depth=1, heads=2)
    with seeded(0):
        head = MlpHeadConfig(hidden=16)
        return load_classifier(ModelConfig(backbone=backbone, image_size=SIZE, pooling=pooling, head=head)).eval()


def noise(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, *SIZE), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def original():
    return classifier()


@pytest.fixture(scope="module")
def program(original):
    return capture(original)


@pytest.fixture(scope="module")
def written(program, tmp_path_factory):
    """Write the graph of `original` once for each runtime and precision; returns its folder."""
    done = {}

    def folder(name, precision):
        if precision == "bf16" and not BF16:
            pytest.skip("this CPU does not compute in bf16")
        if (name, precision) not in done:
            done[name, precision] = tmp_path_factory.mktemp(f"{name}-{precision}")
            RUNTIMES[name].write(program, done[name, precision], precision, list(noise(8, seed=1).split(1)))
        return done[name, precision]

    return folder


def opened(folder, name, precision="fp32", feature_dim=64):
    return open_graph(folder, name=name, precision=precision, image_size=SIZE, feature_dim=feature_dim)


def pytorch_output(classifier, images):
    with torch.inference_mode():
        features = classifier.embed(images)
        return features.numpy(), classifier.head(features).numpy()


@pytest.mark.parametrize(("name", "precision"), RUNTIME_PRECISIONS)
def test_features_and_logits_are_those_of_pytorch_at_any_batch(original, written, name, precision):
    graph = opened(written(name, precision), name, precision)
    for count in (1, 3, 8):
        images = noise(count)
        features, logits = pytorch_output(original, images)
        output = graph(images.numpy())
        np.testing.assert_allclose(output.logits, logits, atol=CLOSE[precision], rtol=0)
        np.testing.assert_allclose(output.features, features, atol=6 * CLOSE[precision], rtol=0)


@pytest.mark.parametrize("name", RUNTIMES)
def test_the_files_are_those_that_a_bundle_lists(written, name):
    assert sorted(path.name for path in written(name, "fp32").iterdir()) == sorted(RUNTIMES[name].files)


@pytest.mark.parametrize("name", RUNTIMES)
def test_the_graph_normalizes_its_input(original, written, name):
    graph = opened(written(name, "fp32"), name)
    images = torch.stack([torch.full((3, *SIZE), value, dtype=torch.uint8) for value in (0, 127, 255)])
    logits = graph(images.numpy()).logits
    np.testing.assert_allclose(logits, pytorch_output(original, images)[1], atol=1e-5, rtol=0)
    assert len(np.unique(logits, axis=0)) == 3


@pytest.mark.parametrize("name", RUNTIMES)
def test_several_threads_get_their_own_outputs(original, written, name):
    graph = opened(written(name, "fp32"), name)
    batches = [noise(1 + seed % 3, seed) for seed in range(24)]
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(graph, [images.numpy() for images in batches]))
    for images, output in zip(batches, outputs, strict=True):
        np.testing.assert_allclose(output.logits, pytorch_output(original, images)[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", RUNTIMES)
def test_the_graph_of_another_model_is_rejected(written, name):
    with pytest.raises(ArtifactError, match=r"outputs of shapes \[\(1, 64\), \(1, 2\)\]"):
        opened(written(name, "fp32"), name, feature_dim=32)


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_damaged_graph_is_rejected(tmp_path, name):
    for file in RUNTIMES[name].files:
        (tmp_path / file).write_bytes(b"no graph at all")
    with pytest.raises(ArtifactError, match=rf"{RUNTIMES[name].files[0]}' is not a graph that {name} can run"):
        opened(tmp_path, name)


@pytest.mark.parametrize("error", [MemoryError(), PermissionError(13, "Permission denied")])
def test_a_fault_of_the_machine_is_not_one_of_the_graph(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(OnnxGraph, "__init__", fail)
    with pytest.raises(MachineError):
        opened(tmp_path, "onnx")


@pytest.mark.parametrize(("error", "kind"), [(Exception("no rule"), ArtifactError), (MemoryError(), MachineError)])
def test_an_error_of_a_converter_is_one_of_the_command(program, tmp_path, monkeypatch, error, kind):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("torch.onnx.export", fail)
    with pytest.raises(kind):
        write_graph(program, tmp_path, name="onnx", precision="fp32", images=[])


@pytest.mark.parametrize(("name", "module"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_a_runtime_that_is_not_installed_is_reported_with_what_to_install(written, monkeypatch, name, module):
    folder = written(name, "fp32")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"needs the module {module}(.|\n)*pip install '.*{module}"):
        opened(folder, name)


def test_nncf_that_is_not_installed_is_reported(program, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ConfigError, match=r"needs the module nncf(.|\n)*streetvision\[nncf\]"):
        RUNTIMES["openvino"].write(program, tmp_path, "int8", list(noise(2).split(1)))


def test_bf16_is_not_written_on_a_cpu_that_cannot_measure_it(program, monkeypatch, tmp_path):
    monkeypatch.setattr("streetvision.models.device.has_fast_bf16", lambda _: False)
    with pytest.raises(ConfigError, match="does not compute in bf16"):
        RUNTIMES["openvino"].write(program, tmp_path, "bf16", [])


def test_a_model_larger_than_an_onnx_file_is_rejected(program, monkeypatch, tmp_path):
    monkeypatch.setattr("streetvision.bundle.runtimes.onnx_graph.MAX_BYTES", 1000)
    with pytest.raises(ConfigError, match="limit of an ONNX file"):
        RUNTIMES["onnx"].write(program, tmp_path, "fp32", [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["initial value", "attribute", "subgraph"])
def test_a_graph_that_reads_another_file_is_rejected(tmp_path, where):
    secret = tmp_path / "secret"
    secret.write_bytes(np.zeros(4, np.float32).tobytes())
    outside = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value=str(secret))
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["b", 3, *SIZE])
    out = helper.make_tensor_value_info("w", TensorProto.FLOAT, [4])
    constant = helper.make_node("Constant", [], ["w"], value=outside)
    nodes, values = [], []
    if where == "initial value":
        values = [outside]
    elif where == "attribute":
        nodes = [constant]
    else:
        branch = helper.make_graph([constant], "branch", [], [out])
        nodes = [helper.make_node("If", ["images"], ["w"], then_branch=branch, else_branch=branch)]
    graph = helper.make_graph(nodes, "graph", [images], [out], values)
    (tmp_path / "model.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(ArtifactError, match="reads its weights from another file"):
        OnnxGraph(tmp_path, "fp32", threads=1)
    assert onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.name == "graph"


def test_the_telemetry_of_openvino_is_off(written):
    written("openvino", "int8")
    assert sys.modules["openvino_telemetry"] is None
