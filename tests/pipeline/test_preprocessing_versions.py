"""The same image has the same pixels in training, predict, serve, evaluate and monitoring, in both versions."""

import asyncio
import csv
import json
import shutil
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from streetvision import load_bundle
from streetvision.bundle.batch.predict import predict_sources
from streetvision.bundle.graph_model import GraphModel
from streetvision.cli.app import main
from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.progress import Silent
from streetvision.data.decode import as_tensor, read_image
from streetvision.data.image_file import decode_file
from streetvision.io.atomic import read_json, write_json_atomic
from streetvision.io.manifests import file_digest
from streetvision.io.resize_tensor import fit_tensor
from streetvision.pipeline.console import Console
from streetvision.serving.server import ServingConfig, create_app
from streetvision.synthetic.scenes import SceneConfig, write_scenes
from tests.conftest import TINY_MODEL, edit_bundle_json

SIZE = (48, 64)
"""Of the input: images of 320 x 420 pixels are reduced to 80 x 105."""


def reduced(path):
    """A file at a quarter of its size."""
    return as_tensor(
        decode_file(path.read_bytes(), decode_size=lambda size: (-(-size[0] // 4), -(-size[1] // 4))).pixels
    )


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    write_scenes(folder, SceneConfig(count=120, width=420, height=320), Silent())
    return folder


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs") / "large"
    settings = ["model.image_size=[48,64]", "model.preprocessing=2"]
    for arguments in (
        ["train", f"data.root={images}", f"run_dir={root}", *TINY_MODEL, *settings],
        ["evaluate", "--bundle", str(root / "export"), "evaluation.n_resamples=100"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code in (None, 0, 3)  # the tiny model may predict one class
    return ArtifactSchema(root)


@pytest.fixture(scope="module")
def version_1(run, tmp_path_factory):
    """The bundle as an earlier release wrote it, without the field."""
    folder = tmp_path_factory.mktemp("old") / "bundle"
    shutil.copytree(run.export_dir, folder)
    description = read_json(folder / "model_config.json")
    assert description.pop("preprocessing") == 2
    write_json_atomic(folder / "model_config.json", description)
    digest = file_digest(folder / "model_config.json").model_dump()
    edit_bundle_json(folder, lambda content: content["files"].update({"model_config.json": digest}))
    return folder


@pytest.fixture(scope="module")
def paths(images):
    return sorted((images / "images").iterdir())[:12]


def test_the_bundle_reduces_images_and_prepares_every_kind_of_file_the_same(run, paths):
    predictor = load_bundle(run.export_dir)
    for path in paths:
        expected = fit_tensor(reduced(path), SIZE).numpy()
        for image in (path, str(path), path.read_bytes(), Image.open(path)):
            np.testing.assert_array_equal(predictor.prepare(image), expected)


def test_what_was_calibrated_is_what_is_predicted(run):
    """The logits of VAL_CALIB, from the loader of training, are those of the bundle from the same files."""
    splits, predictor = read_json(run.splits_json), load_bundle(run.export_dir)
    rows = [row for row in splits["rows"] if row["split"] == "val_calib"]
    prepared = [predictor.prepare(f"{splits['root']}/{row['path']}") for row in rows]
    saved = torch.load(run.val_calib_logits, weights_only=True)
    torch.testing.assert_close(torch.from_numpy(predictor.logits(prepared)), saved, rtol=1e-5, atol=1e-5)


def test_evaluate_predict_and_the_server_have_the_same_probabilities(run, tmp_path):
    predictor, splits = load_bundle(run.export_dir), read_json(run.splits_json)
    with run.predictions_csv.open(newline="") as handle:
        evaluated = {row["path"]: float(row["probability"]) for row in csv.DictReader(handle) if row["shipped"] == "1"}
    assert evaluated
    files = [f"{splits['root']}/{path}" for path in evaluated]
    predicted = [prediction.probability for prediction in predictor.predict(files)]
    assert predicted == pytest.approx(list(evaluated.values()), abs=1e-6)

    predict_sources(run.export_dir, [images_of(splits)], tmp_path / "out", workers=1, console=Console())
    lines = [json.loads(line) for line in (tmp_path / "out/predictions/00000000.jsonl").read_text().splitlines()]
    by_name = {line["image"]: line["probability"] for line in lines}
    assert [by_name[file] for file in files] == pytest.approx(predicted, abs=1e-6)

    async def served():
        transport = httpx.ASGITransport(app=create_app(predictor, ServingConfig()))
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
            bodies = [Path(file).read_bytes() for file in files]
            headers = {"Content-Type": "image/jpeg"}
            return [(await client.post("/predict", content=body, headers=headers)).json() for body in bodies]

    assert [response["probability"] for response in asyncio.run(served())] == pytest.approx(predicted, abs=1e-6)


def images_of(splits):
    return Path(splits["root"]) / "images"


def test_explain_has_the_same_probability_and_boxes_of_the_full_size(run, paths):
    predictor = load_bundle(run.export_dir)
    for path in paths[:3]:
        prediction = predictor.explain(path)
        assert prediction.probability == pytest.approx(predictor.predict(path)[0].probability, abs=1e-6)
        assert prediction.views[0].box == (0, 0, 420, 320)


def test_pixels_in_memory_are_resized_from_the_full_size(run, paths):
    predictor = load_bundle(run.export_dir)
    for image in (Image.open(paths[0]).convert("RGB"), read_image(paths[0])):
        np.testing.assert_array_equal(predictor.prepare(image), fit_tensor(read_image(paths[0]), SIZE).numpy())


def test_a_bundle_of_version_1_is_unchanged_bit_for_bit(run, version_1, paths):
    predictor, newer = load_bundle(version_1), load_bundle(run.export_dir)
    for path in paths:
        expected = fit_tensor(read_image(path), SIZE).numpy()
        for image in (path, path.read_bytes(), Image.open(path), read_image(path)):
            np.testing.assert_array_equal(predictor.prepare(image), expected)
        assert not np.array_equal(newer.prepare(path), expected)
    logits = newer.logits([predictor.prepare(path) for path in paths])
    np.testing.assert_array_equal(predictor.logits([predictor.prepare(path) for path in paths]), logits)


def test_an_exported_graph_has_the_version_of_its_bundle(run, version_1, images):
    main_arguments = ["export", "--runtime", "onnx", f"run_dir={run.output_dir}"]
    for bundle, factor in ((run.export_dir, 4), (version_1, 1)):
        out = bundle.parent / f"onnx-{factor}"
        with pytest.raises(SystemExit) as stop:
            main([*main_arguments, "--bundle", str(bundle), "--out", str(out)])
        assert not stop.value.code
        predictor = load_bundle(out)
        assert isinstance(predictor.model, GraphModel)
        path = next((images / "images").iterdir())
        assert predictor.decode(path).pixels.shape == (320 // factor, 420 // factor, 3)
