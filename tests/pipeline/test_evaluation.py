"""evaluate, through the command line: on VAL_TEST, on other data, in both modes."""

import csv
import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from streetvision import load_bundle
from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.progress import Silent
from streetvision.data.config import DataConfig
from streetvision.io.atomic import read_json
from streetvision.io.manifests import file_digest
from streetvision.pipeline import moved_data
from streetvision.pipeline.config import compose_config
from streetvision.pipeline.console import Console
from streetvision.pipeline.run import recorded_settings, resolve_run_config
from streetvision.synthetic.scenes import SceneConfig, write_scenes
from tests.conftest import TINY_MODEL, edit_bundle_json

FEW = "evaluation.n_resamples=100"


@pytest.fixture
def run_copy(finished_run, tmp_path):
    return ArtifactSchema(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Scenes of other seeds than those of the run, with a column that the run's data lack."""
    folder = tmp_path_factory.mktemp("others")
    write_scenes(folder, SceneConfig(count=60, first_seed=5000, width=96, height=72), Silent())
    index = folder / "index.csv"
    rows = list(csv.DictReader(index.read_text().splitlines()))
    lines = [",".join([*row.values(), "wet" if i % 2 else "dry"]) for i, row in enumerate(rows)]
    index.write_text("\n".join([",".join([*rows[0], "road"]), *lines]))
    return folder


def taken_from_run(schema, splits, folder):
    """A data set of the run's own images of some splits, under other names."""
    content = read_json(schema.splits_json)
    rows = [row for row in content["rows"] if row["split"] in splits]
    lines = [f"{Path(content['root']) / row['path']},{row['label']}" for row in rows]
    folder.mkdir()
    (folder / "index.csv").write_text("\n".join(["path,label", *lines]))
    return folder, len(rows)


def test_the_policies_are_argmax_phase_2_and_the_bundle(finished_run):
    schema = ArtifactSchema(finished_run)
    policies = read_json(schema.evaluation_report_json)["policies"]
    assert [row["name"] for row in policies] == ["argmax", "threshold", "scrc"]
    assert [row["shipped"] for row in policies] == [False, False, True]
    assert policies[1]["threshold"] == read_json(schema.thresholds_json)["threshold"]
    assert policies[2]["threshold"] == load_bundle(schema.export_dir).threshold
    assert {row["inference"] for row in policies} == {"single_view"}


def test_a_shipped_threshold_is_listed_once(run_copy, command):
    train = ["train", f"run_dir={run_copy.output_dir}", "pipeline.phases=[phase6]", "phase6.policy=threshold"]
    assert command(*train)[0] == 0
    code, _, err = command("evaluate", "--bundle", run_copy.export_dir, FEW)
    assert code == 0, err
    policies = read_json(run_copy.evaluation_report_json)["policies"]
    assert [(row["name"], row["shipped"]) for row in policies] == [("argmax", False), ("threshold", True)]


def test_the_threshold_of_another_model_is_left_out_with_a_note(run_copy, command):
    policy = read_json(run_copy.thresholds_json)
    policy["scores"]["model_sha256"] = "f" * 64
    run_copy.thresholds_json.write_text(json.dumps(policy))
    run_copy.manifest("phase2").unlink()
    code, _, err = command("evaluate", "--bundle", run_copy.export_dir, FEW)
    assert code == 0, err
    report = read_json(run_copy.evaluation_report_json)
    assert [row["name"] for row in report["policies"]] == ["argmax", "scrc"]
    assert "Phase 2's threshold is not compared" in report["notes"][0]


def test_quick_removes_the_plots_of_an_earlier_comprehensive_evaluation(run_copy, command):
    assert run_copy.threshold_curve.is_file()
    code, out, err = command("evaluate", "--bundle", run_copy.export_dir, "--mode", "quick", FEW)
    assert code == 0, err
    assert not run_copy.threshold_curve.exists()
    assert ", access 2" in out
    assert "slices" not in read_json(run_copy.evaluation_report_json)


def test_accesses_to_val_test_are_counted_and_unchanged_evaluations_are_none(run_copy, command):
    again = ["evaluate", "--bundle", run_copy.export_dir, FEW]
    assert "first access" in command(*again)[1]
    assert len(read_json(run_copy.test_access_log_json)) == 1
    code, out, _ = command(*again, "evaluation.seed=1")
    assert code == 0
    assert ", access 2" in out
    accesses = read_json(run_copy.test_access_log_json)
    assert len(accesses) == 2
    earlier = read_json(run_copy.evaluation_report_json)["earlier_test_accesses"]
    assert earlier == [{"bundle_sha256": accesses[0]["bundle_sha256"], "count": 1, "last": accesses[0]["at"]}]


def test_a_moved_bundle_is_evaluated_on_the_run_that_made_it(run_copy, tmp_path, command):
    moved = run_copy.export_dir.rename(tmp_path / "moved")
    code, _, err = command("evaluate", "--bundle", moved)
    assert code == 2
    assert "run_dir=" in err
    code, _, err = command("evaluate", "--bundle", moved, f"run_dir={run_copy.output_dir}", FEW)
    assert code == 0, err


def test_other_data_is_evaluated_in_its_own_folder(run_copy, others, command):
    code, out, err = command("evaluate", "--bundle", run_copy.export_dir, "--data", others, FEW)
    assert code == 0, err
    assert "60 images" in out
    assert f"streetvision predict --bundle {run_copy.export_dir} " in out
    schema = ArtifactSchema(run_copy.output_dir / f"on_{others.name}")
    report = read_json(schema.evaluation_report_json)
    assert (report["test_access"], report["notes"], report["data"]) == (None, [], others.name)
    assert [row["name"] for row in report["policies"]] == ["argmax", "threshold", "scrc"]
    assert {part["value"] for part in report["slices"] if part["column"] == "road"} == {"wet", "dry"}
    assert len(read_json(run_copy.test_access_log_json)) == 1
    assert "(unchanged)" in command("evaluate", "--bundle", run_copy.export_dir, "--data", others, FEW)[1]


def test_other_data_of_the_same_name_does_not_replace_an_evaluation(run_copy, others, tmp_path, command):
    arguments = ["evaluate", "--bundle", run_copy.export_dir, FEW, "evaluation.mode=quick", "--data"]
    assert command(*arguments, others)[0] == 0
    report = ArtifactSchema(run_copy.output_dir / f"on_{others.name}").evaluation_report_json
    before = report.read_bytes()
    twin = shutil.copytree(others, tmp_path / "twin" / others.name)
    code, _, err = command(*arguments, twin)
    assert (code, report.read_bytes()) == (2, before)
    assert "run_dir=" in err
    version = shutil.copytree(others, tmp_path / "twin" / f"{others.name}.v2")
    assert command(*arguments, version)[0] == 0
    assert report.read_bytes() == before


@pytest.mark.parametrize("setting", ["data.seed=1", "data.protocol=split", "data.root=x", "evaluation.bundle=b"])
def test_other_data_is_not_split_and_settings_do_not_replace_options(run_copy, others, command, setting):
    code, _, err = command("evaluate", "--bundle", run_copy.export_dir, "--data", others, setting)
    assert code == 2
    assert setting.partition("=")[0] in err


def test_class_names_in_another_order_than_the_bundle_has_are_refused(run_copy, others, command):
    arguments = ["evaluate", "--bundle", run_copy.export_dir, "--data", others, FEW, "evaluation.mode=quick"]
    code, _, err = command(*arguments, "data.class_names=[ROADWORK,none]")
    assert code == 2
    assert "data.class_names" in err
    assert not (run_copy.output_dir / f"on_{others.name}").exists()
    assert command(*arguments, "data.class_names=[Clear,Works]")[0] == 0


def test_images_that_made_the_bundle_are_refused(run_copy, tmp_path, command):
    data, n = taken_from_run(run_copy, {"train", "val_calib"}, tmp_path / "leak")
    code, _, err = command("evaluate", "--bundle", run_copy.export_dir, "--data", data, FEW)
    assert code == 2
    assert f"{n} of {n} images were used to make this bundle (train " in err


def test_another_split_of_the_run_does_not_count_for_the_bundle(run_copy, tmp_path, command):
    data, _ = taken_from_run(run_copy, {"val_test"}, tmp_path / "tested")
    train = ["train", f"run_dir={run_copy.output_dir}", *TINY_MODEL, "data.seed=1", "pipeline.phases=[data]"]
    assert command(*train)[0] == 0
    code, _, err = command("evaluate", "--bundle", run_copy.export_dir, "--data", data, FEW)
    assert code == 0, err


def test_the_run_of_the_bundle_has_the_limit_of_megapixels(run_copy, others, command):
    recorded = read_json(run_copy.manifest("data"))
    recorded["config"]["LoaderConfig"]["max_megapixels"] = 150.0
    run_copy.manifest("data").write_text(json.dumps(recorded))
    for arguments in (
        ["evaluate", FEW],
        ["subnet", "reward", "reward.n_simulations=20"],
        ["evaluate", "--data", others],
    ):
        code, _, err = command(*arguments, "--bundle", run_copy.export_dir)
        assert code == 0, err
    manifests = [run_copy.manifest(phase) for phase in ("evaluate", "reward")]
    manifests.append(ArtifactSchema(run_copy.output_dir / f"on_{others.name}").manifest("evaluate_data"))
    assert [read_json(path)["config"]["LoaderConfig"]["max_megapixels"] for path in manifests] == [150.0] * 3


def test_val_test_under_another_name_counts_as_an_access(run_copy, tmp_path, command):
    data, _ = taken_from_run(run_copy, {"val_test"}, tmp_path / "again")
    code, _, err = command("evaluate", "--bundle", run_copy.export_dir, "--data", data, FEW)
    assert code == 0, err
    report = read_json(ArtifactSchema(run_copy.output_dir / "on_again").evaluation_report_json)
    assert report["test_access"] == 2
    assert len(read_json(run_copy.test_access_log_json)) == 2
    assert report["metrics"]["accuracy"] == pytest.approx(
        read_json(run_copy.evaluation_report_json)["metrics"]["accuracy"]
    )


def test_without_its_run_a_bundle_is_evaluated_with_a_note(run_copy, others, tmp_path, command):
    alone = tmp_path / "alone" / "bundle"
    alone.parent.mkdir()
    run_copy.export_dir.rename(alone)
    code, _, err = command("evaluate", "--bundle", alone, "--data", others, f"run_dir={tmp_path / 'out'}", FEW)
    assert code == 0, err
    report = read_json(ArtifactSchema(tmp_path / "out").evaluation_report_json)
    assert report["notes"]
    assert "caution" not in err


def test_images_of_val_test_without_their_run_are_a_note(run_copy, tmp_path, command):
    data, n = taken_from_run(run_copy, {"val_test"}, tmp_path / "again")
    alone = shutil.copytree(run_copy.export_dir, tmp_path / "alone" / "export")
    code, out, err = command("evaluate", "--bundle", alone, "--data", data, FEW, "evaluation.mode=quick")
    assert code == 0, err
    assert f"{n} of these images are VAL_TEST of the run that made the bundle" in out
    schema = ArtifactSchema(tmp_path / "alone" / "on_again")
    report = read_json(schema.evaluation_report_json)
    assert (report["test_access"], report["uncounted_test_images"]) == (None, n)
    assert "VAL_TEST was not accessed" not in schema.report_html.read_text()


def test_a_bundle_has_the_settings_and_gates_of_the_phases_that_made_it(run_copy, command):
    earlier = read_json(run_copy.evaluation_report_json)["settings"]
    assert list(earlier) == ["data", "phase1", "phase2", "phase5", "phase6"]
    old, gate = shutil.copytree(run_copy.export_dir, run_copy.output_dir / "old"), run_copy.augmentation_gate_json

    def settings_and_notes(reason):
        gate.write_text(json.dumps({"gate": "on", "ships": False, "reason": reason}))
        manifest = read_json(run_copy.manifest("phase1"))
        manifest["outputs"]["phase1/augmentation_gate.json"] = file_digest(gate).model_dump()
        run_copy.manifest("phase1").write_text(json.dumps(manifest))
        code, _, err = command("evaluate", "--bundle", old, FEW, "evaluation.mode=quick")
        assert code == 0, err
        report = read_json(run_copy.evaluation_report_json)
        return report["settings"], report["notes"]

    run_copy.report_html.unlink()  # the evaluation is not unchanged
    assert settings_and_notes("first") == (earlier, ["The augmentation is left out: first."])

    # Another threshold belongs to the model, but not to the bundle.
    train = ["train", f"run_dir={run_copy.output_dir}", *TINY_MODEL]
    assert command(*train, "pipeline.phases=[phase5]", "phase5.method=platt")[0] == 0
    run_copy.report_html.unlink()
    settings, notes = settings_and_notes("second")
    assert (list(settings), notes) == (
        ["data", "phase1", "phase2", "phase6"],
        ["The augmentation is left out: second."],
    )

    code, _, err = command(*train, "pipeline.phases=[phase1]", "training.loss.name=weighted_cross_entropy")
    assert code in (0, 3), err
    run_copy.report_html.unlink()
    assert settings_and_notes("third") == ({}, [])


def test_an_evaluation_on_other_data_is_not_written_into_a_run(run_copy, others, command):
    code, _, err = command(
        "evaluate", "--bundle", run_copy.export_dir, "--data", others, f"run_dir={run_copy.output_dir}"
    )
    assert code == 2
    assert "is the folder of a training run" in err


@pytest.mark.parametrize("path", ["relative", "link"])
def test_a_bundle_belongs_to_its_run_under_any_path(run_copy, command, monkeypatch, tmp_path, path):
    content = read_json(run_copy.splits_json)
    (tmp_path / "link").symlink_to(run_copy.export_dir)
    monkeypatch.chdir(run_copy.export_dir)
    bundle = {"relative": ".", "link": tmp_path / "link"}[path]
    code, out, err = command("evaluate", "--bundle", bundle, FEW)
    assert code == 0, err
    assert "access" in out
    code, _, err = command("evaluate", "--bundle", bundle, FEW, "--data", content["root"], f"run_dir={tmp_path / 'on'}")
    assert code == 2
    assert "were used to make this bundle" in err


def used_images(schema, alter, folder):
    """A data set of altered images of TRAIN: 12 of each class."""
    content = read_json(schema.splits_json)
    rows = [row for row in content["rows"] if row["split"] == "train"]
    lines = ["path,label"]
    folder.mkdir()
    for row in [row for label in (0, 1) for row in [r for r in rows if r["label"] == label][:12]]:
        name = f"{row['sha256'][:8]}.png"
        alter(Path(content["root"]) / row["path"], folder / name)
        lines.append(f"{name},{row['label']}")
    (folder / "index.csv").write_text("\n".join(lines))
    return folder


ALTERED = {
    "a byte more": lambda source, to: to.write_bytes(source.read_bytes() + b"x"),
    "another format": lambda source, to: Image.open(source).save(to, "PNG"),
    "larger": lambda source, to: Image.open(source).resize((150, 110)).save(to, "PNG"),
    "quality 60": lambda source, to: Image.open(source).save(to, "JPEG", quality=60),
    "cropped": lambda source, to: cropped(Image.open(source), 0.05).save(to, "PNG"),
}


def cropped(image, share):
    """The image without `share` of its width and height at every edge."""
    width, height = image.size
    x, y = round(width * share), round(height * share)
    return image.crop((x, y, width - x, height - y))


@pytest.mark.parametrize("alone", [False, True], ids=["in its run", "alone"])
@pytest.mark.parametrize("alteration", ALTERED)
def test_altered_training_images_are_refused_with_counts(run_copy, command, tmp_path, alone, alteration):
    data, bundle = used_images(run_copy, ALTERED[alteration], tmp_path / "data"), run_copy.export_dir
    if alone:
        bundle = shutil.copytree(bundle, tmp_path / "alone" / "export")
    code, _, err = command("evaluate", "--bundle", bundle, FEW, "--data", data)
    assert code == 2
    assert "24 of 24 images are copies of images that were used to make this bundle (train 24)" in err


def test_a_bundle_of_another_split_of_the_same_data_is_refused(run_copy, command, tmp_path):
    other = shutil.copytree(run_copy.export_dir, tmp_path / "other" / "export")
    edit_bundle_json(other, lambda content: content.update(split_sha256="0" * 64))
    code, _, err = command("evaluate", "--bundle", other, FEW, f"run_dir={run_copy.output_dir}")
    assert code == 2
    assert "another split" in err


def test_a_changed_image_of_val_test_is_named(run_copy, command, tmp_path):
    content = read_json(run_copy.splits_json)
    photos = shutil.copytree(content["root"], tmp_path / "photos")
    path = next(row["path"] for row in content["rows"] if row["split"] == "val_test")
    (photos / path).write_bytes((photos / path).read_bytes() + b"x")
    code, _, err = command("evaluate", "--bundle", run_copy.export_dir, FEW, f"data.root={photos}")
    assert code == 2
    assert path in err


def test_every_changed_or_missing_image_of_val_test_is_named_before_the_access(run_copy, command, tmp_path):
    content = read_json(run_copy.splits_json)
    photos = shutil.copytree(content["root"], tmp_path / "photos")
    assert command("evaluate", "--bundle", run_copy.export_dir, FEW, f"data.root={photos}")[0] == 0
    accesses = len(read_json(run_copy.test_access_log_json))
    changed, missing, *_ = (row["path"] for row in content["rows"] if row["split"] == "val_test")
    (photos / changed).write_bytes((photos / changed).read_bytes() + b"x")
    (photos / missing).unlink()
    code, _, err = command("evaluate", "--bundle", run_copy.export_dir, FEW, "evaluation.seed=1")
    assert code == 2
    assert changed in err
    assert missing in err
    assert len(read_json(run_copy.test_access_log_json)) == accesses


def test_images_that_are_left_out_are_named_on_the_terminal_and_in_the_report(run_copy, others, command, tmp_path):
    data = shutil.copytree(others, tmp_path / "data")
    name = (data / "index.csv").read_text().splitlines()[1].partition(",")[0]
    (data / name).write_bytes(b"no image")
    code, _, err = command("evaluate", "--bundle", run_copy.export_dir, FEW, "--data", data, f"run_dir={tmp_path}/on")
    assert code == 0, err
    assert name in err
    assert any(name in note for note in read_json(ArtifactSchema(tmp_path / "on").evaluation_report_json)["notes"])


@pytest.mark.parametrize("label", [0, 1])
def test_data_of_one_class_gives_the_rates_that_exist(run_copy, others, command, tmp_path, label):
    lines = (others / "index.csv").read_text().splitlines()
    table = others / f"only_{label}.csv"
    table.write_text("\n".join([lines[0], *(line for line in lines[1:] if line.split(",")[1] == str(label))]))
    out = tmp_path / "out"
    code, _, err = command("evaluate", "--bundle", run_copy.export_dir, FEW, "--data", table, f"run_dir={out}")
    table.unlink()
    assert code == 0, err
    report = read_json(ArtifactSchema(out).evaluation_report_json)
    metrics = report["policies"][-1]["metrics"]
    assert metrics["recall" if label else "fpr"]["high"] is not None
    assert metrics["roc_auc"]["estimate"] is None
    for policy in report["policies"][1:]:
        defined = {name for name, figure in metrics.items() if figure["estimate"] is not None}
        assert {name for name, figure in policy["differences"].items() if figure["estimate"] is not None} <= defined
        assert policy["differences"]["mcc"]["p_value"] is None


def test_a_folder_with_one_class_and_another_folder_is_an_error_whose_hint_reads_both(
    run_copy, others, command, tmp_path
):
    for line in (others / "index.csv").read_text().splitlines()[1:13]:
        path, label, *_ = line.split(",")
        folder = tmp_path / "photos" / ("street", "Roadwork")[int(label)]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(others / path, folder)
    arguments = ["evaluate", "--bundle", run_copy.export_dir, FEW, "--data", tmp_path / "photos"]
    arguments += [f"run_dir={tmp_path / 'out'}", "evaluation.mode=quick"]
    code, _, err = command(*arguments)
    assert code == 2
    assert "'data.class_names=[street,Roadwork]'" in err
    code, _, err = command(*arguments, "data.class_names=[street,Roadwork]")
    assert code == 0, err
    assert read_json(ArtifactSchema(tmp_path / "out").data_report_json)["rows"] == 12


def test_moved_data_is_accepted_by_evaluate_and_train(run_copy, command, tmp_path):
    content, before = read_json(run_copy.splits_json), run_copy.phase1_checkpoint.stat().st_mtime_ns
    photos = shutil.copytree(content["root"], tmp_path / "photos")
    code, out, err = command("evaluate", "--bundle", run_copy.export_dir, FEW, f"data.root={photos}")
    assert code == 0, err
    assert "has no effect" not in err
    assert read_json(run_copy.splits_json) == content | {"root": str(photos)}
    code, out, err = command("evaluate", "--bundle", run_copy.export_dir, FEW)
    assert code == 0, err
    again = shutil.copytree(photos, tmp_path / "again")
    code, out, err = command(
        "train",
        f"run_dir={run_copy.output_dir}",
        f"data.root={again}",
        "pipeline.phases=[phase2]",
        "phase2.n_resamples=100",
    )
    assert code == 0, err
    assert "unchanged" in out
    assert run_copy.phase1_checkpoint.stat().st_mtime_ns == before


def test_a_move_of_the_data_resumes_after_an_interruption_at_any_write(finished_run, monkeypatch, tmp_path):
    """Each write of the move is the last one of a killed process; the next command ends as if it were not."""
    root = read_json(ArtifactSchema(finished_run).splits_json)["root"]
    photos = shutil.copytree(root, tmp_path / "photos")
    writes = []

    def content(run):
        return {path.relative_to(run): path.read_bytes() for path in run.rglob("*.json")}

    def moved(name, last=None, *settings):
        run = shutil.copytree(finished_run, tmp_path / name)
        writes.clear()

        def interruptible(write):
            def record(*arguments):
                if len(writes) == last:
                    raise KeyboardInterrupt
                writes.append(arguments[0])
                write(*arguments)

            return record

        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            for writer in ("write_json_atomic", "write_text_atomic"):
                patch.setattr(moved_data, writer, interruptible(getattr(moved_data, writer)))
            schema = ArtifactSchema(run)
            recorded = recorded_settings(schema, DataConfig)
            moved_data.adopt_data_root(schema, recorded, str(photos), Console())
        config = compose_config([f"run_dir={run}", "pipeline.phases=[phase2]", *settings])
        assert resolve_run_config(config, console=Console()).data.root == str(photos)
        return content(run)

    expected = moved("complete")
    assert content(finished_run) != expected
    assert len(writes) > 5
    for last in range(len(writes)):
        assert moved(f"again_{last}", last, f"data.root={photos}") == expected
        if last > 0:
            assert moved(f"without_{last}", last) == expected


def test_a_bundle_without_its_run_and_hashes_prints_that_overlap_was_not_checked(run_copy, command, tmp_path):
    content = read_json(run_copy.splits_json)
    alone = shutil.copytree(run_copy.export_dir, tmp_path / "alone" / "export")
    (alone / "seen_images.bin").unlink()
    edit_bundle_json(alone, lambda bundle: bundle["files"].pop("seen_images.bin"))
    code, out, err = command("evaluate", "--bundle", alone, FEW, "--data", content["root"])
    assert code == 0, err
    assert "could not be checked" in out
