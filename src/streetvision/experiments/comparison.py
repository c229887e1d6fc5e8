"""Paired differences between two arms on the same images, with intervals over splits and over images."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np

from streetvision.eval.bootstrap import Difference, PairedPredictions, mean_difference
from streetvision.eval.intervals import corrected_t_interval
from streetvision.eval.metrics import all_metrics
from streetvision.eval.predictions import Predictions
from streetvision.eval.resampling import Resampling
from streetvision.experiments.ablation_table import Pair, Quantity
from streetvision.io.predictions import PolicyPredictions
from streetvision.subnet.reward import Challenges, final_score

STREAMS, STEPS = 200, 400
"""Challenge streams that the reward of an arm is simulated on; both arms of a split get the same streams."""
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)


@dataclass(frozen=True)
class ArmResult:
    """What one arm predicted on VAL_TEST of one split."""

    predictions: PolicyPredictions
    images_outside_val_test: int
    cost: float | None
    """Seconds from the images to the bundle; None when the run was interrupted."""


@dataclass(frozen=True)
class PairResults:
    """The results of both arms of a pair on one data set, split by split."""

    data: str
    pair: Pair
    splits: Mapping[int, tuple[ArmResult, ArmResult]]
    """Seed -> (baseline, variant); only splits on which both arms finished."""
    missing: tuple[str, ...] = ()
    """Why splits are left out."""


@dataclass(frozen=True)
class Row:
    """One quantity of one pair on one data set."""

    data: str
    pair: str
    quantity: Quantity
    splits: int
    """Splits on which both arms finished."""
    baseline: float | None = None
    """Mean over the splits."""
    variant: float | None = None
    difference: float | None = None
    """Mean over the splits of variant minus baseline; for cost the geometric mean of variant / baseline.
    None when nothing was measured."""
    split_interval: tuple[float, float] | None = None
    """Interval for other splits and other initial weights; None when the splits show no spread."""
    image_interval: tuple[float, float] | None = None
    """Interval for these same models on other images; MCC and ECE only."""
    expected: str | None = None
    """The gain that the specification expects."""
    missing: tuple[str, ...] = ()
    """Why splits are left out."""

    @property
    def significant(self) -> bool:
        """Whether the interval over splits excludes "no difference"."""
        no_difference = 1.0 if self.quantity == "cost" else 0.0
        return self.split_interval is not None and not self.split_interval[0] <= no_difference <= self.split_interval[1]


@dataclass(frozen=True)
class ComparisonSettings:
    """How pairs are compared."""

    comparisons: int
    """Pairs times data sets: every interval is widened so that all of one quantity hold at once (Bonferroni)."""
    confidence_level: float = 0.95
    """Probability that all intervals of one quantity hold."""
    n_resamples: int = 1000
    seed: int = 0

    @property
    def level_of_each(self) -> float:
        """Confidence level of one interval."""
        return 1 - (1 - self.confidence_level) / self.comparisons


def compare(results: PairResults, settings: ComparisonSettings) -> list[Row]:
    """A row for each quantity; splits on which the arms were evaluated on different images are left out."""
    splits, missing = {}, [*results.missing]
    for seed, (a, b) in results.splits.items():
        same_paths = a.predictions.paths == b.predictions.paths
        if same_paths and np.array_equal(a.predictions.labels, b.predictions.labels):
            splits[seed] = (a, b)
        else:
            missing.append(
                f"seed {seed}: the arms have different images in VAL_TEST; move settings of data.* from the arm to the "
                "data set"
            )
    results = replace(results, splits=splits, missing=tuple(missing))
    image_intervals = _image_intervals(results, settings) if splits else {}
    return [_row(quantity, results, settings, image_intervals.get(quantity)) for quantity in QUANTITIES]


def quantities(result: ArmResult) -> dict[Quantity, float]:
    """The quantities of one arm on one split; nan where one is undefined."""
    predictions, reward = result.predictions, math.nan
    metrics = all_metrics(predictions.labels, predictions.probabilities, predictions.decisions)
    if len(np.unique(predictions.labels)) == 2:
        # The mean score over streams of undistorted images.
        challenges = Challenges.draw(predictions.labels, streams=STREAMS, steps=STEPS, seed=0)
        reward = final_score(challenges.rewards(predictions.decisions)).mean
    cost = math.nan if result.cost is None else result.cost
    return {"mcc": metrics["mcc"], "ece": metrics["ece"], "reward": reward, "cost": cost}


def _row(quantity: Quantity, results: PairResults, settings: ComparisonSettings, on_images: Difference | None) -> Row:
    values = np.array([[quantities(arm)[quantity] for arm in arms] for arms in results.splits.values()]).reshape(-1, 2)
    values = values[np.isfinite(values).all(axis=1)]
    expected = results.pair.expected.get(quantity)
    row = Row(results.data, results.pair.name, quantity, 0, expected=expected, missing=results.missing)
    if not len(values):
        return row
    # Costs are compared as ratios, so their interval is made on logarithms.
    is_ratio = quantity == "cost"
    scale = math.exp if is_ratio else float
    differences = np.diff(np.log(values) if is_ratio else values, axis=1).ravel()
    tested = [len(a.predictions.labels) / a.images_outside_val_test for a, _ in results.splits.values()]
    interval = corrected_t_interval(differences.tolist(), tested=float(np.mean(tested)), level=settings.level_of_each)
    return replace(
        row,
        splits=len(values),
        baseline=float(values[:, 0].mean()),
        variant=float(values[:, 1].mean()),
        difference=scale(interval.estimate),
        split_interval=None if math.isnan(interval.low) else (scale(interval.low), scale(interval.high)),
        image_interval=None if on_images is None or math.isnan(on_images.low) else (on_images.low, on_images.high),
    )


def _image_intervals(results: PairResults, settings: ComparisonSettings) -> dict[str, Difference]:
    """Resample the images of all splits, whole groups together; an image in several VAL_TESTs is one image."""
    arms = [(a.predictions, b.predictions) for a, b in results.splits.values()]
    pairs = []
    for a, b in arms:
        groups = [
            ("group", group) if group is not None else ("image", path)
            for group, path in zip(a.groups, a.paths, strict=True)
        ]
        baseline, variant = (Predictions(a.labels, p.probabilities, groups, decisions=p.decisions) for p in (a, b))
        pairs.append(PairedPredictions(variant, baseline))
    return mean_difference(pairs, Resampling(settings.n_resamples, settings.level_of_each, settings.seed))
