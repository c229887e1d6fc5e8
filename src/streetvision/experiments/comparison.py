"""From what two arms answered on the same images to their paired differences, with intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np

from streetvision.contracts.errors import ConfigError
from streetvision.eval.bootstrap import Difference, Pairing, mean_difference
from streetvision.eval.metrics import all_metrics
from streetvision.eval.over_splits import corrected_t_interval
from streetvision.eval.resampling import Predictions, Resampling
from streetvision.experiments.ablation_table import Pair, Quantity
from streetvision.io.predictions import Answers
from streetvision.subnet.reward import Challenges, standing

STREAMS, STEPS = 200, 400
"""Of challenges, by which the reward of an arm is simulated; both arms of a split meet the same."""
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)


@dataclass(frozen=True)
class Shown:
    """What one arm showed on VAL_TEST of one split."""

    answers: Answers
    rest: int
    """Images of the split's other roles."""
    cost: float | None
    """Seconds from the images to the bundle; None where the run did not go through in one go."""


@dataclass(frozen=True)
class Row:
    """One quantity of one pair on one data set."""

    data: str
    pair: str
    quantity: Quantity
    splits: int
    """Splits on which both arms came through."""
    a: float | None = None
    """Mean over the splits."""
    b: float | None = None
    difference: float | None = None
    """The mean of b - a over the splits; of cost the geometric mean of b / a. None where nothing was measured."""
    over_splits: tuple[float, float] | None = None
    """Interval for other splits and other first weights; None where the splits show no spread."""
    over_images: tuple[float, float] | None = None
    """Interval for these very models on other images; MCC and ECE only."""
    expected: str | None = None
    """What the specification says."""
    missing: tuple[str, ...] = ()
    """Why splits are left out."""

    @property
    def shown(self) -> bool:
        """Whether the interval over splits leaves out that there is no difference."""
        nothing = 1.0 if self.quantity == "cost" else 0.0
        return self.over_splits is not None and not self.over_splits[0] <= nothing <= self.over_splits[1]


@dataclass(frozen=True)
class Comparison:
    """How pairs are compared."""

    comparisons: int
    """Pairs times data sets: every interval is widened so that all of one quantity hold at once (Bonferroni)."""
    level: float = 0.95
    """Chance that all of one quantity hold."""
    n_resamples: int = 1000
    seed: int = 0

    @property
    def each(self) -> float:
        """Level of one interval."""
        return 1 - (1 - self.level) / self.comparisons


@dataclass(frozen=True)
class Met:
    """A pair on a data set: what both arms showed, split by split."""

    data: str
    pair: Pair
    splits: Mapping[int, tuple[Shown, Shown]]
    """By seed; those on which both arms came through."""
    missing: tuple[str, ...] = ()


def compare(met: Met, how: Comparison) -> list[Row]:
    """A row for each quantity.

    Raises:
        ConfigError: the arms of a split were judged on different images.
    """
    _check_same_images(met)
    both = list(met.splits.values())
    images = _over_images(both, how) if both else {}
    return [_row(quantity, met, how, images.get(quantity)) for quantity in QUANTITIES]


def figures(shown: Shown) -> dict[Quantity, float]:
    """The quantities of one arm on one split; nan where one is not defined."""
    answers = shown.answers
    found = all_metrics(answers.labels, answers.probabilities, answers.decisions)
    cost = math.nan if shown.cost is None else shown.cost
    return {"mcc": found["mcc"], "ece": found["ece"], "reward": _reward(answers), "cost": cost}


def _reward(answers: Answers) -> float:
    """The mean score of streams of challenges over the images as they are, with nothing done to them on the way."""
    if len(np.unique(answers.labels)) < 2:
        return math.nan
    challenges = Challenges.draw(answers.labels, streams=STREAMS, steps=STEPS, seed=0)
    return standing(challenges.rewards(answers.decisions)).mean


def _row(quantity: Quantity, met: Met, how: Comparison, images: Difference | None) -> Row:
    values = np.array([[figures(shown)[quantity] for shown in both] for both in met.splits.values()]).reshape(-1, 2)
    values = values[np.isfinite(values).all(axis=1)]
    nothing = Row(met.data, met.pair.name, quantity, 0, expected=met.pair.expected.get(quantity), missing=met.missing)
    if not len(values):
        return nothing
    ratios = quantity == "cost"
    differences = np.diff(np.log(values) if ratios else values, axis=1).ravel()
    judged = [len(a.answers.labels) / a.rest for a, _ in met.splits.values()]
    found = corrected_t_interval(differences.tolist(), tested=float(np.mean(judged)), level=how.each)
    scale = math.exp if ratios else float
    return replace(
        nothing,
        splits=len(values),
        a=float(values[:, 0].mean()),
        b=float(values[:, 1].mean()),
        difference=scale(found.estimate),
        over_splits=None if math.isnan(found.low) else (scale(found.low), scale(found.high)),
        over_images=None if images is None or math.isnan(images.low) else (images.low, images.high),
    )


def _over_images(both: Sequence[tuple[Shown, Shown]], how: Comparison) -> dict[str, Difference]:
    """Resamples of the images of all splits, whole groups together; an image of several VAL_TESTs is one image."""
    pairings = [Pairing(a.answers.labels, _judged(b.answers), _judged(a.answers)) for a, b in both]
    groups = [
        ("group", group) if group is not None else ("image", path)
        for a, _ in both
        for group, path in zip(a.answers.groups, a.answers.paths, strict=True)
    ]
    return mean_difference(pairings, Resampling(groups, how.n_resamples, how.each, how.seed))


def _judged(answers: Answers) -> Predictions:
    return Predictions(answers.probabilities, answers.decisions)


def _check_same_images(met: Met) -> None:
    for seed, (a, b) in met.splits.items():
        if a.answers.paths != b.answers.paths or not np.array_equal(a.answers.labels, b.answers.labels):
            raise ConfigError(
                f"the arms of pair {met.pair.name!r} were judged on different images of {met.data!r} with seed {seed}",
                "settings of data.* belong to the data set, not to an arm",
            )
