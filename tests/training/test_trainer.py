import signal

import pytest
import torch

from streetvision.contracts.errors import StreetVisionError
from streetvision.contracts.progress import Silent
from streetvision.data.datamodule import FeatureBatches
from streetvision.training.config import TrainingConfig
from streetvision.training.trainer import fit, seed_all


def blobs(n, *, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (n,), generator=generator)
    features = torch.randn(n, 4, generator=generator) + 2.0 * labels[:, None]
    return features, labels


def run(config, *, train=None, select=None, progress=None):
    seed_all(config.seed)
    model = torch.nn.Linear(4, 2)
    fitted = fit(
        model,
        FeatureBatches(*(train or blobs(200, seed=1)), batch_size=config.batch_size, seed=config.seed),
        FeatureBatches(*(select or blobs(100, seed=2)), batch_size=64),
        config=config,
        progress=progress or Silent(),
    )
    return model, fitted


CONFIG = TrainingConfig(epochs=6, batch_size=32, learning_rate=0.05)


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
    model, fitted = run(TrainingConfig(epochs=8, batch_size=32, learning_rate=0.5))
    assert all(torch.equal(fitted.last[k], v) for k, v in model.state_dict().items())
    assert fitted.best_epoch < 8
    assert not torch.equal(fitted.best["weight"], fitted.last["weight"])


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    first, again = (run(CONFIG)[1] for _ in range(2))
    assert all(torch.equal(first.last[k], again.last[k]) for k in first.last)
    other = run(CONFIG.model_copy(update={"seed": 1}))[1]
    assert not torch.equal(first.last["weight"], other.last["weight"])


def test_a_loss_that_is_not_finite_stops_the_run():
    features, labels = blobs(64, seed=1)
    features[5] = float("nan")
    with pytest.raises(StreetVisionError, match=r"loss is nan at epoch 1, batch \d"):
        run(CONFIG, train=(features, labels))


def test_an_interrupt_is_passed_on():
    """Lightning would end the process without a word, and leave the signal deaf."""

    class Impatient(Silent):
        def track(self, items, *, total, label):
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
        def track(self, items, *, total, label):
            for item in items:
                seen.append((item, total, label))
                yield item

    seen = []
    run(CONFIG, progress=Recorder())
    steps = -(-200 // 32) * 6
    assert len(seen) == steps
    assert {(total, label) for _, total, label in seen} == {(steps, "train")}
