"""From answers and labels to the figures of an evaluation and the words that a terminal shows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streetvision.contracts.policies import RiskControl
from streetvision.contracts.split_contracts import Row
from streetvision.eval.bootstrap import Difference, Interval, bootstrap_intervals, paired_difference
from streetvision.eval.counts import Counts, FloatArray, confusion_counts
from streetvision.eval.reliability import ece_band
from streetvision.eval.report.contents import (
    CountsRow,
    DifferenceFigure,
    EarlierLooks,
    Figure,
    Mistake,
    PolicyRow,
    Report,
    Selective,
    Slice,
    of_val_test,
)
from streetvision.eval.resampling import Predictions, Resampling
from streetvision.eval.slices import Part, parts_of_column, parts_of_quantity
from streetvision.eval.thresholds import decide
from streetvision.pipeline.settings import EvaluationConfig

WORST = 10


@dataclass(frozen=True)
class DecisionRule:
    """One way to decide on every row from the model's logits."""

    name: str
    """argmax, threshold or scrc."""
    probabilities: FloatArray
    """(N,) of class 1, one a row."""
    threshold: float
    inference: str = "single_view"
    """How many looks at each image, and how they are fused."""

    @property
    def judged(self) -> Predictions:
        """What the bootstrap compares."""
        return Predictions(self.probabilities, self.decisions)

    @property
    def decisions(self) -> NDArray[np.bool_]:
        """(N,) True where the answer is class 1."""
        return decide(self.probabilities, self.threshold)


@dataclass(frozen=True)
class RiskGuarantee:
    """What a policy promises of the answers that it gives only where their risk is certified."""

    control: RiskControl
    answers: NDArray[np.int64]
    """(N,) 0, 1, or -1 where a person decides."""


@dataclass(frozen=True)
class EvaluationInput:
    """What was asked, what was answered in how many ways, and what is known of who answered."""

    rows: Sequence[Row]
    rulings: tuple[DecisionRule, ...]
    """The shipped policy is the last; differences are against the first."""
    class_names: tuple[str, str]
    title: str
    data: str
    """VAL_TEST, or the data set that was given instead."""
    provenance: dict[str, str]
    settings: dict[str, Any]
    """Phase -> the settings it ran with, as far as the run that made the bundle is at hand."""
    promise: RiskGuarantee | None = None
    """None where the policy promises nothing by its kind."""
    many_views: bool = False
    """Whether the bundle looks at many views of each image."""
    look: int | None = None
    """The how-many-th time VAL_TEST is looked at; None where it is not."""
    earlier_looks: list[EarlierLooks] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def shipped(self) -> DecisionRule:
        """The policy in the bundle."""
        return self.rulings[-1]

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) 0 or 1."""
        return np.array([row.label for row in self.rows])

    @property
    def groups(self) -> list[str] | None:
        """The group of each row; None when every row stands alone."""
        names = [row.group if row.group is not None else f"\0{i}" for i, row in enumerate(self.rows)]
        return names if len(set(names)) < len(names) else None


def make_report(case: EvaluationInput, config: EvaluationConfig) -> Report:
    """Every figure with its interval, by group where groups hold several rows."""
    how, shipped = _resampling(case.groups, config), case.shipped
    told = report_lines_of_rules(case, config)
    intervals_of = [bootstrap_intervals(case.labels, ruling.judged, how) for ruling in told]
    intervals = intervals_of[-1]
    some = next(iter(intervals.values()))
    report = Report(
        title=case.title,
        mode=config.mode,
        data=case.data,
        class_names=case.class_names,
        threshold=shipped.threshold,
        counts=_cells(confusion_counts(case.labels, shipped.decisions)),
        metrics={name: _figure(interval) for name, interval in intervals.items()},
        level=config.confidence_level,
        ece_band=ece_band(shipped.probabilities, how),
        units=some.units,
        rarer_units=some.rarer_units,
        grouped=case.groups is not None,
        few_units=some.few_units,
        look=case.look,
        earlier_looks=case.earlier_looks,
        notes=case.notes,
        provenance=case.provenance,
        settings=case.settings,
    )
    if config.mode == "comprehensive":
        rows = zip(told, intervals_of, strict=True)
        report["policies"] = [_policy_row(ruling, intervals, case, how) for ruling, intervals in rows]
        if case.promise is not None:
            report["selective"] = _selective(case.promise, case, config)
        report["slices"] = [_slice(part, case, config) for part in _parts(case.rows)]
        report["mistakes"] = _mistakes(case)
        report["many_views"] = case.many_views
    return report


def report_lines_of_rules(case: EvaluationInput, config: EvaluationConfig) -> tuple[DecisionRule, ...]:
    """Those that the evaluation speaks of."""
    return case.rulings if config.mode == "comprehensive" else (case.shipped,)


def summary_lines(report: Report) -> list[str]:
    """The evaluation in three lines, for a terminal."""
    counts, metrics = report["counts"], report["metrics"]
    positives, negatives = counts["tp"] + counts["fn"], counts["tn"] + counts["fp"]
    look = {None: "", 1: ", first look"}.get(report["look"], f", look number {report['look']}")
    asked = "VAL_TEST, {} images set aside" if of_val_test(report) else f"{report['data']}, {{}} images"
    chance = f"(perfect would show up to {report['ece_band'][1]:.3f})"
    return [
        f"{asked.format(positives + negatives)}{look}",
        f"  MCC    {_spoken(metrics['mcc'])}   ROC-AUC {_spoken(metrics['roc_auc'])}   "
        f"ECE {_spoken(metrics['ece'])} {chance}",
        f"  recall {_spoken(metrics['recall'])}   misses {counts['fn']} of {positives}, "
        f"false alarms {counts['fp']} of {negatives}",
        *(f"  {note}" for note in report["notes"]),
    ]


def _resampling(groups: list[str] | None, config: EvaluationConfig) -> Resampling:
    return Resampling(groups, config.n_resamples, config.confidence_level, config.seed)


def _policy_row(
    ruling: DecisionRule, intervals: Mapping[str, Interval], case: EvaluationInput, how: Resampling
) -> PolicyRow:
    first, labels = case.rulings[0], case.labels
    row = PolicyRow(
        name=ruling.name,
        inference=ruling.inference,
        threshold=ruling.threshold,
        shipped=ruling is case.shipped,
        counts=_cells(confusion_counts(labels, ruling.decisions)),
        metrics={name: _figure(interval) for name, interval in intervals.items()},
    )
    if ruling is not first:
        differences = paired_difference(labels, ruling.judged, first.judged, how)
        row["differences"] = {name: _difference_figure(difference) for name, difference in differences.items()}
    return row


def _selective(promise: RiskGuarantee, case: EvaluationInput, config: EvaluationConfig) -> Selective:
    answered = np.flatnonzero(promise.answers >= 0)
    labels, decisions, kind = case.labels[answered], promise.answers[answered] == 1, promise.control.kind
    found: Figure = {"estimate": None, "low": None, "high": None}
    if answered.size:
        groups = None if case.groups is None else [case.groups[row] for row in answered.tolist()]
        judged = Predictions(case.shipped.probabilities[answered], decisions)
        intervals = bootstrap_intervals(labels, judged, _resampling(groups, config))
        found = _figure(intervals["accuracy" if kind == "error" else kind])
        if kind == "error":
            found = _one_less(found)
    return Selective(
        risk=kind,
        promise=promise.control.reason,
        certified=promise.control.certified,
        answered=answered.size,
        counts=_cells(confusion_counts(labels, decisions)),
        found=found,
    )


def _one_less(accuracy: Figure) -> Figure:
    """The error that an accuracy leaves."""
    estimate, low, high = (
        None if end is None else 1 - end for end in (accuracy["estimate"], accuracy["high"], accuracy["low"])
    )
    return {"estimate": estimate, "low": low, "high": high}


def _parts(rows: Sequence[Row]) -> list[Part]:
    """Slices by source, size, brightness and every further column of the index."""
    sizes = np.array([min(row.width, row.height) for row in rows], dtype=np.float64)
    brightness = np.array([row.brightness for row in rows])
    columns = dict.fromkeys(name for row in rows for name in row.columns)
    return [
        *parts_of_column("source", [row.source for row in rows]),
        *parts_of_quantity("shorter side", sizes, unit=" px", names=("small", "medium", "large")),
        *parts_of_quantity("brightness", brightness, names=("dark", "medium", "bright")),
        *(part for name in columns for part in parts_of_column(name, [row.columns.get(name) for row in rows])),
    ]


def _slice(part: Part, case: EvaluationInput, config: EvaluationConfig) -> Slice:
    labels, shipped, groups = case.labels[part.rows], case.shipped, case.groups
    units = [str(row) if groups is None else groups[row] for row in part.rows.tolist()]
    judged = Predictions(shipped.probabilities[part.rows], shipped.decisions[part.rows])
    found = bootstrap_intervals(labels, judged, _resampling(units, config))
    figures = {name: _figure(found[name]) for name in ("mcc", "fnr", "fpr")}
    if found["mcc"].rarer_units == 0:  # MCC is 0 by convention there, which says nothing of the model
        figures["mcc"] = {"estimate": None, "low": None, "high": None}
    return Slice(
        column=part.column,
        value=part.value,
        counts=_cells(confusion_counts(labels, shipped.decisions[part.rows])),
        metrics=figures,
        units=found["mcc"].units,
        few=found["mcc"].few_units,
    )


def _mistakes(case: EvaluationInput) -> list[Mistake]:
    """The wrong decisions whose probabilities lie farthest on the wrong side."""
    labels, shipped = case.labels, case.shipped
    wrong = np.flatnonzero(shipped.decisions != labels)
    error = np.abs(shipped.probabilities - labels)
    worst = wrong[np.argsort(-error[wrong], kind="stable")][:WORST]
    return [
        Mistake(
            name=case.rows[i].path,
            label=case.rows[i].label,
            probability=float(shipped.probabilities[i]),
            thumbnail=f"mistake_{rank}",
        )
        for rank, i in enumerate(worst.tolist())
    ]


def _cells(counts: Counts) -> CountsRow:
    return {"tp": int(counts.tp), "tn": int(counts.tn), "fp": int(counts.fp), "fn": int(counts.fn)}


def _figure(interval: Interval) -> Figure:
    estimate, low, high = map(_or_none, (interval.estimate, interval.low, interval.high))
    return {"estimate": estimate, "low": low, "high": high}


def _difference_figure(difference: Difference) -> DifferenceFigure:
    return {**_figure(difference), "p_value": _or_none(difference.p_value)}


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _spoken(figure: Figure) -> str:
    if figure["estimate"] is None:
        return "undefined"
    return f"{figure['estimate']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
