"""reward: what the subnet's scoring would make of the bundle, on VAL_TEST images sent as its validator sent them."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from streetvision.bundle.format import BUNDLE_JSON
from streetvision.bundle.predictor import Predictor
from streetvision.contracts.phase import Context, Outcome
from streetvision.contracts.policies import Artifact
from streetvision.contracts.split_contracts import Row, Split
from streetvision.data.config import LoaderConfig
from streetvision.data.decode import read_image
from streetvision.data.transforms.validator_distortions import PROFILES, distort
from streetvision.eval.counts import FloatArray
from streetvision.eval.thresholds import decide
from streetvision.io.atomic import sha256_file, write_json_atomic
from streetvision.models.network import seeded
from streetvision.pipeline.settings import RewardConfig
from streetvision.pipeline.steps.evaluate_model import own_bundle
from streetvision.pipeline.test_access_log import record_test_access
from streetvision.subnet.reward import SUBNET_STATUS, Challenges, FinalScore, best_threshold, final_score

ALL = "all"
CUTS = ("bundle", "balanced", "best")
"""Thresholds that are compared, by name."""
VARIANTS = [(profile, level) for profile, described in PROFILES.items() for level in described.levels]
"""Each way an image is sent."""
SEARCHED, SEARCHED_STEPS = 50, 400
"""Streams over VAL_CALIB, and challenges of each, that the best threshold is found on."""
IMAGES_AT_A_TIME = 16
"""Of the size they came in, which may be a phone's."""


@dataclass(frozen=True)
class Question:
    """The images of one row of the report."""

    profile: str
    level: str = ALL
    source: str = ALL
    timeout_fraction: float = 0.0


@dataclass(frozen=True)
class Asked:
    """What the bundle said of each way of sending the images of a split."""

    labels: FloatArray
    """(N,)"""
    sources: list[str]
    """(N,): of the index; empty where it has none."""
    probabilities: FloatArray
    """(N, V): by VARIANTS."""

    def part(self, question: Question) -> tuple[FloatArray, FloatArray]:
        """Labels and probabilities (M,) of the images that `question` is about."""
        rows = np.array([question.source in (ALL, source) for source in self.sources])
        ways = [question.profile == profile and question.level in (ALL, str(level)) for profile, level in VARIANTS]
        return np.repeat(self.labels[rows], sum(ways)), self.probabilities[rows][:, ways].ravel()


class RewardRow(Artifact):
    """The score of a miner with the bundle, for images sent in one way."""

    profile: str
    level: str
    """A level of the profile, or all of them, each as likely as the others."""
    source: str
    """Of the index, or all of them; empty for rows without one."""
    timeout_fraction: float
    """Of the challenges."""
    n: int
    """Images that are asked about, each once in every way it is sent."""
    scores: dict[str, FinalScore]
    """Threshold's name -> score."""


class RewardReport(Artifact):
    """reward_report.json."""

    state: str
    """What is known of the subnet."""
    look: int
    """Which look at VAL_TEST this is."""
    thresholds: dict[str, float]
    """bundle: its own; balanced: for balanced labels, which the miner folder carries."""
    best: dict[str, float]
    """Profile -> the threshold with the highest reward on VAL_CALIB."""
    rows: tuple[RewardRow, ...]
    notes: tuple[str, ...]
    """What was left out, and why."""


def run(context: Context) -> Outcome:
    """Find the best threshold of each profile on VAL_CALIB, then simulate every row on VAL_TEST."""
    config, limits = context.settings(RewardConfig), context.settings(LoaderConfig).limits
    bundle = own_bundle(context, config.bundle)
    predictor = Predictor(bundle, limits=limits)
    calib = _ask(predictor, context, Split.VAL_CALIB)
    best = {profile: _best(calib, profile, config.seed) for profile in PROFILES}
    fixed = {"bundle": predictor.threshold, "balanced": bundle.manifest.policy.balanced_threshold}
    look = record_test_access(context.schema.test_access_log_json, sha256_file(bundle.folder / BUNDLE_JSON))
    test = _ask(predictor, context, Split.VAL_TEST)
    rows, notes = [], []
    for question in questions(test, config.timeout_fraction):
        if len(np.unique(test.part(question)[0])) < 2:
            notes.append(f"{question.profile}, level {question.level}, source {question.source!r}: of one class only.")
        else:
            rows.append(_simulate(question, test, {**fixed, "best": best[question.profile]}, config))
    report = RewardReport(
        state=SUBNET_STATUS, look=look.number, thresholds=fixed, best=best, rows=tuple(rows), notes=tuple(notes)
    )
    write_json_atomic(context.schema.reward_report_json, report.model_dump(mode="json"))
    whole = [row for row in rows if row.level == row.source == ALL and not row.timeout_fraction]
    scores = {f"{row.profile}_score": row.scores["bundle"].mean for row in whole}
    return Outcome(f"{len(test.labels)} images of VAL_TEST, look {look.number}", dict(scores))


def _simulate(question: Question, asked: Asked, cuts: dict[str, float], config: RewardConfig) -> RewardRow:
    """The score at each of the thresholds `cuts`, on the same challenges."""
    labels, probabilities = asked.part(question)
    challenges = Challenges.draw(labels, streams=config.n_simulations, steps=config.steps, seed=config.seed)
    late = question.timeout_fraction
    scores = {
        name: final_score(challenges.rewards(decide(probabilities, cut), timeout_fraction=late))
        for name, cut in cuts.items()
    }
    return RewardRow(**asdict(question), n=len(labels), scores=scores)


def _ask(predictor: Predictor, context: Context, split: Split) -> Asked:
    """Send every row of `split` in every way, drawn from the seed, and keep what the bundle answers."""
    rows, config = context.rows(split), context.settings(RewardConfig)
    sent = _sent(rows, context, predictor)
    batches = predictor.stream_logits(
        context.progress.track(sent, total=len(rows) * len(VARIANTS), label=split.value), batch_size=IMAGES_AT_A_TIME
    )
    with seeded(config.seed):
        logits = torch.cat(list(batches))
    probabilities = np.asarray(predictor.probabilities(logits), dtype=np.float64)
    labels = np.array([row.label for row in rows], dtype=np.float64)
    return Asked(labels, [row.source or "" for row in rows], probabilities.reshape(len(rows), len(VARIANTS)))


def _sent(rows: tuple[Row, ...], context: Context, predictor: Predictor) -> Iterator[Tensor]:
    for row in rows:
        image = read_image(context.data_root / row.path, limits=predictor.limits)
        for profile, level in VARIANTS:
            yield distort(image, level, profile)


def _best(calib: Asked, profile: str, seed: int) -> float:
    labels, probabilities = calib.part(Question(profile))
    return best_threshold(probabilities, Challenges.draw(labels, streams=SEARCHED, steps=SEARCHED_STEPS, seed=seed))


def questions(asked: Asked, timeout_fraction: float) -> Iterator[Question]:
    """One for each row of the report; what would be the same twice is left out."""
    named = sorted(set(asked.sources))
    sources = [ALL, *named] if len(named) > 1 else [ALL]
    for profile, described in PROFILES.items():
        levels = [ALL, *map(str, described.levels)] if len(described.levels) > 1 else [ALL]
        for level, source in product(levels, sources):
            yield Question(profile, level, source)
        yield Question(profile, timeout_fraction=timeout_fraction)


def tell(report: RewardReport) -> Iterator[str]:
    """The report as lines for a terminal."""
    cuts, best = report.thresholds, ", ".join(f"{profile} {report.best[profile]:.3f}" for profile in PROFILES)
    yield f"Expected score, mean [5th, 95th percentile] of the moving average; VAL_TEST, look {report.look}, cut at"
    yield f"  bundle    {cuts['bundle']:.3f}, the bundle's own threshold"
    yield f"  balanced  {cuts['balanced']:.3f}, its threshold for balanced labels: what the miner folder carries"
    yield f"  best      {best}: the best for this reward on VAL_CALIB"
    yield ""
    yield _columns("profile", "level", "source", "late", "images", *(f"{name:<22}" for name in CUTS))
    for row in report.rows:
        figures = [_figures(row.scores[name]) for name in CUTS]
        late = f"{row.timeout_fraction:.0%}"
        yield _columns(row.profile, row.level, row.source or "(none)", late, str(row.n), *figures)
    yield from report.notes


def _figures(score: FinalScore) -> str:
    return f"{score.mean:.3f} [{score.p5:.3f}, {score.p95:.3f}]  "


def _columns(profile: str, level: str, source: str, late: str, n: str, *figures: str) -> str:
    return f"{profile:<9}{level:<7}{source:<14}{late:<6}{n:<8}{''.join(figures)}".rstrip()
