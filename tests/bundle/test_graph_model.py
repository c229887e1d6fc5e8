"""The model of an exported bundle: the results of PyTorch, without PyTorch."""

import json
import os
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from streetvision import load_bundle
from streetvision.bundle.graph_model import GraphModel, make_view_arrays, open_graph_model
from streetvision.bundle.runtimes.capture import capture, capture_dense
from streetvision.bundle.runtimes.graph import DENSE, MODEL
from streetvision.bundle.runtimes.registry import RUNTIMES
from streetvision.bundle.torch_model import TorchModel
from streetvision.bundle.view_fusion import inference_keys
from streetvision.contracts.errors import TRAIN_MODULES, StreetVisionError
from streetvision.data.image_file import DecodedImage
from streetvision.models.backbone import BackboneConfig
from streetvision.models.config import (
    FusionConfig,
    FusionDescription,
    LseConfig,
    ModelConfig,
    TrainedFusionConfig,
    ViewsConfig,
)
from streetvision.models.fused import FusedClassifier
from streetvision.models.module import load_classifier
from streetvision.models.multi_view import make_views
from streetvision.models.network import seeded
from streetvision.pipeline.console import Console
from streetvision.pipeline.runtime_export import RuntimeRequest, export_runtime

SIZE, DENSE_SIZE = (64, 96), (128, 160)
VIEWS = ViewsConfig(rows=1, columns=2)
FUSIONS = {
    "single_view": None,
    "multiview_mean": FusionDescription(mode="multiview_mean", views=VIEWS),
    "cvfm_inference": FusionDescription(
        mode="cvfm_inference", views=VIEWS, inference=FusionConfig(mode="weighted_uncertainty")
    ),
    "cvfm_trained": FusionDescription(
        mode="cvfm_trained", views=VIEWS, trained=TrainedFusionConfig(latent_dim=8, attention_heads=2)
    ),
    "dense": FusionDescription(mode="dense", dense_size=DENSE_SIZE, pooling=LseConfig()),
}
UNWANTED = tuple(sorted(TRAIN_MODULES))


def smooth_image(height, width, phase=0.0):
    y, x = np.mgrid[0:height, 0:width]
    channels = [127 * (1 + np.sin(x / 17 + phase)), 255 * y / height, 127 * (1 + np.cos((x + y) / 23 + phase))]
    return np.stack(channels, axis=-1).astype(np.uint8)


IMAGES = [smooth_image(90, 160), smooth_image(400, 260, 1.0), smooth_image(1, 3, 2.0), smooth_image(200, 200, 3.0)]
"""The third is so small that its tiles have the same box."""


@pytest.fixture(scope="module")
def classifier():
    backbone = BackboneConfig(source="random", width=32, depth=2, heads=2)
    with seeded(0):
        return load_classifier(ModelConfig(backbone=backbone, image_size=SIZE)).eval()


@pytest.fixture(scope="module", params=list(RUNTIMES))
def runtime(request):
    return request.param


@pytest.fixture(scope="module")
def folders(classifier, tmp_path_factory):
    """Runtime -> a folder with its graph, written at the first use."""
    programs = cache(lambda: (capture(classifier), capture_dense(classifier.patches_at(DENSE_SIZE))))

    @cache
    def written(runtime):
        folder = tmp_path_factory.mktemp(runtime)
        for program, part in zip(programs(), (MODEL, DENSE), strict=True):
            RUNTIMES[runtime].write(program, folder, "fp32", [], part)
        return folder

    return written


@pytest.fixture(scope="module")
def folder(folders, runtime):
    return folders(runtime)


@pytest.fixture(scope="module", params=list(FUSIONS))
def models(request, classifier, folder, runtime):
    """The same model in PyTorch and in the runtime."""
    description, name = FUSIONS[request.param], None
    model = classifier
    if description is not None:
        model = FusedClassifier(classifier, description).eval()
        if description.has_weights:
            name = f"{request.param}.safetensors"
            with seeded(1):
                for parameter in model.fusion.parameters():
                    torch.nn.init.normal_(parameter, std=0.3)
            state = model.fusion.state_dict()
            save_file({key: state[key].numpy() for key in inference_keys(state)}, folder / name)
    graph_model = open_graph_model(
        folder,
        classifier.description,
        description,
        runtime=runtime,
        precision="fp32",
        feature_dim=classifier.width,
        fusion_weights=name,
        threads=1,
    )
    return TorchModel(model, torch.device("cpu")), graph_model


def test_logits_are_those_of_pytorch(models):
    torch_model, graph_model = models
    assert (graph_model.inference, graph_model.views_per_image) == (torch_model.inference, torch_model.views_per_image)
    expected = torch_model.logits([torch_model.prepare(pixels) for pixels in IMAGES])
    actual = graph_model.logits([graph_model.prepare(pixels) for pixels in IMAGES])
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, atol=0.02)
    # With the same resized pixels, only the runtime differs.
    np.testing.assert_allclose(graph_model.logits([torch_model.prepare(p) for p in IMAGES]), expected, atol=1e-4)


def test_views_are_those_of_pytorch(models):
    torch_model, graph_model = models
    for pixels in IMAGES:
        image = DecodedImage(pixels, pixels.shape[:2])
        expected, actual = torch_model.view_logits(image), graph_model.view_logits(image)
        assert actual.boxes == expected.boxes
        np.testing.assert_allclose(actual.logits, expected.logits, atol=0.02)
        np.testing.assert_allclose(actual.view_logits, expected.view_logits, atol=0.02)
        np.testing.assert_allclose(actual.weights, expected.weights, atol=0.02)


def test_the_decoder_may_reduce_images_as_far_as_in_pytorch(models):
    torch_model, graph_model = models
    for size in ((3024, 4032), (480, 640), (40, 30), (100, 3000)):
        assert graph_model.decode_size(size) == torch_model.decode_size(size)


def test_boxes_are_those_of_the_image_before_it_was_reduced(models):
    pixels = smooth_image(100, 150)
    for model in models:
        assert model.view_logits(DecodedImage(pixels, (400, 600))).boxes[0] == (0, 0, 600, 400)


def test_a_single_view_has_the_logits_of_the_graph(models):
    torch_model, graph_model = (model.with_single_view() for model in models)
    expected = torch_model.logits([torch_model.prepare(pixels) for pixels in IMAGES])
    assert graph_model.inference == "single_view"
    actual = graph_model.logits([graph_model.prepare(pixels) for pixels in IMAGES])
    np.testing.assert_allclose(actual, expected, atol=0.02)


@pytest.mark.parametrize("pixels", IMAGES)
def test_resized_views_differ_from_pytorch_by_rounding_only(pixels):
    config = ViewsConfig(rows=2, columns=3, overlap=0.2)
    sizes = {"image_size": SIZE, "dense_size": DENSE_SIZE}
    expected = make_views(torch.from_numpy(pixels).permute(2, 0, 1), config, **sizes)
    actual = make_view_arrays(pixels, config, **sizes)
    np.testing.assert_array_equal(actual.mask, expected.mask)
    np.testing.assert_array_equal(actual.content, expected.content)
    np.testing.assert_array_equal(actual.dense_content, expected.dense_content)
    difference = np.abs(actual.pixels.astype(int) - expected.pixels.numpy().astype(int))
    assert difference.max() <= 1


PROGRAM = """
import json, sys
import streetvision

bundle, image, unwanted = sys.argv[1], sys.argv[2], sys.argv[3:]
predictor = streetvision.load_bundle(bundle)
(prediction,) = predictor.predict(image)
predictor.explain(image)
print(json.dumps({"probability": prediction.probability, "loaded": [n for n in unwanted if n in sys.modules]}))
"""
RELEASED = """
import os, signal, sys
from pathlib import Path
from streetvision.bundle.runtimes.registry import RUNTIMES

runtime, folder = RUNTIMES[sys.argv[1]], Path(sys.argv[2])
graphs = [runtime(folder, "fp32", 1) for _ in range(2)]
while graphs:
    del graphs[0]
signal.signal(signal.SIGINT, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGINT)
"""
COMMAND = """
import runpy, sys

unwanted, sys.argv = sys.argv[1].split(","), ["streetvision", *sys.argv[2:]]
try:
    runpy.run_module("streetvision", run_name="__main__")
finally:
    print(*[name for name in unwanted if name in sys.modules], file=sys.stderr)
"""


@pytest.fixture(scope="module")
def exported_run(finished_run, onnx_bundle, runtime, tmp_path_factory):
    """A bundle of a finished run for each runtime."""
    if runtime == "onnx":
        return onnx_bundle
    out = tmp_path_factory.mktemp("exported") / runtime
    request = RuntimeRequest(finished_run / "export", out, runtime, "fp32")
    export_runtime(request, [f"run_dir={finished_run}"], Console())
    return out


@pytest.fixture(scope="module")
def image(scenes):
    return sorted((scenes / "images").iterdir())[0]


def run_python(*arguments, **environment):
    line = [sys.executable, *map(str, arguments)]
    result = subprocess.run(line, capture_output=True, text=True, env=os.environ | environment, check=False)
    assert result.returncode == 0, result.stderr
    return result


def test_the_python_api_does_not_import_torch(exported_run, finished_run, image):
    output = json.loads(run_python("-c", PROGRAM, exported_run, image, *UNWANTED).stdout)
    assert output["loaded"] == []
    (pytorch,) = load_bundle(finished_run / "export").predict(image)
    assert output["probability"] == pytest.approx(pytorch.probability, abs=0.01)


def test_a_signal_after_models_were_released_in_any_order_does_not_crash(folder, runtime):
    assert run_python("-c", RELEASED, runtime, folder).stdout == "handled\n"


def test_a_prediction_leaves_no_file_in_the_home_folder(exported_run, image, tmp_path):
    """Runtimes would keep an identifier of the machine there, and send it with events."""
    run_python("-c", PROGRAM, exported_run, image, HOME=str(tmp_path), XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_does_not_import_torch(exported_run, image):
    result = run_python("-c", COMMAND, ",".join(UNWANTED), "predict", "--bundle", exported_run, image)
    assert result.stderr.strip() == ""
    assert json.loads(result.stdout)["image"] == str(image)


def test_the_workers_of_a_batch_prediction_do_not_import_torch(exported_run, image, tmp_path):
    for name in UNWANTED:
        (tmp_path / "blocked" / name).mkdir(parents=True)
        (tmp_path / "blocked" / name / "__init__.py").write_text(f"raise ImportError('{name} is blocked')")
    path = os.pathsep.join([str(tmp_path / "blocked"), *filter(None, sys.path)])
    command = ["predict", "--bundle", exported_run, image, "--out", tmp_path / "out"]
    run_python("-m", "streetvision", *command, PYTHONPATH=path)
    (line,) = (tmp_path / "out" / "predictions" / "00000000.jsonl").read_text().splitlines()
    assert json.loads(line)["image"] == str(image)


def test_a_graph_without_its_fusion_weights_is_rejected(classifier, folder, runtime):
    with pytest.raises(StreetVisionError):
        open_graph_model(
            folder,
            classifier.description,
            FUSIONS["cvfm_trained"],
            runtime=runtime,
            precision="fp32",
            feature_dim=classifier.width,
        )


def test_many_views_are_run_in_chunks(models):
    _, graph_model = models
    sizes = []

    def graph(images):
        sizes.append(len(images))
        return graph_model.graph(images)

    counted = GraphModel(graph, graph_model.description, graph_model.fusion, graph_model.dense)
    batch = [graph_model.prepare(IMAGES[0])] * 30
    logits = counted.logits(batch)
    np.testing.assert_allclose(logits, np.repeat(logits[:1], 30, axis=0), atol=1e-4)
    assert sum(sizes) == 30 * (graph_model.views_per_image if graph_model.dense is None else 1)
    assert max(sizes) <= 64
