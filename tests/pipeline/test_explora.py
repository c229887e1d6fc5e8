import csv
import json
import shutil
import time

import pytest
import torch
from PIL import Image

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import LeakageError
from streetvision.contracts.progress import Silent
from streetvision.contracts.split_contracts import Split, check_may_open
from streetvision.data.splitting.splits_json import partition_from_json
from streetvision.io.atomic import read_json, sha256_file
from streetvision.io.tensors import load_into, load_state
from streetvision.models.backbone import build_backbone
from streetvision.models.network import state_digest
from streetvision.pipeline.steps import train_explora
from streetvision.pipeline.steps.train_explora import warn_if_neighbours_got_worse, warn_if_swav_collapsed
from streetvision.training.ssl.collapse_monitor import CollapseMonitor
from tests.conftest import TINY_ADAPTATION, TINY_MODEL
from tests.torchrun import torchrun

SHORT = [
    *TINY_MODEL,
    *TINY_ADAPTATION,
    "phase4a.num_epochs=1",
    "phase4a.mixed_precision.enabled=false",
    "phase4a.gate=off",
]
ORDER = "pipeline.phases=[phase4a_explora,phase1,phase2,phase5,phase6]"


@pytest.fixture(scope="module")
def adapted(scenes, tmp_path_factory):
    """A run that adapts first, with unlabeled images; some of them are copies of images in other splits."""
    from streetvision.cli.app import main

    root, further = tmp_path_factory.mktemp("runs") / "adapted", tmp_path_factory.mktemp("further")
    with pytest.raises(SystemExit):
        main(["train", f"data.root={scenes}", f"run_dir={root}", *SHORT, "pipeline.phases=[data]"])
    schema = ArtifactSchema(root)
    partition = partition_from_json(read_json(schema.splits_json), schema.splits_json)
    for split in Split:
        shutil.copy(scenes / partition.rows(split)[0].path, further / f"{split.value}.jpg")
    for seed in range(8):
        picture = torch.randint(0, 255, (3, 72, 96), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(further / f"new_{seed}.jpg")
    with pytest.raises(SystemExit) as stop:
        main(["train", f"data.root={scenes}", f"run_dir={root}", *SHORT, ORDER, f"data.unlabeled=[{further}]"])
    assert stop.value.code in (None, 0, 3)
    return schema


def manifest(schema, phase):
    return json.loads(schema.manifest(phase).read_text())


def test_phase1_starts_from_the_adapted_backbone_and_names_it(adapted):
    recorded = manifest(adapted, "phase1")
    digest = sha256_file(adapted.explora_checkpoint)
    assert recorded["metrics"]["adapted_backbone_sha256"] == digest
    assert recorded["inputs"]["phase4a_explora/explora_checkpoint.pth"]["sha256"] == digest
    assert "adapted backbone" in recorded["summary"]
    shipped = {
        k.removeprefix("backbone."): v for k, v in load_state(adapted.phase1_checkpoint).items() if "backbone." in k
    }
    merged = load_state(adapted.explora_checkpoint)
    assert shipped.keys() == merged.keys()
    assert all(torch.equal(shipped[name], merged[name]) for name in merged)  # phase 1 was frozen


def test_the_checkpoint_loads_with_strict_keys_and_differs_from_the_initial_weights(adapted):
    backbone = build_backbone(read_json(adapted.explora_config_json))
    before = state_digest(backbone)
    load_into(backbone, load_state(adapted.explora_checkpoint), source="it")
    assert state_digest(backbone) != before
    assert all("lora_" in name for name in load_state(adapted.explora_lora))
    assert manifest(adapted, "phase4a_explora")["metrics"]["merge_error"] < 1e-4


def test_images_of_other_splits_are_left_out_of_the_unlabeled(adapted):
    unlabeled = read_json(adapted.unlabeled_json)
    names = {row["path"].rpartition("/")[2] for row in unlabeled["rows"]}
    assert names == {"train.jpg", *(f"new_{seed}.jpg" for seed in range(8))}
    assert {path.rpartition("/")[2] for path in unlabeled["excluded"]} == {
        "val_select.jpg",
        "val_calib.jpg",
        "val_test.jpg",
    }
    assert "images" in manifest(adapted, "phase4a_explora")["summary"]
    assert "phase4a_explora/manifest.json" not in manifest(adapted, "phase4a_explora")["inputs"]
    assert "unlabeled.json" in manifest(adapted, "phase4a_explora")["inputs"]


def test_every_epoch_is_in_the_metrics_file_and_the_picture(adapted):
    rows = list(csv.DictReader(adapted.explora_metrics_csv.open()))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert {"train_loss", "select_loss", "alignment", "uniformity", "effective_rank", "knn_mcc"} <= rows[0].keys()
    assert adapted.explora_curve_plot.read_bytes().startswith(b"\x89PNG")


def test_the_knn_probe_has_its_size_and_a_seed_its_weights(scenes, tmp_path, command):
    few, many = runs = ArtifactSchema(tmp_path / "few"), ArtifactSchema(tmp_path / "many")
    line = ["train", f"data.root={scenes}", *SHORT, "pipeline.phases=[phase4a_explora]"]
    for schema, size in ((few, ["phase4a.knn_probe_size=5"]), (many, [])):
        assert command(*line, f"run_dir={schema.output_dir}", *size)[0] == 0
    first_rows = [next(csv.DictReader(schema.explora_metrics_csv.open())) for schema in runs]
    assert first_rows[0]["knn_mcc"] != first_rows[1]["knn_mcc"]
    assert sha256_file(few.explora_checkpoint) == sha256_file(many.explora_checkpoint)


class Recorder(Silent):
    def __init__(self):
        self.warnings = []

    def warn(self, message):
        self.warnings.append(message)


@pytest.mark.parametrize(("after", "warned"), [(0.9, False), (0.86, False), (0.84, True), (float("nan"), False)])
def test_a_worse_knn_mcc_gives_a_warning(after, warned):
    recorder = Recorder()
    warn_if_neighbours_got_worse(0.9, after, recorder)
    assert bool(recorder.warnings) is warned


@pytest.mark.parametrize(("loss", "warned"), [(4.158, True), (4.3, True), (4.105, False)])
def test_a_collapse_of_swav_gives_a_warning(loss, warned):
    recorder = Recorder()
    warn_if_swav_collapsed(loss, 64, recorder)
    assert ["lower phase4a.epsilon" in message for message in recorder.warnings] == [True] * warned


def test_a_collapsed_run_gives_a_warning(scenes, tmp_path, command):
    overrides = ["phase4a.method=swav", "phase4a.epsilon=5", "pipeline.phases=[phase4a_explora]"]
    code, out, err = command("train", f"data.root={scenes}", f"run_dir={tmp_path / 'run'}", *SHORT, *overrides)
    assert code == 0, err
    assert "SwAV collapsed" in (out + err).replace("\n", " ")


def test_adaptation_reads_cached_images(scenes, tmp_path, command):
    schema = ArtifactSchema(tmp_path / "run")
    small = ["loader.cache_image_size=48", "pipeline.phases=[phase4a_explora]"]
    assert command("train", f"data.root={scenes}", f"run_dir={schema.output_dir}", *SHORT, *small)[0] == 0
    trained = [row for row in read_json(schema.splits_json)["rows"] if row["split"] == "train"]
    assert len(list(schema.image_cache_dir.rglob("*.jpg"))) == len({row["sha256"] for row in trained})


def test_the_speed_of_a_resumed_run_is_that_of_its_own_part(scenes, tmp_path, command, monkeypatch):
    settings = [f"data.root={scenes}", f"run_dir={tmp_path / 'run'}", *SHORT, "phase4a.checkpoint_every_n_steps=1"]
    arguments = ["train", *settings, "pipeline.phases=[phase4a_explora]"]
    train, parts = train_explora._train, []

    def interrupt(self, trainer, *_):
        if trainer.global_step == 3:
            raise KeyboardInterrupt

    def timed(*args):
        started = time.perf_counter()
        result = train(*args)
        parts.append((time.perf_counter() - started, len(args[2])))
        return result

    with monkeypatch.context() as patch:
        patch.setattr(CollapseMonitor, "on_train_batch_end", interrupt)
        assert command(*arguments)[0] == 130
    monkeypatch.setattr(train_explora, "_train", timed)
    code, out, err = command(*arguments)
    assert code == 0, out + err
    assert "resumed from step 2" in out
    ((seconds, rows),) = parts
    rate = manifest(ArtifactSchema(tmp_path / "run"), "phase4a_explora")["metrics"]["images_per_second"]
    assert rate * seconds == pytest.approx(rows - 2 * 16, abs=8)


def test_the_same_command_again_finds_nothing_to_do(adapted, scenes, command):
    further = read_json(adapted.unlabeled_json)["rows"][0]["path"].rpartition("/")[0]
    line = [
        "train",
        f"data.root={scenes}",
        f"run_dir={adapted.output_dir}",
        *SHORT,
        ORDER,
        f"data.unlabeled=[{further}]",
    ]
    _, out, _ = command(*line)
    assert out.count("(unchanged)") == 6, out


def test_another_run_starts_from_the_configured_checkpoint(adapted, scenes, tmp_path, command):
    run = ArtifactSchema(tmp_path / "run")
    line = ["train", f"data.root={scenes}", f"run_dir={run.output_dir}", *SHORT, "pipeline.phases=[phase1]"]
    checkpoint = f"model.explora_checkpoint_path={adapted.explora_checkpoint}"
    command(*line, checkpoint)
    assert torch.equal(torch.load(run.val_calib_logits), torch.load(adapted.val_calib_logits))
    command(*line)
    assert not torch.equal(torch.load(run.val_calib_logits), torch.load(adapted.val_calib_logits))
    code, _, err = command(*line, checkpoint, "model.init_from_explora=false")
    assert (code, "explora_checkpoint_path" in err) == (2, True)
    code, _, err = command(*line, checkpoint, "model.backbone.width=64")
    assert code == 2
    assert "explora_checkpoint.pth does not fit" in err.replace("'", "")
    code, _, err = command(*line, "model.init_from_explora=true")
    assert code == 2
    assert "phase1 needs phase4a_explora/explora_checkpoint.pth of phase4a_explora" in err


def test_phase_1_alone_starts_from_the_adaptation_of_the_run(adapted, scenes, tmp_path, command):
    run = ArtifactSchema(shutil.copytree(adapted.output_dir, tmp_path / "run"))
    line = ["train", f"run_dir={run.output_dir}", *SHORT, "pipeline.phases=[phase1]"]
    before = sha256_file(run.phase1_checkpoint)
    code, out, err = command(*line)
    assert code == 0, err
    assert "adapted backbone of this run" in out
    assert str(run.explora_checkpoint) in out
    assert sha256_file(run.phase1_checkpoint) == before
    code, out, err = command(*line, "model.init_from_explora=false")
    assert code == 0, err
    assert sha256_file(run.phase1_checkpoint) != before
    assert str(run.explora_checkpoint) not in out


def test_phase_1_trains_again_after_another_adaptation(adapted, scenes, tmp_path, command):
    run = ArtifactSchema(shutil.copytree(adapted.output_dir, tmp_path / "run"))
    line = ["train", f"run_dir={run.output_dir}", *SHORT]
    before, adaptation = sha256_file(run.phase1_checkpoint), sha256_file(run.explora_checkpoint)
    code, _, err = command(*line, "pipeline.phases=[phase4a_explora]", "phase4a.seed=9")
    assert code == 0, err
    assert sha256_file(run.explora_checkpoint) != adaptation  # another seed draws other weights
    code, _, err = command(*line, "pipeline.phases=[phase2]")  # its scores are of the earlier adaptation
    assert (code, "explora_checkpoint.pth" in err) == (2, True)
    code, _, err = command(*line, "pipeline.phases=[phase1]")
    assert code == 0, err
    assert sha256_file(run.phase1_checkpoint) != before


def test_moved_data_is_not_adapted_to_again(adapted, scenes, tmp_path, command):
    run = ArtifactSchema(shutil.copytree(adapted.output_dir, tmp_path / "run"))
    moved = shutil.copytree(scenes, tmp_path / "moved")
    (moved / "index.csv").touch()
    settings = [setting for setting in SHORT if not setting.startswith("data.")]
    line = ["train", f"run_dir={run.output_dir}", *settings, "pipeline.phases=[phase4a_explora]"]
    code, out, err = command(*line, f"data.root={moved}")
    assert code == 0, err
    assert any(printed.startswith("phase4a") and "(unchanged)" in printed for printed in out.splitlines()), out


@pytest.mark.parametrize("split", [Split.VAL_CALIB, Split.VAL_TEST])
def test_phase4a_may_not_open_calibration_and_test_splits(split):
    with pytest.raises(LeakageError, match=split.value):
        check_may_open("phase4a_explora", split)


def test_unlabeled_images_may_have_groups(scenes, tmp_path, command):
    """Images of a group in another split are left out, and the others keep their group."""
    table, further = tmp_path / "more.csv", tmp_path / "more"
    further.mkdir()
    schema = ArtifactSchema(tmp_path / "run")
    line = ["train", f"data.root={scenes}", f"run_dir={schema.output_dir}", *SHORT, "pipeline.phases=[data]"]
    assert command(*line)[0] == 0
    test_row = partition_from_json(read_json(schema.splits_json), schema.splits_json).rows(Split.VAL_TEST)[0]
    for name in "abce":
        picture = torch.randint(0, 255, (3, 72, 96), generator=torch.Generator().manual_seed(ord(name))).byte()
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(further / f"{name}.jpg")
    listed = csv.DictReader((scenes / "index.csv").open())
    group = next(row["group"] for row in listed if row["path"] == test_row.path)
    shutil.copy(scenes / test_row.path, further / "d.jpg")
    linked = "more/d.jpg,ride 7\nmore/e.jpg,ride 7\n"  # e shares a ride with a copy of a VAL_TEST image
    table.write_text(f"path,group\nmore/a.jpg,ride 1\nmore/b.jpg,{group}\n{further / 'c.jpg'},\n{linked}")
    assert command(*line, f"data.unlabeled=[{table}]")[0] == 0
    unlabeled = read_json(schema.unlabeled_json)
    assert [(row["path"], row["group"]) for row in unlabeled["rows"]] == [
        (str(further / "a.jpg"), "ride 1"),
        (str(further / "c.jpg"), None),
    ]
    assert sorted(unlabeled["excluded"]) == [str(further / f"{name}.jpg") for name in "bde"]


def test_images_of_one_group_are_not_negatives(scenes, tmp_path, command):
    """The same rows in the same splits, with their groups and without: the fewer negatives, the lower the loss."""
    with (scenes / "index.csv").open() as file:
        rows = list(csv.DictReader(file))
    table, run, losses = tmp_path / "list.csv", ArtifactSchema(tmp_path / "run"), []
    for together in (True, False):
        with table.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label", "group"])
            for number, row in enumerate(rows):
                ride = f"{row['label']} {number * 5 // len(rows)}"
                writer.writerow([scenes / row["path"], row["label"], ride if together else ""])
        line = ["train", f"data.root={table}", f"run_dir={run.output_dir}", *SHORT, "pipeline.phases=[phase4a_explora]"]
        assert command(*line)[0] == 0
        losses.append(float(next(csv.DictReader(run.explora_metrics_csv.open()))["select_loss"]))
    assert losses[0] < losses[1] - 0.1


def test_positives_from_groups_need_groups(scenes, tmp_path, command):
    """Every scene is a group of its own, so there is no other image for the second view."""
    line = ["train", f"data.root={scenes}", f"run_dir={tmp_path / 'run'}", *SHORT, "pipeline.phases=[phase4a_explora]"]
    code, _, err = command(*line, "phase4a.views.positives=same_group")
    assert code == 2
    assert "no two images share a group" in " ".join(err.split())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "is not a folder and not a CSV"),
        ("list.txt", "path\na.jpg\n", "is not a folder and not a CSV"),
        ("empty.csv", "path\n", "has no images"),
        ("odd.csv", "file\na.jpg\n", "no column 'path'"),
        ("hole.csv", "path,group\n,ride\n", "hole.csv line 2: the file name is empty"),
    ],
)
def test_an_invalid_list_of_unlabeled_images(name, content, message, scenes, tmp_path, command):
    if content is not None:
        (tmp_path / name).write_text(content)
    line = ["train", f"data.root={scenes}", f"run_dir={tmp_path / 'run'}", *SHORT, "pipeline.phases=[data]"]
    code, _, err = command(*line, f"data.unlabeled=[{tmp_path / name}]")
    assert code == 2
    assert message in " ".join(err.split())


def test_an_empty_folder_of_unlabeled_images_is_an_error(scenes, tmp_path, command):
    line = ["train", f"data.root={scenes}", f"run_dir={tmp_path / 'run'}", *SHORT, "pipeline.phases=[data]"]
    code, _, err = command(*line, f"data.unlabeled=[{tmp_path}]")
    assert (code, "has no images" in err) == (2, True)


@pytest.mark.long
def test_two_processes_adapt_like_one(scenes, tmp_path, command):
    """The same joint batch and negatives: the same losses, and nearly the same weights."""
    single, double = ArtifactSchema(tmp_path / "one"), ArtifactSchema(tmp_path / "two")
    even = "data.fractions={train: 0.5, val_select: 0.2, val_calib: 0.2, val_test: 0.1}"
    line = ["train", f"data.root={scenes}", *SHORT, "pipeline.phases=[phase4a_explora]", even]
    assert command(*line, f"run_dir={single.output_dir}")[0] == 0
    arguments = [*line, f"run_dir={double.output_dir}", "hardware.devices=2"]
    code, out = torchrun(arguments, tmp_path / "log")
    assert code == 0, out
    rows = [list(csv.DictReader(schema.explora_metrics_csv.open())) for schema in (single, double)]
    for alone, shared in zip(*rows, strict=True):
        for name in ("select_loss", "alignment", "uniformity", "effective_rank"):
            assert float(shared[name]) == pytest.approx(float(alone[name]), rel=2e-3), name
    assert float(rows[1][1]["train_loss"]) == pytest.approx(float(rows[0][1]["train_loss"]), rel=1e-3)
    alone, shared = (load_state(schema.explora_checkpoint) for schema in (single, double))
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-2, atol=1e-4, msg=name)
