"""Builds the evaluation report from predictions and labels, and the lines that summarize it on a terminal."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streetvision.contracts.policies import OutOfFoldReport, RiskControl
from streetvision.contracts.progress import Progress, Silent
from streetvision.contracts.split_contracts import Row
from streetvision.eval.bootstrap import Difference, bootstrap_intervals, paired_difference
from streetvision.eval.counts import Counts, FloatArray, confusion_counts
from streetvision.eval.intervals import Interval, level_text
from streetvision.eval.predictions import Predictions
from streetvision.eval.reliability import ece_band
from streetvision.eval.report.contents import (
    CountsRow,
    EarlierTestAccesses,
    Figure,
    Mistake,
    PolicyRow,
    Report,
    Selective,
    Slice,
    better_evidence,
    of_val_test,
)
from streetvision.eval.resampling import Resampling
from streetvision.eval.slices import Part, parts_of_column, parts_of_quantity
from streetvision.eval.thresholds import decide
from streetvision.pipeline.settings import EvaluationConfig

WORST_MISTAKES = 10
NEED_BOTH_CLASSES = ("mcc", "precision", "f1", "roc_auc", "pr_auc")
"""Metrics without a meaning on images of one class."""
UNDEFINED: Figure = {"estimate": None, "low": None, "high": None}


@dataclass(frozen=True)
class DecisionRule:
    """A way to decide on every row from the model's logits."""

    name: str
    """argmax, threshold or scrc."""
    probabilities: FloatArray
    """(N,) of class 1."""
    threshold: float
    inference: str = "single_view"
    """single_view, or the mode of the fusion of views."""

    @property
    def decisions(self) -> NDArray[np.bool_]:
        """(N,) True for class 1."""
        return decide(self.probabilities, self.threshold)


@dataclass(frozen=True)
class RiskGuarantee:
    """The risk control of a policy, with its selective predictions."""

    control: RiskControl
    predictions: NDArray[np.int64]
    """(N,) 0, 1, or -1 for an abstention."""


@dataclass(frozen=True)
class EvaluationInput:
    """Rows, the predictions of every decision rule, and the provenance of the bundle."""

    rows: Sequence[Row]
    rules: tuple[DecisionRule, ...]
    """The first is the baseline of the differences; the last is the shipped policy."""
    class_names: tuple[str, str]
    title: str
    data: str
    """VAL_TEST, or the name of another data set."""
    provenance: dict[str, str]
    settings: dict[str, Any]
    """Phase -> its settings, if the run that made the bundle is available."""
    guarantee: RiskGuarantee | None = None
    """None for a policy without risk control."""
    out_of_fold: OutOfFoldReport | None = None
    """Figures of the images of all folds, if the bundle was made under cross_fit."""
    searched: bool = False
    """Whether a search in the run folder has compared settings by these figures."""
    many_views: bool = False
    """Whether the bundle fuses several views of each image."""
    test_access: int | None = None
    """Number of this access to VAL_TEST; None if VAL_TEST was not accessed."""
    earlier_test_accesses: list[EarlierTestAccesses] = field(default_factory=list)
    uncounted_test_images: int = 0
    """Images of VAL_TEST of a run whose access log is not available."""
    notes: list[str] = field(default_factory=list)

    @property
    def shipped(self) -> DecisionRule:
        """The policy in the bundle."""
        return self.rules[-1]

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) 0 or 1."""
        return np.array([row.label for row in self.rows])

    @property
    def groups(self) -> list[str] | None:
        """The group of each row; None if every row is a group of its own."""
        names = [row.group if row.group is not None else f"\0{i}" for i, row in enumerate(self.rows)]
        return names if len(set(names)) < len(names) else None

    def predictions(self, rule: DecisionRule) -> Predictions:
        """The validated predictions of a rule."""
        return Predictions(self.labels, rule.probabilities, self.groups, decisions=rule.decisions)

    def resampling(self, config: EvaluationConfig) -> Resampling:
        """The settings of the bootstrap."""
        return Resampling(config.n_resamples, config.confidence_level, config.seed)

    def reported_rules(self, config: EvaluationConfig) -> tuple[DecisionRule, ...]:
        """Every rule, or the shipped one alone in mode=quick."""
        return self.rules if config.mode == "comprehensive" else (self.shipped,)


def make_report(evaluation: EvaluationInput, config: EvaluationConfig, progress: Progress | None = None) -> Report:
    """The content of evaluation_report.json: every figure with its bootstrap interval."""
    progress = progress or Silent()
    resampling, shipped = evaluation.resampling(config), evaluation.shipped
    rules = evaluation.reported_rules(config)
    predictions_by_rule = [evaluation.predictions(rule) for rule in rules]
    intervals_by_rule = [
        bootstrap_intervals(predictions, resampling)
        for predictions in progress.track(predictions_by_rule, total=len(rules), label="intervals")
    ]
    shipped_predictions, shipped_intervals = predictions_by_rule[-1], intervals_by_rule[-1]
    some_interval = next(iter(shipped_intervals.values()))  # all rest on the same units
    report = Report(
        title=evaluation.title,
        mode=config.mode,
        data=evaluation.data,
        class_names=evaluation.class_names,
        threshold=shipped.threshold,
        counts=_counts_row(confusion_counts(evaluation.labels, shipped.decisions)),
        metrics=_figures(shipped_intervals, evaluation.labels),
        level=config.confidence_level,
        ece_band=ece_band(shipped_predictions, resampling),
        units=some_interval.units,
        rarer_units=some_interval.rarer_units,
        grouped=evaluation.groups is not None,
        few_units=some_interval.few_units,
        test_access=evaluation.test_access,
        earlier_test_accesses=evaluation.earlier_test_accesses,
        uncounted_test_images=evaluation.uncounted_test_images,
        notes=evaluation.notes,
        provenance=evaluation.provenance,
        settings=evaluation.settings,
    )
    if (out_of_fold := evaluation.out_of_fold) is not None:
        report["out_of_fold"] = {
            "images": out_of_fold.n,
            "units": out_of_fold.units,
            "rarer_units": out_of_fold.rarer_units,
            "few_units": out_of_fold.few_units,
            "folds": out_of_fold.folds,
            "level": out_of_fold.level,
            "searched": evaluation.searched,
            "metrics": {
                name: {"estimate": figure.estimate, "low": figure.low, "high": figure.high}
                for name, figure in out_of_fold.metrics.items()
            },
        }
    if config.mode == "comprehensive":
        baseline, *others = predictions_by_rule
        pairs = progress.track(others, total=len(others), label="differences")
        differences = [None, *(paired_difference(other, baseline, resampling) for other in pairs)]
        report["policies"] = [
            _policy_row(rule, intervals, difference, evaluation)
            for rule, intervals, difference in zip(rules, intervals_by_rule, differences, strict=True)
        ]
        if evaluation.guarantee is not None:
            report["selective"] = _selective(evaluation.guarantee, evaluation, resampling)
        parts = _parts(evaluation.rows)
        report["slices"] = [
            _slice(part, shipped_predictions, resampling)
            for part in progress.track(parts, total=len(parts), label="slices")
        ]
        report["mistakes"] = _mistakes(evaluation)
        report["many_views"] = evaluation.many_views
    return report


def summary_lines(report: Report) -> list[str]:
    """The evaluation in three lines, for a terminal, and its notes."""
    counts, metrics = report["counts"], report["metrics"]
    positives, negatives = counts["tp"] + counts["fn"], counts["tn"] + counts["fp"]
    access = {None: "", 1: ", first access"}.get(report["test_access"], f", access {report['test_access']}")
    held_out = "held-out " if of_val_test(report) else ""

    def text(name: str, figures: Mapping[str, Figure] = metrics) -> str:
        figure = figures[name]
        if figure["estimate"] is None:
            return "undefined"
        return f"{figure['estimate']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"

    folds = []
    if "out_of_fold" in report:
        of_folds = report["out_of_fold"]
        other_level = "" if of_folds["level"] == report["level"] else f"; {level_text(of_folds['level'])} intervals"
        folds = [
            f"Out of fold, {of_folds['images']:,} images, each scored by a model without its fold{other_level}",
            f"  MCC    {text('mcc', of_folds['metrics'])}   ROC-AUC {text('roc_auc', of_folds['metrics'])}   "
            f"ECE {text('ece', of_folds['metrics'])}",
            f"  recall {text('recall', of_folds['metrics'])}   false alarm rate {text('fpr', of_folds['metrics'])}",
            f"  {better_evidence(report)}",
        ]
    rate = f"recall {text('recall')}" if positives else f"false alarm rate {text('fpr')}"
    return [
        f"{report['data']}, {positives + negatives:,} {held_out}images{access}; "
        f"0 = {report['class_names'][0]}, 1 = {report['class_names'][1]} (data.class_names)",
        f"  MCC    {text('mcc')}   ROC-AUC {text('roc_auc')}   "
        f"ECE {text('ece')} (a calibrated model: up to {report['ece_band'][1]:.3f})",
        f"  {rate}   {counts['fn']} of {positives} missed, {counts['fp']} of {negatives} false alarms",
        *folds,
        *(f"  {note}" for note in report["notes"]),
    ]


def _policy_row(
    rule: DecisionRule,
    intervals: Mapping[str, Interval],
    differences: Mapping[str, Difference] | None,
    evaluation: EvaluationInput,
) -> PolicyRow:
    row = PolicyRow(
        name=rule.name,
        inference=rule.inference,
        threshold=rule.threshold,
        shipped=rule is evaluation.shipped,
        counts=_counts_row(confusion_counts(evaluation.labels, rule.decisions)),
        metrics=_figures(intervals, evaluation.labels),
    )
    if differences is not None:
        undefined = _undefined(evaluation.labels)
        row["differences"] = {
            name: {**UNDEFINED, "p_value": None}
            if name in undefined
            else {**_figure(difference), "p_value": _none_if_nan(difference.p_value)}
            for name, difference in differences.items()
        }
    return row


def _selective(guarantee: RiskGuarantee, evaluation: EvaluationInput, resampling: Resampling) -> Selective:
    """The risk among the rows without an abstention."""
    accepted = np.flatnonzero(guarantee.predictions >= 0)
    labels, decisions = evaluation.labels[accepted], guarantee.predictions[accepted] == 1
    kind, risk = guarantee.control.kind, UNDEFINED
    if accepted.size:
        names = evaluation.groups
        groups = None if names is None else [names[row] for row in accepted.tolist()]
        predictions = Predictions(labels, evaluation.shipped.probabilities[accepted], groups, decisions=decisions)
        intervals = bootstrap_intervals(predictions, resampling)
        if kind == "error":  # error = 1 - accuracy, so the ends of the interval change places
            accuracy = _figure(intervals["accuracy"])
            estimate, low, high = (
                None if end is None else 1 - end for end in (accuracy["estimate"], accuracy["high"], accuracy["low"])
            )
            risk = {"estimate": estimate, "low": low, "high": high}
        else:
            risk = _figures(intervals, labels)[kind]
    return Selective(
        risk_kind=kind,
        guarantee=guarantee.control.reason,
        certified=guarantee.control.certified,
        predicted=accepted.size,
        counts=_counts_row(confusion_counts(labels, decisions)),
        risk=risk,
    )


def _parts(rows: Sequence[Row]) -> list[Part]:
    """Slices by source, size, brightness, and each extra column of the index."""
    sizes = np.array([min(row.width, row.height) for row in rows], dtype=np.float64)
    brightness = np.array([row.brightness for row in rows])
    columns = dict.fromkeys(name for row in rows for name in row.columns)
    return [
        *parts_of_column("source", [row.source for row in rows]),
        *parts_of_quantity("shorter side", sizes, unit=" px", names=("small", "medium", "large")),
        *parts_of_quantity("brightness", brightness, names=("dark", "medium", "bright")),
        *(part for name in columns for part in parts_of_column(name, [row.columns.get(name) for row in rows])),
    ]


def _slice(part: Part, shipped: Predictions, resampling: Resampling) -> Slice:
    predictions = shipped.subset(part.rows)
    intervals = bootstrap_intervals(predictions, resampling)
    figures = _figures(intervals, predictions.labels)
    metrics = {name: figures[name] for name in ("mcc", "fnr", "fpr")}
    return Slice(
        column=part.column,
        value=part.value,
        counts=_counts_row(confusion_counts(predictions.labels, predictions.decisions)),
        metrics=metrics,
        units=intervals["mcc"].units,
        few_units=intervals["mcc"].few_units,
    )


def _mistakes(evaluation: EvaluationInput) -> list[Mistake]:
    """The wrong decisions with the largest probability error, the worst first."""
    labels, shipped, rows = evaluation.labels, evaluation.shipped, evaluation.rows
    wrong = np.flatnonzero(shipped.decisions != labels)
    error = np.abs(shipped.probabilities - labels)
    worst = wrong[np.argsort(-error[wrong], kind="stable")][:WORST_MISTAKES].tolist()
    return [
        Mistake(
            name=rows[i].path,
            label=rows[i].label,
            probability=float(shipped.probabilities[i]),
            thumbnail=f"mistake_{rank}",
        )
        for rank, i in enumerate(worst)
    ]


def _counts_row(counts: Counts) -> CountsRow:
    return {"tp": int(counts.tp), "tn": int(counts.tn), "fp": int(counts.fp), "fn": int(counts.fn)}


def _figures(intervals: Mapping[str, Interval], labels: NDArray[np.int64] | NDArray[np.bool_]) -> dict[str, Figure]:
    """The figures of all metrics; UNDEFINED are those that need images of a class that is absent."""
    undefined = _undefined(labels)
    return {name: UNDEFINED if name in undefined else _figure(interval) for name, interval in intervals.items()}


def _undefined(labels: NDArray[np.int64] | NDArray[np.bool_]) -> set[str]:
    """The metrics that need images of a class that is absent."""
    undefined: set[str] = set()
    if not (labels == 1).any():
        undefined |= {*NEED_BOTH_CLASSES, "recall", "fnr"}
    if not (labels == 0).any():
        undefined |= {*NEED_BOTH_CLASSES, "fpr"}
    return undefined


def _figure(interval: Interval) -> Figure:
    estimate, low, high = map(_none_if_nan, (interval.estimate, interval.low, interval.high))
    return {"estimate": estimate, "low": low, "high": high}


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
