"""phase5: calibrate the scores that will be served, select the operating points, and certify a risk."""

import pickle
from pathlib import Path

import numpy as np

from streetvision.calibration.base import margins
from streetvision.calibration.config import MAC_CAL, Phase5Config
from streetvision.calibration.crossfit import CalibrationSet
from streetvision.calibration.pareto import OBJECTIVES, front_csv
from streetvision.calibration.risk_control import abstained
from streetvision.calibration.scrc import ScrcFit, fit_scrc
from streetvision.calibration.selection import UNCALIBRATED
from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.phase import Context, Outcome
from streetvision.contracts.policies import RiskControl, ScrcParams, ScrcPolicy
from streetvision.contracts.split_contracts import Split
from streetvision.eval.report.plots import reliability_diagram
from streetvision.eval.report.risk_plots import front_picture, risk_coverage_curve
from streetvision.eval.selective import risk_coverage, selective_figures
from streetvision.eval.thresholds import threshold_for_prevalence
from streetvision.io.atomic import write_bytes_atomic, write_json_atomic, write_text_atomic
from streetvision.io.scores import Scores
from streetvision.pipeline.artifacts import CVFM_SCORES, MAC_CAL_SCORES, SCORES, fuses
from streetvision.pipeline.scores import groups_of, open_scores


def run(context: Context) -> Outcome:
    """Fit on all of VAL_CALIB what ships; report what cross-fitting says of it."""
    config = context.settings(Phase5Config)
    served = CVFM_SCORES if fuses(context) else SCORES
    scores, base = open_scores(context, Split.VAL_CALIB, served), None
    rows = _as_set(scores, context)
    if config.method == MAC_CAL:
        scores, base = open_scores(context, Split.VAL_CALIB, MAC_CAL_SCORES), rows
        rows = _as_set(scores, context)
    fitted = fit_scrc(rows, config, base=base)
    figures = _flat(fitted.params)
    policy = ScrcPolicy(scrc_params=fitted.params, metrics=figures, scores=scores.reference)
    content = policy.model_dump(mode="json")
    schema = context.schema
    _draw(fitted, rows, schema, positive=context.class_names[1])
    extra_outputs = _write_front(fitted, schema)
    write_bytes_atomic(schema.scrc_params_pkl, pickle.dumps(content, protocol=4))
    write_json_atomic(schema.scrc_params_json, content)
    return Outcome(_summary(fitted.params, figures), dict(figures), extra_outputs=extra_outputs)


def _as_set(scores: Scores, context: Context) -> CalibrationSet:
    return CalibrationSet(scores.logits.numpy(), scores.labels.numpy(), groups_of(context, scores))


def _draw(fitted: ScrcFit, rows: CalibrationSet, schema: ArtifactSchema, *, positive: str) -> None:
    labels, before, after = rows.labels, fitted.before, fitted.after
    raw = reliability_diagram(labels, before, groups=rows.groups, positive=positive, name="uncalibrated")
    write_bytes_atomic(schema.reliability_before_plot, raw)
    judged = "retrained" if fitted.params.method == MAC_CAL else "cross-fitted"
    calibrated = reliability_diagram(labels, after, groups=rows.groups, before=before, positive=positive, name=judged)
    write_bytes_atomic(schema.reliability_plot, calibrated)
    control = fitted.params.risk_control
    curve = risk_coverage(
        labels,
        after,
        threshold=threshold_for_prevalence(labels, after),
        kind=control.kind,
        groups=rows.groups,
    )
    picture = risk_coverage_curve(curve, kind=control.kind, alpha=control.alpha, certified=_at_rule(rows, control))
    write_bytes_atomic(schema.risk_coverage_plot, picture)


def _at_rule(rows: CalibrationSet, control: RiskControl) -> tuple[float, float] | None:
    """The share that the rule answers, and its risk there, on the rows it was certified on."""
    if control.lo is None or control.hi is None:
        return None
    margin = margins(rows.logits)
    found = selective_figures(rows.labels, margin >= control.hi, ~abstained(margin, control.lo, control.hi))
    return found["coverage"], found[control.kind]


def _write_front(fitted: ScrcFit, schema: ArtifactSchema) -> tuple[Path, ...]:
    """The Pareto front as a table and a picture, when the method has one; an older one goes."""
    paths = (schema.pareto_front_csv, schema.pareto_front_plot)
    front = fitted.selection.front
    if not front:
        for path in paths:
            path.unlink(missing_ok=True)
        return ()
    values = np.array([point.objectives for point in front])
    selected = next(i for i, point in enumerate(front) if point.selected)
    write_text_atomic(paths[0], front_csv(front))
    picture = front_picture(values, [point.on_front for point in front], names=OBJECTIVES, chosen=selected)
    write_bytes_atomic(paths[1], picture)
    return paths


def _flat(params: ScrcParams) -> dict[str, float | int | None]:
    moments = {"before": params.before, "after": params.after}
    figures = {f"{name}_{moment}": f.estimate for moment, found in moments.items() for name, f in found.items()}
    return {**figures, "mcc_in_sample": params.operating_points["data"].metrics["mcc"]}


def _summary(params: ScrcParams, figures: dict[str, float | int | None]) -> str:
    name = MAC_CAL if params.method == MAC_CAL else params.calibrator.name
    by_weight = sorted(params.ensemble_weights.items(), key=lambda member: -member[1])
    members = ", ".join(f"{weight:.0%} {member}" for member, weight in by_weight)
    what = f"{name} of {members}" if members else name
    judged = "VAL_CALIB" if params.method == MAC_CAL else "cross-fitted"
    control = params.risk_control
    kept = f"{control.reason}, {control.abstained:.0%} handed over" if control.certified else control.reason
    if name == UNCALIBRATED:
        why = "left as it is" if params.method == UNCALIBRATED else "no calibrator helps"
        found = f"{why}; NLL {figures['nll_before']:.3f}, ECE {figures['ece_before']:.3f}"
    else:
        found = (
            f"{what}; {judged} NLL {figures['nll_before']:.3f} -> {figures['nll_after']:.3f}, "
            f"ECE {figures['ece_before']:.3f} -> {figures['ece_after']:.3f}"
        )
    return f"{found} (perfect would show up to {params.ece_band[1]:.3f}); cut {params.threshold:.3f}; {kept}"
