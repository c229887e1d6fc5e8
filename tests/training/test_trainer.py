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
        FeatureBatches(*train, batch_size=config.batch_size, seed=config.seed, parts=config.micro_batches),
        FeatureBatches(*(select or blobs(100, seed=2)), batch_size=64),
        config=config,
        hardware=hardware,
        options=TrainerOptions(**{"progress": Silent()} | options),
        scales=scales,
    )
    return model, fitted


FP32 = MixedPrecisionConfig(enabled=False)
CONFIG = FrozenConfig(epochs=6, batch_size=32, learning_rate=0.05)


def test_it_learns_and_keeps_the_epoch_that_val_select_prefers():
    _, fitted = run(CONFIG)
    keys = [(row["val_select_mcc"], -row["val_select_nll"]) for row in fitted.history]
    assert len(keys) == 6
    assert fitted.best_epoch == 1 + keys.index(max(keys))
    assert fitted.best_row["val_select_mcc"] > 0.8


def test_the_figures_of_an_epoch_come_from_its_counts_not_from_batches():
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


def test_the_best_state_is_a_copy_that_later_epochs_do_not_touch():
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


def test_an_interrupt_is_passed_on():
    """Lightning would end the process without a word, and leave the signal deaf."""

    class Impatient(Silent):
        def track(self, items, *, total, label, note=None):
            yield from [0]
            raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(CONFIG, progress=Impatient())
    finally:
        signal.signal(signal.SIGINT, handler)


def test_the_bar_moves_once_for_every_step():
    class Recorder(Silent):
        def track(self, items, *, total, label, note=None):
            for item in items:
                seen.append((item, total, label))
                yield item

    seen = []
    run(CONFIG, progress=Recorder())
    steps = -(-200 // 32) * 6
    assert len(seen) == steps
    assert {(total, label) for _, total, label in seen} == {(steps, "train")}


def test_parts_of_a_batch_make_the_same_step():
    config = FullConfig(epochs=6, learning_rate=0.05, mixed_precision=FP32)
    whole, parts = (run(config.model_copy(update={"gradient_accumulation_steps": n}))[1] for n in (1, 4))
    for name, value in whole.last.items():
        torch.testing.assert_close(parts.last[name], value, rtol=1e-4, atol=1e-6)


def test_clipping_shortens_the_steps():
    free, clipped = (run(CONFIG.model_copy(update={"epochs": 1, "gradient_clip_norm": n}))[1] for n in (None, 1e-9))
    assert not torch.equal(free.last["weight"], clipped.last["weight"])


def test_patience_ends_training_after_epochs_without_a_better_mcc():
    _, fitted = run(FrozenConfig(epochs=30, batch_size=32, learning_rate=0.05, early_stopping_patience=2))
    assert len(fitted.history) == fitted.best_epoch + 2 < 30


def test_the_best_states_are_kept_in_order():
    _, fitted = run(CONFIG.model_copy(update={"save_top_k": 3}))
    keys = sorted(((row["val_select_mcc"], -row["val_select_nll"]) for row in fitted.history), reverse=True)
    assert [(one.mcc, -one.nll) for one in fitted.checkpoints] == keys[:3]
    assert not torch.equal(fitted.checkpoints[0].state["weight"], fitted.checkpoints[1].state["weight"])


def test_the_average_is_judged_beside_the_raw_weights_and_ships_when_it_wins():
    """At a wild rate the raw weights jump about, and their average does not."""
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


def test_a_model_that_answers_one_class_only_is_known_as_such():
    features, labels = blobs(100, seed=1)
    _, fitted = run(FrozenConfig(epochs=1, batch_size=32), select=(0 * features, labels))
    assert fitted.checkpoints[0].one_class_only
    assert fitted.checkpoints[0].mcc == 0.0
    assert not run(CONFIG)[1].checkpoints[0].one_class_only


class Interrupting(Silent):
    """Interrupts after so many steps."""

    def __init__(self, steps):
        self.steps = steps

    def track(self, items, *, total, label, note=None):
        for step, item in enumerate(items):
            if step == self.steps:
                raise KeyboardInterrupt
            yield item


def interrupted(config, *, steps, **settings):
    """A run that is interrupted after so many batches."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(config, progress=Interrupting(steps), **settings)
    finally:
        signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize("steps", [3, 5, 9, 13])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, steps, accumulate):
    """In the first epoch and later ones, in the middle of one and right behind its validation."""
    config = FullConfig(
        epochs=3,
        batch_size=48,
        gradient_accumulation_steps=accumulate,
        checkpoint_every_n_steps=2,
        ema_decay=0.9,
        mixed_precision=FP32,
    )

    def net():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 2))

    _, whole = run(config, model=net())
    place = {"checkpoint": tmp_path / "c.ckpt", "resume_key": "k"}
    interrupted(config, steps=steps * accumulate, model=net(), **place)
    _, resumed = run(config, model=net(), **place)
    assert resumed.resumed_step is not None
    assert len(resumed.history) == 3
    for one, other in zip(whole.history, resumed.history, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    for name, value in whole.last.items():
        assert torch.equal(value, resumed.last[name])
    for name, value in whole.best.items():
        assert torch.equal(value, resumed.best[name])
    _, other = run(config, model=net(), **{**place, "resume_key": "another"})
    assert other.resumed_step is None


def test_sums_of_a_checkpoint_lie_on_the_cpu_and_those_of_the_epoch_where_the_model_is():
    """On a GPU; a meta device stands for it here."""
    module = SupervisedModule(torch.nn.Linear(4, 2), FrozenConfig(), loss=torch.nn.CrossEntropyLoss())
    module.restore_totals({"train": torch.ones(2)})
    module.add_total("train", torch.ones(2, device="meta"))
    assert module._totals["train"].device.type == "meta"


@pytest.mark.parametrize("rank", [0, 1])
def test_sums_of_all_processes_are_recorded_once_and_taken_up_once(rank, monkeypatch):
    module = SupervisedModule(torch.nn.Linear(4, 2), FrozenConfig(), loss=torch.nn.CrossEntropyLoss())
    module.add_total("train", torch.tensor([3.0, 2.0]))
    strategy = SimpleNamespace(reduce=lambda value, *, reduce_op: {"sum": value.mul_(2)}[reduce_op])
    monkeypatch.setattr(SupervisedModule, "trainer", SimpleNamespace(strategy=strategy))
    monkeypatch.setattr(SupervisedModule, "global_rank", rank)
    joint = module.global_totals()
    assert joint["train"].tolist() == [6.0, 4.0]
    assert module._totals["train"].tolist() == [3.0, 2.0]
    module.restore_totals(joint)
    restored = {name: value.tolist() for name, value in module._totals.items()}
    assert restored == ({"train": [6.0, 4.0]} if rank == 0 else {})


class Modes(torch.nn.Module):
    """Notes in which mode it is called while gradients are taken."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, inputs):
        if torch.is_grad_enabled():
            self.seen.append(self.training)
        return inputs


def test_what_learns_trains_and_what_does_not_stays_as_it_is_judged():
    """However the model came: a backbone is loaded in eval mode."""
    still, learning = torch.nn.BatchNorm1d(4), torch.nn.BatchNorm1d(4)
    still.requires_grad_(False)
    frozen = torch.nn.Sequential(Modes(), still)
    model = torch.nn.Sequential(frozen, Modes(), learning, torch.nn.Linear(4, 2)).eval()
    _, fitted = run(CONFIG, model=model)
    assert set(frozen[0].seen) == {False}
    assert set(model[1].seen) == {True}
    assert still.num_batches_tracked == 0
    assert learning.num_batches_tracked == 6 * 7
    assert fitted.last["2.running_mean"].abs().max() > 0


def test_a_damaged_checkpoint_is_left_aside(tmp_path):
    (tmp_path / "c.ckpt").write_bytes(b"nothing")
    _, fitted = run(CONFIG, checkpoint=tmp_path / "c.ckpt", resume_key="k")
    assert fitted.resumed_step is None


@pytest.mark.parametrize("change", [{"learning_rate": 0.02}, {"weight_decay": 0.5}, {"warmup_fraction": 0.6}], ids=str)
def test_scalars_of_the_optimizer_move_the_weights(change):
    plain, changed = (run(CONFIG.model_copy(update=c))[1] for c in ({}, change))
    assert not torch.equal(plain.last["weight"], changed.last["weight"])


def test_factors_of_the_rate_reach_the_layers():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _, fitted = run(CONFIG, model=model, scales={"0.weight": 0.0, "0.bias": 0.0})
    moved = {name for name, value in fitted.last.items() if not torch.equal(value, before[name])}
    assert moved == {"1.weight", "1.bias"}


def test_what_lightning_does_is_what_was_asked(monkeypatch):
    from streetvision.training import trainer

    class Stop(Exception):  # noqa: N818
        pass

    def record(**settings):
        given.update(settings)
        raise Stop

    given = {}
    monkeypatch.setattr(trainer, "Trainer", record)
    hardware = HardwareConfig(devices=2, num_nodes=4, strategy="ddp")
    for enabled, word in ((False, "32-true"), (True, "bf16-mixed")):
        config = FullConfig(
            batch_size=64, gradient_accumulation_steps=2, mixed_precision=MixedPrecisionConfig(enabled=enabled)
        )
        with pytest.raises(Stop):
            run(config, hardware=hardware)
        assert [plugin.precision for plugin in given["plugins"]] == [word]
    assert (given["devices"], given["num_nodes"], given["strategy"]) == (2, 4, "ddp")
    assert given["accumulate_grad_batches"] == 2
