"""Claims about cross_fit and cross-validate, on draws from a model whose true error rates are known.

Groups of four images share an effect on the features and on the label, as frames of one place do.
"""

from hashlib import sha256

import numpy as np
import pytest

from streetvision.calibration.crossfit import CalibrationSet
from streetvision.calibration.scrc import fit_scrc
from streetvision.contracts.split_contracts import NO_FOLD, Index, Row, Split
from streetvision.data.splitting.partition import assign_folds, make_folds, make_partition
from streetvision.eval.counts import confusion_counts
from streetvision.eval.cross_validated import cross_validated_intervals
from streetvision.eval.metrics import all_metrics, fnr
from streetvision.eval.predictions import Predictions
from streetvision.eval.resampling import Resampling
from streetvision.pipeline.config import compose_config
from streetvision.pipeline.probe_chain import fit_probe_chain
from streetvision.pipeline.probe_head import two_logits
from streetvision.training.probe import FeatureBank, Representation

WIDTH, GROUP = 12, 4
CONFIG = compose_config(["training=frozen", "phase5.method=platt"])


class Reader:
    """The features of one block."""

    pooling, layers, representations = "cls", 1, (Representation("cls", 1),)


def draw(n, seed):
    """Features (n, WIDTH) and an index of n rows with groups of four."""
    generator = np.random.default_rng(seed)
    effect = np.repeat(generator.normal(size=(n // GROUP, WIDTH)), GROUP, axis=0)
    features = (effect + generator.normal(size=(n, WIDTH))) / np.sqrt(2)
    margin = 1.5 * features[:, 0] + features[:, 1] - 0.8
    labels = (generator.random(n) < 1 / (1 + np.exp(-margin))).astype(int)
    rows = tuple(
        Row(f"{i}", int(label), sha256(b"%d" % i).hexdigest(), 8, 8, 0.5, group=f"g{i // GROUP}")
        for i, label in enumerate(labels)
    )
    return features.astype(np.float32), Index("/", ("a", "b"), rows)


def labels_of(index):
    return np.array([row.label for row in index.rows])


POPULATION, POPULATION_INDEX = draw(40_000, seed=10**6)
POPULATION_BANK = FeatureBank(POPULATION, "cls", 1)


def population_metrics(chain):
    p, decisions = chain.predict(POPULATION_BANK)
    return all_metrics(labels_of(POPULATION_INDEX), p, decisions)


def fold_chain(features, index, test=(), seed=0):
    existing = {index.rows[i].sha256: NO_FOLD for i in test}
    partition = make_folds(
        index, fractions=CONFIG.data.fractions, folds=5, seed=seed, existing_folds=existing, keep_test=bool(existing)
    )
    return partition, fit_probe_chain(features, Reader, partition, CONFIG)


@pytest.mark.parametrize(("n", "draws"), [(200, 1000), (500, 1000)])
def test_the_out_of_fold_miss_rate_is_unbiased_and_intervals_cover(n, draws):
    estimates, truths = [], []
    covered = {"mcc": [], "roc_auc": [], "fnr": [], "nll": []}
    for seed in range(draws):
        features, index = draw(n, seed)
        partition, chain = fold_chain(features, index)
        rows = partition.rows(Split.TRAIN)
        calibration = CalibrationSet(
            two_logits(chain.probe.out_of_fold).numpy(),
            np.array([row.label for row in rows]),
            [row.group for row in rows],
        )
        fitted = fit_scrc(calibration, CONFIG.phase5, fold_models=5)
        estimates.append(float(fnr(confusion_counts(calibration.labels, fitted.predictions.decisions))))
        truth = population_metrics(chain)
        truths.append(truth["fnr"])
        for name, hits in covered.items():
            hits.append(fitted.intervals[name].low <= truth[name] <= fitted.intervals[name].high)
    bias = np.mean(np.array(estimates) - truths)
    print(f"n={n}: out-of-fold FNR {np.mean(estimates):.4f}, true FNR {np.mean(truths):.4f}, bias {bias:+.4f}")  # noqa: T201 (the figure of the claim)
    assert abs(bias) < 0.01
    for name, hits in covered.items():
        print(f"n={n}: the out-of-fold interval of {name} covers in {np.mean(hits):.3f} of {draws} draws")  # noqa: T201 (the figure of the claim)
        assert 0.89 <= np.mean(hits) <= 0.98


@pytest.mark.parametrize(("n", "draws"), [(200, 1000), (500, 1000)])
def test_thresholds_vary_less_than_those_of_four_splits(n, draws):
    thresholds = {"cross_fit": [], "split": []}
    for seed in range(draws):
        features, index = draw(n, seed)
        thresholds["cross_fit"].append(fold_chain(features, index)[1].threshold)
        split = make_partition(index, fractions=CONFIG.data.fractions, seed=0)
        thresholds["split"].append(fit_probe_chain(features, Reader, split, CONFIG).threshold)
    ratio = np.var(thresholds["cross_fit"]) / np.var(thresholds["split"])
    print(f"n={n}: variance of the threshold, cross_fit over split: {ratio:.3f}")  # noqa: T201 (the figure of the claim)
    assert ratio < 0.7


@pytest.mark.parametrize(("n", "draws"), [(200, 1000), (500, 1000)])
def test_the_interval_of_cross_validation_covers_the_mean_of_its_models(n, draws):
    covered = {"mcc": [], "roc_auc": [], "fnr": [], "nll": []}
    for seed in range(draws):
        features, index = draw(n, seed)
        labels, groups = labels_of(index), [row.group for row in index.rows]
        repeats, truths = [], []
        for repeat in range(2):
            outer = np.array(assign_folds(index.rows, 5, seed=repeat))
            p, decisions = np.zeros(n), np.zeros(n, dtype=bool)
            for fold in range(5):
                test = np.flatnonzero(outer == fold)
                _, chain = fold_chain(features, index, test.tolist())
                p[test], decisions[test] = chain.predict(FeatureBank(features[test], "cls", 1))
                truths.append(population_metrics(chain))
            repeats.append(Predictions(labels, p, groups, decisions=decisions))
        intervals = cross_validated_intervals(repeats, Resampling(400), folds=5)
        for name, hits in covered.items():
            hits.append(intervals[name].low <= np.mean([truth[name] for truth in truths]) <= intervals[name].high)
    for name, hits in covered.items():
        print(f"n={n}: the interval of {name} covers in {np.mean(hits):.3f} of {draws} draws")  # noqa: T201 (the figure of the claim)
        assert 0.92 <= np.mean(hits) <= 0.98
