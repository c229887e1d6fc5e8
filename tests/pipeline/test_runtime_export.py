"""export --runtime, through the command line: what is written, what is recorded, and what is rejected."""

import json
import shutil
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
from fastapi.testclient import TestClient

from streetvision import load_bundle
from streetvision.bundle.runtimes.onnx_graph import OnnxGraph
from streetvision.bundle.runtimes.registry import RUNTIMES
from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ArtifactError
from streetvision.contracts.split_contracts import Split
from streetvision.io.atomic import read_json, write_json_atomic
from streetvision.pipeline import runtime_export
from streetvision.pipeline.console import Console
from streetvision.pipeline.runtime_export import offer_openvino
from streetvision.serving.server import ServingConfig, create_app
from tests.conftest import TINY_MODEL

RESIZING = 1e-3
"""Difference of a probability because an exported bundle resizes with Pillow, which rounds some pixels by 1."""


@pytest.fixture(scope="module")
def exported(onnx_bundle):
    """A copy of the run with its bundle for ONNX Runtime."""
    return onnx_bundle.parent


@pytest.fixture
def paths(scenes):
    return sorted((scenes / "images").iterdir())[:12]


def test_parity_is_measured_on_val_select(exported):
    content = read_json(exported / "onnx" / "bundle.json")
    rows = read_json(ArtifactSchema(exported).splits_json)["rows"]
    parity = content["runtime"]["parity"]
    select = [row["label"] for row in rows if row["split"] == Split.VAL_SELECT]
    assert (parity["n"], parity["positives"]) == (len(select), sum(select))
    assert 0 < parity["max_logit_difference"] < 0.01  # not 0: Pillow rounds some resized pixels by 1
    assert (parity["decision_flips"], content["schema_version"]) == (0, 3)
    assert content["versions"]["onnxruntime"]


def test_an_export_predicts_explains_and_serves_like_the_original(exported, paths):
    original, exported_bundle = load_bundle(exported / "export"), load_bundle(exported / "onnx")
    predictions = exported_bundle.predict(paths)
    for first, second in zip(original.predict(paths), predictions, strict=True):
        assert second.probability == pytest.approx(first.probability, abs=RESIZING)
        assert (second.decision, second.certified) == (first.decision, first.certified)
    prepared = [exported_bundle.prepare(path) for path in paths]  # with the same pixels, the logits are the same
    np.testing.assert_allclose(exported_bundle.logits(prepared), original.logits(prepared), atol=1e-5, rtol=0)
    views, expected = exported_bundle.explain(paths[0]).views, original.explain(paths[0]).views
    assert [view.probability for view in views] == pytest.approx([v.probability for v in expected], abs=RESIZING)
    with TestClient(create_app(exported_bundle, ServingConfig())) as client:
        response = client.post("/predict", files={"image": paths[0].read_bytes()})
    assert response.json()["probability"] == pytest.approx(predictions[0].probability, abs=1e-6)


def test_an_export_is_evaluated_and_exported_like_any_bundle(exported, command, tmp_path):
    run = shutil.copytree(exported, tmp_path / "run")
    code, _, err = command("evaluate", "--bundle", run / "onnx", "evaluation.n_resamples=100")
    assert code == 0, err
    report = read_json(ArtifactSchema(run).evaluation_report_json)
    before = read_json(ArtifactSchema(exported).evaluation_report_json)
    assert report["counts"] == before["counts"]
    assert report["provenance"]["runtime"] == "onnx fp32"
    code, _, err = command("export", "--bundle", run / "onnx", "--out", tmp_path / "hub", "--format", "hub")
    assert code == 0, err
    assert load_bundle(tmp_path / "hub" / "bundle").manifest == load_bundle(run / "onnx").manifest


def test_openvino_is_offered_where_it_passes_and_is_faster(exported, monkeypatch, capsys):
    def offered():
        offer_openvino(exported / "export", Console())
        return capsys.readouterr().out

    def rejected(*_, **__):
        raise ArtifactError("it is worse")

    assert offered() == ""  # a small model
    monkeypatch.setattr(runtime_export, "SMALLEST_OFFERED", 0)
    monkeypatch.setattr(runtime_export, "OFFERED", ("fp32",))
    monkeypatch.setattr(runtime_export, "_speed", lambda *_: 2.0)
    lines = offered()
    assert "fp32 runs the model 2.0 times as fast" in lines
    assert "--runtime openvino --precision fp32" in " ".join(lines.split())
    assert f"--out {exported / 'openvino'} " in " ".join(lines.split())
    (exported / "openvino").mkdir()
    assert f"--out {exported / 'openvino_2'} " in " ".join(offered().split())
    (exported / "openvino").rmdir()
    for name, value, reason in (
        ("FEWEST_OFFER_IMAGES", 25, None),
        ("find_spec", lambda _: None, None),
        ("_speed", lambda *_: 1.0, "1.0 times"),
        ("check_parity", rejected, "it is worse"),
        ("write_graph", rejected, "it is worse"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(runtime_export, name, value)
            lines = offered().splitlines()
        assert len(lines) == (0 if reason is None else 2)  # that the comparison starts, and its result
        assert all("not offered" in line and reason in line for line in lines[1:])


def test_an_offer_takes_as_many_images_as_its_time_allows(exported, monkeypatch, capsys):
    compared = []

    def compare(*arguments):
        compared.append(arguments[-1])
        raise ArtifactError("stop")

    monkeypatch.setattr(runtime_export, "SMALLEST_OFFERED", 0)
    monkeypatch.setattr(runtime_export, "OFFERED", ("fp32",))
    monkeypatch.setattr(runtime_export, "_convert", lambda *_: SimpleNamespace(model=None))
    monkeypatch.setattr(runtime_export, "_speed", lambda *_: 2.0)
    monkeypatch.setattr(runtime_export, "_compare", compare)
    for seconds in (0.001, 0.5, 10.0):  # of one image
        monkeypatch.setattr(runtime_export, "_seconds", lambda *_, seconds=seconds: seconds)
        offer_openvino(exported / "export", Console())
    assert compared == [runtime_export.OFFER_IMAGES, 48]
    assert "--runtime openvino" in " ".join(capsys.readouterr().out.split())  # the comparison is left to the export


def test_an_interrupted_offer_leaves_a_finished_training(exported, command, monkeypatch, tmp_path):
    run = ArtifactSchema(shutil.copytree(exported, tmp_path / "run"))
    run.manifest("phase6").unlink()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runtime_export, "offer_openvino", interrupt)
    code, out, err = command("train", f"run_dir={run.output_dir}", *TINY_MODEL)
    assert (code, err) == (0, "")
    assert f"streetvision evaluate --bundle {run.export_dir}" in " ".join(out.split())


def test_images_are_read_with_the_limits_of_the_run(exported, command, monkeypatch, tmp_path):
    schema = ArtifactSchema(shutil.copytree(exported, tmp_path / "run"))
    manifest = schema.manifest("data")
    content = read_json(manifest)
    content["config"]["LoaderConfig"]["max_megapixels"] = 150.0
    write_json_atomic(manifest, content)
    limits = []

    def no_conversion(predictor, *_):
        limits.append(predictor.limits.max_megapixels)
        raise ArtifactError("stop")

    monkeypatch.setattr(runtime_export, "SMALLEST_OFFERED", 0)
    monkeypatch.setattr(runtime_export, "OFFERED", ("fp32",))
    monkeypatch.setattr(runtime_export, "_convert", no_conversion)
    offer_openvino(schema.export_dir, Console())
    arguments = ["export", "--bundle", schema.export_dir, "--out", tmp_path / "out", "--runtime", "onnx"]
    assert command(*arguments)[0] == 2
    assert command(*arguments, "loader.max_megapixels=120")[0] == 2
    assert limits == [150, 150, 120]


def test_data_that_was_moved_is_found_with_data_root(exported, command, monkeypatch, tmp_path):
    schema = ArtifactSchema(shutil.copytree(exported, tmp_path / "run"))
    photos = shutil.copytree(read_json(schema.splits_json)["root"], tmp_path / "photos")
    roots = []

    def no_conversion(predictor, request, context, folder):
        roots.append(context.data_root)
        raise ArtifactError("stop")

    monkeypatch.setattr(runtime_export, "_convert", no_conversion)
    arguments = ["export", "--bundle", schema.export_dir, "--out", tmp_path / "out", "--runtime", "onnx"]
    code, _, err = command(*arguments, f"data.root={photos}")
    assert (code, roots) == (2, [photos])
    assert "no effect" not in err
    assert read_json(schema.splits_json)["root"] == str(photos)


def test_a_changed_byte_of_the_graph_is_refused(exported, command, paths, tmp_path):
    folder = shutil.copytree(exported / "onnx", tmp_path / "onnx")
    content = bytearray((folder / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.onnx").write_bytes(content)
    code, _, err = command("predict", "--bundle", folder, paths[0])
    assert code == 2
    assert "'model.onnx' in bundle" in err
    assert "does not match its digest" in err


def test_a_worse_graph_is_refused_with_the_figure_and_leaves_nothing(exported, command, monkeypatch, tmp_path):
    class Inverted(OnnxGraph):
        def __call__(self, images):
            output = super().__call__(images)
            return output._replace(logits=output.logits[:, ::-1])

    monkeypatch.setitem(RUNTIMES, "onnx", Inverted)
    code, out, err = command("export", "--bundle", exported / "export", "--out", tmp_path / "o", "--runtime", "onnx")
    assert code == 2
    assert "onnx fp32 is rejected" in err
    assert "decisions differ" in err
    assert "MCC" in out
    assert not (tmp_path / "o").exists()


def test_an_interrupted_export_leaves_nothing(exported, command, monkeypatch, tmp_path):
    def interrupt(folder, *_, **__):
        folder.mkdir()
        (folder / "model.onnx").write_bytes(b"incomplete")
        raise KeyboardInterrupt

    monkeypatch.setattr(runtime_export, "write_bundle", interrupt)
    with suppress(KeyboardInterrupt):
        command("export", "--bundle", exported / "export", "--out", tmp_path / "o", "--runtime", "onnx")
    assert not (tmp_path / "o").exists()


def test_int8_takes_its_ranges_from_images_of_train(exported, command, monkeypatch, tmp_path):
    monkeypatch.setattr(
        "streetvision.bundle.runtimes.parity.MAX_MCC_LOSS", 2.0
    )  # a tiny model on 24 images: not what is tested
    monkeypatch.setattr("streetvision.pipeline.runtime_export.CALIBRATION_IMAGES", 6)
    arguments = ["export", "--bundle", exported / "export", "--out", tmp_path / "int8", "--runtime", "openvino"]
    code, out, err = command(*arguments, "--precision", "int8", f"run_dir={exported}", "phase5.folds=3")
    assert code == 0, err
    assert "phase5.folds has no effect on export --runtime" in " ".join(err.split())
    assert f"run_dir={exported}" in out
    runtime = load_bundle(tmp_path / "int8").manifest.runtime
    assert (runtime.precision, runtime.calibration_images) == ("int8", 6)


REFUSED = {
    "neither": ([], "export needs either --format or --runtime"),
    "both": (["--format", "hub", "--runtime", "onnx"], "export needs either --format or --runtime"),
    "no such precision": (["--runtime", "onnx", "--precision", "bf16"], "--runtime onnx has no precision bf16"),
    "a card's option": (["--runtime", "onnx", "--license", "mit"], "--license has no effect with --runtime onnx"),
    "a runtime's option": (["--format", "hub", "--precision", "int8"], "--precision has no effect with --format hub"),
    "settings": (["--format", "hub", "run_dir=x"], "run_dir=x has no effect with --format hub"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_incompatible_options_are_user_errors(exported, command, tmp_path, case):
    options, message = REFUSED[case]
    code, _, err = command("export", "--bundle", exported / "export", "--out", tmp_path / "o", *options)
    assert code == 2
    assert message in err


def test_a_bundle_without_its_run_needs_run_dir(exported, command, tmp_path):
    alone = shutil.copytree(exported / "export", tmp_path / "alone" / "export")
    code, _, err = command("export", "--bundle", alone, "--out", tmp_path / "o", "--runtime", "onnx")
    assert code == 2
    assert "it has no splits.json" in err
    assert "run_dir=..." in err


def test_exporting_an_export_or_into_a_used_folder_is_an_error(exported, command):
    code, _, err = command("export", "--bundle", exported / "export", "--out", exported / "onnx", "--runtime", "onnx")
    assert code == 2
    assert "is not an empty folder" in err
    inside = exported / "export" / "o"
    for bundle in (exported / "export", exported / "export" / "bundle.json"):
        code, _, err = command("export", "--bundle", bundle, "--out", inside, "--runtime", "onnx")
        assert code == 2
        assert "must be outside the bundle" in err
        assert not inside.exists()
    code, _, err = command("export", "--bundle", exported / "onnx", "--out", exported / "o", "--runtime", "onnx")
    assert code == 2
    assert "already runs in onnx" in err
    code, _, err = command("export", "--bundle", exported / "onnx", "--out", exported / "o", "--format", "miner")
    assert code == 2
    assert "the reference miner runs PyTorch" in err


def test_the_original_bundle_keeps_schema_version_2(exported):
    content = json.loads((exported / "export" / "bundle.json").read_text())
    assert content["schema_version"] == 2
    assert "runtime" not in content
