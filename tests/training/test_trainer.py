import signal
from types import SimpleNamespace

import pytest
import torch

from streetvision.contracts.errors import StreetVisionError
from streetvision.contracts.progress import Silent
from streetvision.data.datamodule import FeatureBatches
from streetvision.models.config import HardwareConfig
from streetvision.training.config import FrozenConfig, FullConfig, MixedPrecisionConfig
from streetvision.training.supervised import SupervisedModule
from streetvision.training.trainer import TrainerOptions, fit, seed_all


def blobs(n, *, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (n,), generator=generator)
    features = torch.randn(n, 4, generator=generator) + 2.0 * labels[:, None]
    return features, labels


def run(config, *, train=None, select=None, model=None, scales=None, hardware=None, **options):
    seed_all(config.seed)
    model = model or torch.nn.Linear(4, 2)
    train = train or blobs(200, seed=1)
    fitted = fit(
        model,
        FeatureBatches(
            *train, batch_size=config.effective_batch_size, seed=config.seed, micro_batches=config.micro_batches
        ),
        FeatureBatches(*(select or blobs(100, seed=2)), batch_size=64),
        config=config,
        hardware=hardware,
        options=TrainerOptions(**{"progress": Silent()} | options),
        scales=scales,
    )
    return model, fitted


FP32 = MixedPrecisionConfig(enabled=False)
CONFIG = FrozenConfig(epochs=6, batch_size=32, learning_rate=0.05)


def test_it_learns_and_val_select_selects_the_epoch():
    _, fitted = run(CONFIG)
    keys = [(row["val_select_mcc"], -row["val_select_nll"]) for row in fitted.history]
    assert len(keys) == 6
    assert fitted.best_epoch == 1 + keys.index(max(keys))
    assert fitted.best_row["val_select_mcc"] > 0.8


def test_metrics_of_an_epoch_come_from_its_counts_and_not_from_batches():
    features, labels = blobs(100, seed=2)
    model, fitted = run(CONFIG, select=(features, labels))
    with torch.no_grad():
        logits = model(features)
    decisions = logits.argmax(1)
    tp, tn = ((decisions == c) & (labels == c) for c in (1, 0))
    tp, tn = tp.sum().item(), tn.sum().item()
    fp, fn = (labels == 0).sum().item() - tn, (labels == 1).sum().item() - tp
    expected = (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    assert fitted.history[-1]["val_select_mcc"] == pytest.approx(expected, abs=1e-12)
    nll = torch.nn.functional.cross_entropy(logits, labels).item()
    assert fitted.history[-1]["val_select_nll"] == pytest.approx(nll, rel=1e-5)


def test_the_best_state_is_a_copy_that_later_epochs_do_not_change():
    model, fitted = run(FrozenConfig(epochs=8, batch_size=32, learning_rate=0.5))
    assert all(torch.equal(fitted.last[k], v) for k, v in model.state_dict().items())
    assert fitted.best_epoch < 8
    assert not torch.equal(fitted.best["weight"], fitted.last["weight"])


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    first, again = (run(CONFIG)[1] for _ in range(2))
    assert all(torch.equal(first.last[k], again.last[k]) for k in first.last)
    other = run(CONFIG.model_copy(update={"seed": 1}))[1]
    assert not torch.equal(first.last["weight"], other.last["weight"])


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_files():
    features, labels = blobs(64, seed=1)
    features[5] = float("nan")
    with pytest.raises(StreetVisionError, match=r"loss is nan at epoch 1, batch \d: .*") as caught:
        run(CONFIG.model_copy(update={"batch_size": 4}), train=(features, labels))
    assert "row 5" in caught.value.message.split(": ")[1].split(", ")
    assert "training.learning_rate" in caught.value.hint


def test_an_interrupt_raises_keyboard_interrupt():
    """Lightning alone would exit the process silently, and leave its own signal handler."""

    class Interrupter(Silent):
        def track(self, items, *, total, label, note=None):
            yield from [0]
            raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(CONFIG, progress=Interrupter())
    finally:
        signal.signal(signal.SIGINT, handler)


def test_the_bar_advances_once_per_step():
    class Recorder(Silent):
        def track(self, items, *, total, label, note=None):
            for item in items:
                ticks.append((total, label))
                yield item

    ticks = []
    run(CONFIG, progress=Recorder())
    steps = -(-200 // 32) * 6
    assert len(ticks) == steps
    assert set(ticks) == {(steps, "train")}


def test_micro_batches_give_the_same_step():
    config = FullConfig(epochs=6, learning_rate=0.05, mixed_precision=FP32)
    full, parts = (run(config.model_copy(update={"micro_batch_size": n}))[1] for n in (None, 8))
    for name, value in full.last.items():
        torch.testing.assert_close(parts.last[name], value, rtol=1e-4, atol=1e-6)


def test_accumulation_enlarges_the_batch():
    """Four batches of eight rows make the step of one batch of 32 rows."""
    config = FullConfig(epochs=6, learning_rate=0.05, mixed_precision=FP32)
    full, small, accumulated = (
        run(config.model_copy(update={"batch_size": rows, "gradient_accumulation_steps": steps}))[1]
        for rows, steps in ((32, 1), (8, 1), (8, 4))
    )
    for name, value in full.last.items():
        torch.testing.assert_close(accumulated.last[name], value, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(small.last["weight"], full.last["weight"], atol=1e-3)


def test_gradient_clipping_changes_the_steps():
    free, clipped = (run(CONFIG.model_copy(update={"epochs": 1, "gradient_clip_norm": n}))[1] for n in (None, 1e-9))
    assert not torch.equal(free.last["weight"], clipped.last["weight"])


def test_patience_ends_training_without_a_better_mcc():
    _, fitted = run(FrozenConfig(epochs=30, batch_size=32, learning_rate=0.05, early_stopping_patience=2))
    assert len(fitted.history) == fitted.best_epoch + 2 < 30


def test_the_best_checkpoints_are_kept_in_order():
    _, fitted = run(CONFIG.model_copy(update={"save_top_k": 3}))
    keys = sorted(((row["val_select_mcc"], -row["val_select_nll"]) for row in fitted.history), reverse=True)
    assert [(checkpoint.mcc, -checkpoint.nll) for checkpoint in fitted.checkpoints] == keys[:3]
    assert not torch.equal(fitted.checkpoints[0].state["weight"], fitted.checkpoints[1].state["weight"])


def test_averaged_weights_compete_with_raw_weights():
    """At a very high learning rate the raw weights oscillate, and their average does not."""
    config = FrozenConfig(epochs=4, batch_size=8, learning_rate=3.0, warmup_fraction=0, ema_decay=0.98)
    select = blobs(300, seed=2)
    model, fitted = run(config, select=select)
    best = fitted.checkpoints[0]
    row = fitted.best_row
    assert best.weights == "ema"
    assert (row["ema_val_select_mcc"], -row["ema_val_select_nll"]) > (row["val_select_mcc"], -row["val_select_nll"])
    model.load_state_dict(best.state)
    nll = torch.nn.functional.cross_entropy(model(select[0]), select[1]).item()
    assert nll == pytest.approx(best.nll, rel=1e-5)


def test_a_model_that_predicts_one_class_only_is_detected():
    features, labels = blobs(100, seed=1)
    _, fitted = run(FrozenConfig(epochs=1, batch_size=32), select=(0 * features, labels))
    assert fitted.checkpoints[0].one_class_only
    assert fitted.checkpoints[0].mcc == 0.0
    assert not run(CONFIG)[1].checkpoints[0].one_class_only


class Interrupting(Silent):
    """Interrupts after `steps` batches."""

    def __init__(self, steps):
        self.steps = steps

    def track(self, items, *, total, label, note=None):
        for step, item in enumerate(items):
            if step == self.steps:
                raise KeyboardInterrupt
            yield item


def interrupted(config, *, steps, **settings):
    """A run that is interrupted after `steps` batches."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(config, progress=Interrupting(steps), **settings)
    finally:
        signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize("steps", [3, 5, 9, 13])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, steps, accumulate):
    """In the first and in later epochs, within an epoch and right after its validation."""
    config = FullConfig(
        epochs=3,
        batch_size=48,
        micro_batch_size=48 // accumulate,
        checkpoint_every_n_steps=2,
        ema_decay=0.9,
        mixed_precision=FP32,
    )

    def net():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 2))

    _, expected = run(config, model=net())
    options = {"checkpoint": tmp_path / "c.ckpt", "resume_key": "k"}
    interrupted(config, steps=steps * accumulate, model=net(), **options)
    _, resumed = run(config, model=net(), **options)
    assert resumed.resumed_step is not None
    assert len(resumed.history) == 3
    for expected_row, row in zip(expected.history, resumed.history, strict=True):
        assert {**row, "seconds": 0} == {**expected_row, "seconds": 0}
    for name, value in expected.last.items():
        assert torch.equal(value, resumed.last[name])
    for name, value in expected.best.items():
        assert torch.equal(value, resumed.best[name])
    _, other = run(config, model=net(), **{**options, "resume_key": "another"})
    assert other.resumed_step is None


def test_restored_totals_move_to_the_device_of_the_model():
    """From the CPU to a GPU, which the meta device stands for here."""
    module = SupervisedModule(torch.nn.Linear(4, 2), FrozenConfig(), loss=torch.nn.CrossEntropyLoss())
    module.restore_totals({"train": torch.ones(2)})
    module.add_total("train", torch.ones(2, device="meta"))
    assert module._totals["train"].device.type == "meta"


@pytest.mark.parametrize("rank", [0, 1])
def test_totals_of_all_processes_are_recorded_once_and_restored_once(rank, monkeypatch):
    module = SupervisedModule(torch.nn.Linear(4, 2), FrozenConfig(), loss=torch.nn.CrossEntropyLoss())
    module.add_total("train", torch.tensor([3.0, 2.0]))
    strategy = SimpleNamespace(reduce=lambda value, *, reduce_op: {"sum": value.mul_(2)}[reduce_op])
    monkeypatch.setattr(SupervisedModule, "trainer", SimpleNamespace(strategy=strategy))
    monkeypatch.setattr(SupervisedModule, "global_rank", rank)
    totals = module.global_totals()
    assert totals["train"].tolist() == [6.0, 4.0]
    assert module._totals["train"].tolist() == [3.0, 2.0]
    module.restore_totals(totals)
    restored = {name: value.tolist() for name, value in module._totals.items()}
    assert restored == ({"train": [6.0, 4.0]} if rank == 0 else {})


class ModeRecorder(torch.nn.Module):
    """Records its mode in every call with gradients."""

    def __init__(self):
        super().__init__()
        self.modes = []

    def forward(self, inputs):
        if torch.is_grad_enabled():
            self.modes.append(self.training)
        return inputs


def test_trainable_parts_are_in_train_mode_and_frozen_parts_in_eval_mode():
    """Also if the model is in eval mode before, as a loaded backbone is."""
    fixed, trained = torch.nn.BatchNorm1d(4), torch.nn.BatchNorm1d(4)
    fixed.requires_grad_(False)
    frozen = torch.nn.Sequential(ModeRecorder(), fixed)
    model = torch.nn.Sequential(frozen, ModeRecorder(), trained, torch.nn.Linear(4, 2)).eval()
    _, fitted = run(CONFIG, model=model)
    assert set(frozen[0].modes) == {False}
    assert set(model[1].modes) == {True}
    assert fixed.num_batches_tracked == 0
    assert trained.num_batches_tracked == 6 * 7
    assert fitted.last["2.running_mean"].abs().max() > 0


def test_a_corrupt_checkpoint_is_ignored(tmp_path):
    (tmp_path / "c.ckpt").write_bytes(b"nothing")
    _, fitted = run(CONFIG, checkpoint=tmp_path / "c.ckpt", resume_key="k")
    assert fitted.resumed_step is None


@pytest.mark.parametrize("change", [{"learning_rate": 0.02}, {"weight_decay": 0.5}, {"warmup_fraction": 0.6}], ids=str)
def test_settings_of_the_optimizer_change_the_weights(change):
    plain, changed = (run(CONFIG.model_copy(update=c))[1] for c in ({}, change))
    assert not torch.equal(plain.last["weight"], changed.last["weight"])


def test_factors_of_the_learning_rate_apply_to_their_layers():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _, fitted = run(CONFIG, model=model, scales={"0.weight": 0.0, "0.bias": 0.0})
    moved = {name for name, value in fitted.last.items() if not torch.equal(value, before[name])}
    assert moved == {"1.weight", "1.bias"}


def test_the_trainer_gets_the_configured_settings(monkeypatch):
    from streetvision.training import trainer

    class Stop(Exception):  # noqa: N818
        pass

    def record(**settings):
        arguments.update(settings)
        raise Stop

    arguments = {}
    monkeypatch.setattr(trainer, "Trainer", record)
    hardware = HardwareConfig(devices=2, num_nodes=4, strategy="ddp")
    for enabled, expected in ((False, "32-true"), (True, "bf16-mixed")):
        config = FullConfig(
            batch_size=64, gradient_accumulation_steps=2, mixed_precision=MixedPrecisionConfig(enabled=enabled)
        )
        with pytest.raises(Stop):
            run(config, hardware=hardware)
        assert [plugin.precision for plugin in arguments["plugins"]] == [expected]
    assert (arguments["devices"], arguments["num_nodes"], arguments["strategy"]) == (2, 4, "ddp")
    assert arguments["accumulate_grad_batches"] == 2
