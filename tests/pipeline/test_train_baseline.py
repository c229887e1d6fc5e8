"""Phase 1 in its modes, on tiny data, through the command line."""

import csv
import itertools
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from streetvision.cli.app import main
from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.split_contracts import every_nth
from streetvision.data.decode import read_image
from streetvision.io.atomic import read_json
from streetvision.io.tensors import load_into, load_state
from streetvision.io.validators import validate_json
from streetvision.models.config import ClassifierDescription
from streetvision.models.module import build_classifier
from streetvision.pipeline import budget, interpolation
from streetvision.pipeline.interpolation import SHARES, interpolate
from streetvision.training.config import AutoConfig
from tests.conftest import TINY_MODEL, logged_metric

SHORT = [*TINY_MODEL, "pipeline.phases=[phase1]"]
FULL = ["training=full", "training.epochs=1"]
MLP = "model.head.kind=mlp"  # a head that is trained with gradients


@pytest.fixture
def phase1(scenes, tmp_path, command):
    """Run phase 1 with some settings; returns (exit code, output, paths)."""

    def run(*settings, name="run"):
        schema = ArtifactSchema(tmp_path / name)
        code, out, err = command("train", f"data.root={scenes}", f"run_dir={schema.output_dir}", *SHORT, *settings)
        return code, out + err, schema

    return run


@pytest.fixture(scope="module")
def frozen(scenes, tmp_path_factory):
    """The run folder of phase 1 with the probe only, for tests that do not change it."""
    schema = ArtifactSchema(tmp_path_factory.mktemp("frozen") / "run")
    with pytest.raises(SystemExit) as stop:
        main(["train", f"data.root={scenes}", f"run_dir={schema.output_dir}", *SHORT])
    assert not stop.value.code
    return schema


def figures(schema):
    return read_json(schema.manifest("phase1"))["metrics"]


def test_adapters_are_merged_before_saving_and_the_error_is_recorded(phase1, frozen):
    code, out, schema = phase1("training=peft", "training.adapter.rank=2", "training.save_top_k=2", "training.epochs=2")
    assert code == 0, out
    assert "peft, epoch" in out
    assert 0 <= figures(schema)["merge_error"] <= 1e-4
    best, second = (
        torch.load(path, weights_only=True) for path in (schema.phase1_checkpoint, schema.phase1_ranked_checkpoint(2))
    )
    assert not any("lora" in name for name in best)
    assert best.keys() == second.keys()
    assert "phase1/model_best_2.pth" in read_json(schema.manifest("phase1"))["outputs"]
    assert torch.load(frozen.phase1_checkpoint, weights_only=True).keys() == best.keys()
    assert figures(frozen)["parameters_trained"] < figures(schema)["parameters_trained"]


def test_a_model_that_predicts_one_class_only_ends_with_exit_code_3(phase1):
    code, out, schema = phase1(MLP, "training.epochs=1", "training.learning_rate=1e-9")
    assert figures(schema)["one_class_only"] == 1
    assert code == 3
    assert "predicts one class only" in out


def test_the_optimized_training_says_what_a_cpu_leaves_out(phase1):
    code, out, _ = phase1("training=optimization", "training.epochs=1")
    assert code in (0, 3), out
    assert "training.mixed_precision.enabled=" in out
    assert ("hardware.compile=false: no GPU" in out) == (not torch.cuda.is_available())


def test_a_budget_that_is_too_short_ships_the_probe(phase1, frozen):
    code, out, schema = phase1("training=auto", "training.budget_minutes=0")
    assert code == 0, out
    assert "training=frozen" in out
    assert "training.budget_minutes=0" in out
    assert "logistic regression" in out
    assert not schema.finetuning_gate_json.exists()
    assert schema.phase1_checkpoint.read_bytes() == frozen.phase1_checkpoint.read_bytes()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("affordable", "printed"), [(1.2, "training.epochs=1:"), (0.9, "training=frozen:")])
def test_a_budget_allows_as_many_epochs_as_fit(phase1, frozen, monkeypatch, affordable, printed, workers):
    """Without worker processes, images are read in the same process, which takes time too."""

    class Clock:
        """Reading a batch and a training step take a minute each."""

        perf_counter = staticmethod(itertools.count(step=60).__next__)

    monkeypatch.setattr(budget, "time", Clock)
    splits = Counter(row["split"] for row in read_json(frozen.splits_json)["rows"])
    train, select = splits["train"], splits["val_select"]
    batch = len(every_nth(range(train), 32))
    trained, evaluated = (1, 1) if workers else (2, 1 + budget.EVALUATION_SHARE)
    minutes = (train * trained + len(SHARES) * select * evaluated) / batch
    settings = ["training.epochs=2", "training.batch_size=32", f"training.budget_minutes={affordable * minutes}"]
    code, out, _ = phase1("training=auto", f"loader.num_workers={workers}", *settings)
    assert code == 0, out
    assert printed in out


def test_with_a_short_budget_the_fine_tuned_model_reads_fewer_patches_and_is_compared_with_the_probe(
    phase1, monkeypatch
):
    _, _, frozen = phase1("model.image_size=auto", name="frozen")

    def affordable(classifier, _context, config, _work):
        """A budget that allows one epoch, and three of 8 patches."""
        height, width = classifier.backbone.spec.image_size
        return 3 if height * width <= 8 * classifier.backbone.spec.patch_size**2 else 1, config.budget_minutes

    monkeypatch.setattr(budget, "affordable_epochs", affordable)
    monkeypatch.setattr(budget, "FEWER_TOKENS", 8)
    settings = ["training=auto", "training.epochs=6", "training.batch_size=16", "model.image_size=auto"]
    sizes = {}
    for gate in ("off", "on"):
        phases = "pipeline.phases=[phase1,phase2,phase5,phase6]"
        code, out, schema = phase1(*settings, f"training.gate={gate}", phases, name=gate)
        assert code in (0, 3), out
        assert "training.epochs=3: fine-tuning" in out
        height, width = read_json(schema.model_config_json)["image_size"]
        sizes[gate] = height * width
        for path in (schema.phase1_checkpoint, schema.phase1_last_checkpoint):
            classifier = build_classifier(validate_json(schema.model_config_json, ClassifierDescription))
            load_into(classifier, load_state(path), source=str(path))
        monkeypatch.setattr(interpolation, "LEVEL_OF_FINE_TUNING", 1 - 1e-12)  # the gate keeps the probe
        assert read_json(schema.probe_json) == read_json(frozen.probe_json)  # of the probe, not of the smaller input
    assert sizes["off"] <= 8 * 16**2 < sizes["on"]
    assert figures(schema)["finetuned_share"] == 0


def test_work_outside_the_epochs_is_a_part_of_the_budget(monkeypatch):
    seconds = budget.ImageTime(trained=0.6, evaluated=0.3)
    monkeypatch.setattr(budget, "_stored_image_time", lambda *_: seconds)
    monkeypatch.setattr(budget, "requested_epochs", lambda *_: 9)
    config = AutoConfig(budget_minutes=10)
    epochs = [
        budget.affordable_epochs(None, None, config, budget.Work(trained, validated=100, evaluated=evaluated))
        for trained, evaluated in ((150, 0), (150, 1000), (50, 1900), (50, 3000))
    ]
    assert epochs == [(5, pytest.approx(10)), (2, pytest.approx(9)), (0, pytest.approx(10.5)), (0, pytest.approx(16))]


def test_a_run_that_resumes_trains_as_many_epochs_although_the_machine_is_slower(phase1, monkeypatch):
    printed = []
    for seconds in (60, 6000):
        clock = SimpleNamespace(perf_counter=itertools.count(step=seconds).__next__)
        monkeypatch.setattr(budget, "time", clock)
        code, out, schema = phase1("training=auto", "training.epochs=1", "training.budget_minutes=1000")
        assert code == 0, out
        printed += [line for line in out.splitlines() if "training.epochs=" in line]
        schema.phase1_checkpoint.unlink()
    assert printed[0] == printed[1]


@pytest.mark.parametrize("mode", ["auto", "full"])
def test_a_harmful_fine_tuning_is_left_out(phase1, frozen, mode):
    settings = [f"training={mode}", "training.epochs=2", "training.learning_rate=0.05", "training.batch_size=16"]
    code, out, schema = phase1(*settings)
    assert code == 0, out
    assert "fine-tuning is left out" in out
    gate = read_json(schema.finetuning_gate_json)
    assert (gate["share"], gate["ships"], gate["better"]) == (0.0, False, False)
    assert gate["candidate_nll"] > 0.69  # that of a constant probability
    assert schema.phase1_checkpoint.read_bytes() == frozen.phase1_checkpoint.read_bytes()
    assert schema.phase1_last_checkpoint.read_bytes() != frozen.phase1_last_checkpoint.read_bytes()


def test_with_one_group_in_val_select_the_probe_ships(phase1, scenes, tmp_path):
    """For example one ride with both classes: there is nothing to compare by groups, so training must not be lost."""
    rows = list(csv.DictReader((scenes / "index.csv").open()))
    index = tmp_path / "index.csv"
    with index.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "group"])
        writer.writerows([scenes / row["path"], row["label"], f"ride {number % 8}"] for number, row in enumerate(rows))
    settings = ["training=full", "training.epochs=1", f"data.root={index}", "data.grouping.by=[column]"]
    fractions = "data.fractions={train: 0.625, val_select: 0.125, val_calib: 0.125, val_test: 0.125}"
    code, out, schema = phase1(*settings, fractions)
    assert code == 0, out
    assert "there is one group only" in out
    assert read_json(schema.finetuning_gate_json)["ships"] is False
    assert figures(schema)["finetuned_share"] == 0


def test_the_probe_records_its_choices_and_ships_the_same_probabilities_as_its_head(frozen):
    probe = read_json(frozen.probe_json)
    assert {candidate["pooling"] for candidate in probe["candidates"]} == {"cls", "cls_mean"}
    description = read_json(frozen.model_config_json)
    assert (description["pooling"], description["layers"]) == (probe["pooling"], probe["layers"])
    assert figures(frozen)["val_select_nll"] == pytest.approx(_select_nll(frozen), abs=1e-5)
    assert logged_metric(frozen.phase1_logs_dir, "val_select_nll") == pytest.approx([figures(frozen)["val_select_nll"]])


def _select_nll(schema):
    """NLL of the saved classifier on VAL_SELECT, from the image files."""
    splits = read_json(schema.splits_json)
    rows = [row for row in splits["rows"] if row["split"] == "val_select"]
    classifier = build_classifier(validate_json(schema.model_config_json, ClassifierDescription))
    load_into(classifier, load_state(schema.phase1_checkpoint), source="checkpoint")
    images = torch.stack([classifier.prepare(read_image(Path(splits["root"]) / row["path"])) for row in rows])
    with torch.inference_mode():
        logits = classifier(images)
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor([row["label"] for row in rows])))


def test_weights_are_interpolated_by_their_share():
    start, tuned = {"w": torch.zeros(2), "n": torch.tensor(3)}, {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(5)}
    assert interpolate(tuned, start, 0.25)["w"].tolist() == [0.25, 0.5]
    assert interpolate(tuned, start, 0.25)["n"] == 5
    assert interpolate(tuned, start, 0.0)["w"].tolist() == [0.0, 0.0]
    assert interpolate(tuned, start, 1.0)["w"].tolist() == [1.0, 2.0]


def test_an_interrupted_phase_resumes(phase1, monkeypatch):
    from streetvision.training.callbacks import BestCheckpoints

    settings = [
        "training=last_n",
        "training.epochs=1",
        "training.last_blocks=1",
        "training.checkpoint_every_n_steps=1",
        "training.batch_size=16",
    ]
    code, out, uninterrupted = phase1(*settings, name="whole")
    assert code == 0, out

    def interrupt(self, trainer, *_):
        if trainer.global_step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BestCheckpoints, "on_train_batch_end", interrupt)
        code, out, schema = phase1(*settings)
    assert code == 130
    assert schema.phase1_training_checkpoint.is_file()
    code, out, schema = phase1(*settings)
    assert code == 0, out
    assert "resumed from step 3" in out
    assert schema.phase1_checkpoint.read_bytes() == uninterrupted.phase1_checkpoint.read_bytes()
    assert not schema.phase1_training_checkpoint.exists()


def test_metrics_hold_one_row_an_epoch(phase1):
    _, _, schema = phase1(MLP, "training.epochs=3")
    rows = list(csv.DictReader(schema.phase1_metrics_csv.open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert json.dumps(figures(schema)["train_loss"])


def test_the_gate_writes_its_decision_and_a_harmful_policy_is_left_out(phase1, monkeypatch):
    from streetvision.pipeline import augmentation_gate

    full = ["training=full", "training.epochs=1", "training.batch_size=32"]
    gate = ["augmentation.gate_epochs=1", "augmentation.gate_runs=1", "augmentation.color_jitter=0.5"]
    code, out, schema = phase1(*full, *gate, "augmentation.gate=only_report")
    assert code in (0, 3), out
    accepted = read_json(schema.augmentation_gate_json)
    assert accepted["ships"]
    assert accepted["bound"] > accepted["difference"]
    assert accepted["details"]["policy"]["color_jitter"] == 0.5
    assert "phase1/augmentation_gate.json" in read_json(schema.manifest("phase1"))["outputs"]

    runs = []

    def biased(context, start, training, run, policy):
        runs.append(run)
        labels = [row.label for row in context.rows(augmentation_gate.Split.VAL_SELECT)]
        wrong = policy != augmentation_gate.PLAIN
        # The policy halves the differences between the classes for every second image.
        margins = [(2.0 if label else -2.0) * (-1 if wrong and at % 2 else 1) for at, label in enumerate(labels)]
        return torch.tensor([[0.0, margin] for margin in margins])

    monkeypatch.setattr(augmentation_gate, "_logits", biased)
    code, out, rejected = phase1(*full, *gate, "augmentation.gate=on", name="rejected")
    assert not read_json(rejected.augmentation_gate_json)["ships"]
    assert "training continues without augmentation" in out
    assert runs == [0, 0]
    plain = ["augmentation.crop_scale=[1,1]", "augmentation.flip_probability=0", "augmentation.color_jitter=0"]
    without = phase1(*full, *plain, name="plain")[2]
    assert rejected.phase1_last_checkpoint.read_bytes() == without.phase1_last_checkpoint.read_bytes()
    assert schema.phase1_last_checkpoint.read_bytes() != without.phase1_last_checkpoint.read_bytes()


def test_mixed_batches_of_several_sizes_train(phase1):
    code, out, schema = phase1(
        "training=full",
        "training.epochs=1",
        "augmentation.mixup_alpha=0.2",
        "augmentation.cutmix_alpha=1",
        "augmentation.scales=[0.5,1]",
    )
    assert code in (0, 3), out
    assert figures(schema)["train_loss"] > 0


def test_layers_far_from_the_head_learn_more_slowly(phase1):
    uniform, slower = (phase1(*FULL, f"training.layer_decay={decay}", name=f"decay_{decay}")[2] for decay in (1.0, 0.5))
    assert uniform.phase1_last_checkpoint.read_bytes() != slower.phase1_last_checkpoint.read_bytes()


def test_training_reads_cached_images(phase1):
    code, out, cached = phase1("training=full", "training.epochs=1", "loader.cache_image_size=48")
    assert code in (0, 3), out
    copies = list(cached.image_cache_dir.rglob("*.jpg"))
    trained = [row for row in read_json(cached.splits_json)["rows"] if row["split"] == "train"]
    assert len(copies) == len({row["sha256"] for row in trained})
    plain = phase1("training=full", "training.epochs=1", name="plain")[2]
    assert cached.phase1_last_checkpoint.read_bytes() != plain.phase1_last_checkpoint.read_bytes()
