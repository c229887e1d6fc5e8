"""reward: the expected subnet reward of the bundle, on VAL_TEST images distorted as the subnet's validator does."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product

import numpy as np
from torch import Tensor

from streetvision.bundle.format import BUNDLE_JSON
from streetvision.bundle.predictor import Predictor
from streetvision.contracts.phase import Context, Outcome
from streetvision.contracts.policies import Artifact
from streetvision.contracts.split_contracts import Split
from streetvision.data.config import LoaderConfig
from streetvision.data.decode import read_row
from streetvision.data.transforms.validator_distortions import PROFILES, distort
from streetvision.eval.counts import FloatArray
from streetvision.eval.thresholds import decide
from streetvision.io.atomic import sha256_file, write_json_atomic
from streetvision.models.network import seeded
from streetvision.pipeline.artifacts import open_bundle
from streetvision.pipeline.settings import RewardConfig
from streetvision.pipeline.test_access_log import record_test_access
from streetvision.subnet.reward import SUBNET_STATUS, Challenges, FinalScore, best_threshold, final_score

ALL = "all"
NO_SOURCE = "(none)"
THRESHOLDS = ("bundle", "balanced", "best")
"""Names of the thresholds that are compared."""
VARIANTS = [(profile, level) for profile, distortions in PROFILES.items() for level in distortions.levels]
"""The distortions of each image: (profile, level)."""
SEARCH_STREAMS, SEARCH_STEPS = 50, 400
"""Simulated streams, and challenges of each, for the search of the best threshold on VAL_CALIB."""
BATCH_SIZE = 16
"""At most, because images keep their full resolution until they are distorted."""


@dataclass(frozen=True)
class Scenario:
    """The challenges of one row of the report."""

    profile: str
    level: str = ALL
    source: str = ALL
    timeout_fraction: float = 0.0


@dataclass(frozen=True)
class DistortedPredictions:
    """Predictions of the bundle for N images in V distortions each."""

    labels: FloatArray
    """(N,)"""
    sources: list[str]
    """(N,): source of each image; empty if the index has none."""
    probabilities: FloatArray
    """(N, V), in the order of VARIANTS."""

    def select(self, scenario: Scenario) -> tuple[FloatArray, FloatArray]:
        """Labels and probabilities (M,) of the challenges of a scenario."""
        rows = np.array([scenario.source in (ALL, source) for source in self.sources])
        columns = [scenario.profile == profile and scenario.level in (ALL, str(level)) for profile, level in VARIANTS]
        return np.repeat(self.labels[rows], sum(columns)), self.probabilities[rows][:, columns].ravel()


class RewardRow(Artifact):
    """The score of a miner with this bundle in one scenario."""

    profile: str
    level: str
    """A level of the profile, or all of them with equal probability."""
    source: str
    """A source of the index, or all of them; empty for rows without one."""
    timeout_fraction: float
    """Share of challenges without a timely response."""
    n: int
    """Distorted images."""
    scores: dict[str, FinalScore]
    """Name of the threshold -> score."""


class RewardReport(Artifact):
    """reward_report.json."""

    subnet_status: str
    """What is known about the subnet."""
    test_access: int
    """Number of this access to VAL_TEST."""
    thresholds: dict[str, float]
    """bundle: its own; balanced: for balanced labels, which the miner folder uses."""
    best: dict[str, float]
    """Profile -> the threshold with the highest reward on VAL_CALIB."""
    rows: tuple[RewardRow, ...]
    notes: tuple[str, ...]
    """Scenarios that were left out, with the reason."""


def run(context: Context) -> Outcome:
    """Find the best threshold of each profile on VAL_CALIB, then simulate every scenario on VAL_TEST."""
    config, limits = context.settings(RewardConfig), context.settings(LoaderConfig).limits
    bundle = open_bundle(context, config.bundle)
    predictor = Predictor(bundle, limits=limits)
    best, notes = {}, []
    if context.n_folds > 0:
        notes.append("No best threshold, as data.protocol=cross_fit sets no VAL_CALIB aside.")
    else:
        calib = _predict_distorted(predictor, context, Split.VAL_CALIB)
    for profile in PROFILES if context.n_folds == 0 else ():
        labels, probabilities = calib.select(Scenario(profile))
        search = Challenges.draw(labels, streams=SEARCH_STREAMS, steps=SEARCH_STEPS, seed=config.seed)
        best[profile] = best_threshold(probabilities, search)
    fixed = {"bundle": predictor.threshold, "balanced": bundle.manifest.policy.balanced_threshold}

    access = record_test_access(context.schema.test_access_log_json, sha256_file(bundle.folder / BUNDLE_JSON))
    test = _predict_distorted(predictor, context, Split.VAL_TEST)
    rows = []
    for scenario in scenarios(test, config.timeout_fraction):
        labels, probabilities = test.select(scenario)
        if len(np.unique(labels)) < 2:
            notes.append(
                f"Left out, as it has one class only: {scenario.profile}, level {scenario.level}, "
                f"source {scenario.source!r}."
            )
            continue
        # All thresholds are compared on the same challenges.
        challenges = Challenges.draw(labels, streams=config.n_simulations, steps=config.steps, seed=config.seed)
        scores = {}
        searched = {"best": best[scenario.profile]} if best else {}
        for name, threshold in {**fixed, **searched}.items():
            decisions = decide(probabilities, threshold)
            scores[name] = final_score(challenges.rewards(decisions, timeout_fraction=scenario.timeout_fraction))
        rows.append(RewardRow(**asdict(scenario), n=len(labels), scores=scores))
    report = RewardReport(
        subnet_status=SUBNET_STATUS,
        test_access=access.number,
        thresholds=fixed,
        best=best,
        rows=tuple(rows),
        notes=tuple(notes),
    )
    write_json_atomic(context.schema.reward_report_json, report.model_dump(mode="json"))
    overall = [row for row in rows if row.level == row.source == ALL and not row.timeout_fraction]
    return Outcome(
        f"{len(test.labels)} images of VAL_TEST, access {access.number}",
        {f"{row.profile}_score": row.scores["bundle"].mean for row in overall},
    )


def _predict_distorted(predictor: Predictor, context: Context, split: Split) -> DistortedPredictions:
    """Predict every row of `split` in every distortion; the distortions are drawn from the seed."""
    rows = context.rows(split)

    def images() -> Iterator[Tensor]:
        for row in rows:
            image = read_row(context.data_root, row, limits=predictor.limits)
            for profile, level in VARIANTS:
                yield distort(image, level, profile)

    tracked = context.progress.track(images(), total=len(rows) * len(VARIANTS), label=split.value)
    batch_size = min(BATCH_SIZE, context.settings(LoaderConfig).batch_size)
    with seeded(context.settings(RewardConfig).seed):
        logits = np.concatenate(list(predictor.stream_logits(tracked, batch_size=batch_size)))
    probabilities = np.asarray(predictor.probabilities(logits), dtype=np.float64)
    labels = np.array([row.label for row in rows], dtype=np.float64)
    return DistortedPredictions(
        labels, [row.source or "" for row in rows], probabilities.reshape(len(rows), len(VARIANTS))
    )


def scenarios(predictions: DistortedPredictions, timeout_fraction: float) -> Iterator[Scenario]:
    """Yield the scenario of each row of the report. Sources and levels are split only where there are several."""
    names = sorted(set(predictions.sources))
    sources = [ALL, *names] if len(names) > 1 else [ALL]
    for profile, distortions in PROFILES.items():
        levels = [ALL, *map(str, distortions.levels)] if len(distortions.levels) > 1 else [ALL]
        for level, source in product(levels, sources):
            yield Scenario(profile, level, source)
        yield Scenario(profile, timeout_fraction=timeout_fraction)


def summary_lines(report: RewardReport) -> Iterator[str]:
    """Yield the report as lines for a terminal."""
    width = max(len("source"), *(len(row.source or NO_SOURCE) for row in report.rows)) + 2

    def columns(profile: str, level: str, source: str, late: str, n: str, *scores: str) -> str:
        return f"{profile:<9}{level:<7}{source:<{width}}{late:<6}{n:<18}{''.join(scores)}".rstrip()

    best = ", ".join(f"{profile} {threshold:.3f}" for profile, threshold in report.best.items())
    names = [name for name in THRESHOLDS if name != "best" or best]
    yield (
        "Expected score on VAL_TEST, mean [5th, 95th percentile] of the moving average; "
        f"access {report.test_access}. Thresholds:"
    )
    yield f"  bundle    {report.thresholds['bundle']:.3f}, of the bundle"
    yield f"  balanced  {report.thresholds['balanced']:.3f}, for balanced labels, as in the miner folder"
    if best:
        yield f"  best      {best}, highest reward on VAL_CALIB"
    yield ""
    yield columns("profile", "level", "source", "late", "distorted images", *(f"{name:<22}" for name in names))
    for row in report.rows:
        scores = [row.scores[name] for name in names]
        yield columns(
            row.profile,
            row.level,
            row.source or NO_SOURCE,
            f"{row.timeout_fraction:.0%}",
            str(row.n),
            *(f"{score.mean:.3f} [{score.p5:.3f}, {score.p95:.3f}]  " for score in scores),
        )
    yield from report.notes
