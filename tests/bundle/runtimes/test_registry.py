"""An exported graph answers as PyTorch does, at any batch, and what is no such graph is refused by name."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from streetvision.bundle.runtimes.graph import capture
from streetvision.bundle.runtimes.onnx_graph import OnnxGraph
from streetvision.bundle.runtimes.registry import RUNTIMES, open_graph
from streetvision.contracts.errors import ArtifactError, ConfigError
from streetvision.models.backbone import BackboneConfig
from streetvision.models.config import FusionDescription, MlpHeadConfig, ModelConfig, ViewsConfig
from streetvision.models.device import has_fast_bf16
from streetvision.models.fused import FusedClassifier
from streetvision.models.module import load_classifier
from streetvision.models.multi_view import Views
from streetvision.models.network import seeded

SIDE = 64
CLOSE = {"fp32": 1e-5, "bf16": 0.05, "int8": 0.3}
"""Largest difference of a logit; those of these models spread over about 1."""
WAYS = [(name, precision) for name, graph in RUNTIMES.items() for precision in graph.precisions]
BF16 = has_fast_bf16(torch.device("cpu"))


def classifier(width=32, pooling="cls_mean"):
    backbone = BackboneConfig(source="random", width=width, depth=2, heads=2, image_size=SIDE)
    with seeded(0):
        head = MlpHeadConfig(hidden=16)
        return load_classifier(ModelConfig(backbone=backbone, pooling=pooling, head=head)).eval()


def noise(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def original():
    return classifier()


@pytest.fixture(scope="module")
def written(original, tmp_path_factory):
    """Write the graph of `original` once for each runtime and precision; gives its folder."""
    program, done = capture(original), {}

    def folder(name, precision):
        if precision == "bf16" and not BF16:
            pytest.skip("this processor does not compute in bf16")
        if (name, precision) not in done:
            done[name, precision] = tmp_path_factory.mktemp(f"{name}-{precision}")
            RUNTIMES[name].write(program, done[name, precision], precision, list(noise(8, seed=1).split(1)))
        return done[name, precision]

    return folder


@pytest.mark.parametrize(("name", "precision"), WAYS)
def test_features_and_logits_are_those_of_pytorch_at_any_batch(original, written, name, precision):
    through = open_graph(original, written(name, precision), name=name, precision=precision)
    for count in (1, 3, 8):
        images = noise(count)
        with torch.inference_mode():
            torch.testing.assert_close(through(images), original(images), atol=CLOSE[precision], rtol=0)
            torch.testing.assert_close(through.embed(images), original.embed(images), atol=6 * CLOSE[precision], rtol=0)


@pytest.mark.parametrize("name", RUNTIMES)
def test_the_files_are_those_that_a_bundle_names(written, name):
    assert sorted(path.name for path in written(name, "fp32").iterdir()) == sorted(RUNTIMES[name].files)


@pytest.mark.parametrize("name", RUNTIMES)
def test_black_and_white_meet_the_normalisation_of_the_model(original, written, name):
    through = open_graph(original, written(name, "fp32"), name=name, precision="fp32")
    images = torch.stack([torch.full((3, SIDE, SIDE), value, dtype=torch.uint8) for value in (0, 127, 255)])
    with torch.inference_mode():
        torch.testing.assert_close(through(images), original(images), atol=1e-5, rtol=0)
        assert through(images).unique(dim=0).shape[0] == 3


@pytest.mark.parametrize("name", RUNTIMES)
def test_several_threads_get_their_own_answers(original, written, name):
    through = open_graph(original, written(name, "fp32"), name=name, precision="fp32")
    asked = [noise(1 + seed % 3, seed) for seed in range(24)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(through, asked))
    with torch.inference_mode():
        for images, logits in zip(asked, found, strict=True):
            torch.testing.assert_close(logits, original(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_fusion_of_views_works_over_a_graph(original, written, name):
    through = open_graph(original, written(name, "fp32"), name=name, precision="fp32")
    description = FusionDescription(mode="multiview_mean", views=ViewsConfig(rows=1, columns=2))
    mask = torch.tensor([[True, True, True], [True, True, False]])
    views = Views(noise(6).unflatten(0, (2, 3)), torch.tensor([0, 0, SIDE, SIDE]).expand(2, 3, 4), mask)
    with torch.inference_mode():
        expected = FusedClassifier(original, description).forward_details(views)
        found = FusedClassifier(through, description).forward_details(views)
    for part, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(part, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", RUNTIMES)
def test_the_graph_of_another_model_is_refused(written, name):
    with pytest.raises(ArtifactError, match="gives features and logits"):
        open_graph(classifier(pooling="cls"), written(name, "fp32"), name=name, precision="fp32")


@pytest.mark.parametrize("name", RUNTIMES)
def test_what_is_no_graph_is_refused(original, tmp_path, name):
    for file in RUNTIMES[name].files:
        (tmp_path / file).write_bytes(b"no graph at all")
    with pytest.raises(ArtifactError, match=rf"{RUNTIMES[name].files[0]}' is no graph that {name} runs"):
        open_graph(original, tmp_path, name=name, precision="fp32")


@pytest.mark.parametrize(("name", "module"), [("onnx", "onnxruntime"), ("onnx", "onnx"), ("openvino", "openvino")])
def test_a_runtime_that_is_not_installed_is_named_with_its_extra(original, written, monkeypatch, name, module):
    folder = written(name, "fp32")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"needs {module}(.|\n)*pip install 'streetvision\[{name}\]'"):
        open_graph(original, folder, name=name, precision="fp32")


def test_nncf_that_is_not_installed_is_named(original, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ConfigError, match=r"needs nncf(.|\n)*streetvision\[openvino\]"):
        RUNTIMES["openvino"].write(capture(original), tmp_path, "int8", list(noise(2).split(1)))


def test_bf16_is_not_written_where_it_cannot_be_measured(original, monkeypatch, tmp_path):
    monkeypatch.setattr("streetvision.bundle.runtimes.openvino_graph.has_fast_bf16", lambda _: False)
    with pytest.raises(ConfigError, match="does not compute in bf16"):
        RUNTIMES["openvino"].write(capture(original), tmp_path, "bf16", [])


def test_a_model_larger_than_an_onnx_file_is_refused(original, monkeypatch, tmp_path):
    monkeypatch.setattr("streetvision.bundle.runtimes.onnx_graph.MAX_BYTES", 1000)
    with pytest.raises(ConfigError, match="larger than an ONNX file can be"):
        RUNTIMES["onnx"].write(capture(original), tmp_path, "fp32", [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["initial value", "attribute", "subgraph"])
def test_a_graph_that_reads_another_file_is_refused_wherever_it_says_so(tmp_path, where):
    secret = tmp_path / "secret"
    secret.write_bytes(np.zeros(4, np.float32).tobytes())
    outside = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value=str(secret))
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["b", 3, SIDE, SIDE])
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
        OnnxGraph(tmp_path, "fp32")
    assert onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.name == "graph"


def test_nothing_is_told_to_the_makers_of_a_runtime(written):
    written("openvino", "int8")
    assert sys.modules["openvino_telemetry"] is None
