"""phase5: calibrate the served scores, choose the operating points, and certify the risk of selective prediction."""

import pickle
from pathlib import Path

import numpy as np

from streetvision.calibration.base import margins
from streetvision.calibration.config import MAC_CAL, UNCALIBRATED, Phase5Config
from streetvision.calibration.crossfit import CalibrationSet
from streetvision.calibration.pareto import OBJECTIVES, front_csv
from streetvision.calibration.risk_control import abstained
from streetvision.calibration.scrc import ScrcFit, estimates_with_intervals, fit_scrc
from streetvision.contracts.phase import Context, Outcome
from streetvision.contracts.policies import OutOfFoldReport, ScoresRef, ScrcParams, ScrcPolicy
from streetvision.contracts.split_contracts import Split
from streetvision.eval.predictions import Predictions
from streetvision.eval.report.plots import pareto_plot, reliability_diagram, risk_coverage_curve
from streetvision.eval.selective import risk_coverage, selective_metrics
from streetvision.eval.stability import bagged_threshold
from streetvision.io.atomic import write_bytes_atomic, write_json_atomic, write_text_atomic
from streetvision.pipeline.artifacts import CVFM_SCORES, MAC_CAL_SCORES, SCORES, fuses
from streetvision.pipeline.calibration_folds import with_possible_folds
from streetvision.pipeline.monitoring_reference import save_reference
from streetvision.pipeline.scores import groups_of, open_scores


def run(context: Context) -> Outcome:
    """Fit the policy on all of VAL_CALIB; its reported metrics are cross-fitted."""
    schema, config = context.schema, context.settings(Phase5Config)
    artifacts = MAC_CAL_SCORES if config.method == MAC_CAL else CVFM_SCORES if fuses(context) else SCORES
    scores = open_scores(context, Split.VAL_CALIB, artifacts)
    rows = CalibrationSet(scores.logits.numpy(), scores.labels.numpy(), groups_of(context, scores))
    config = with_possible_folds(config, rows, context.progress)
    base = None
    if config.method == MAC_CAL:
        # The retrained head is compared with phase 1's.
        base_scores = open_scores(context, Split.VAL_CALIB, SCORES)
        base = CalibrationSet(base_scores.logits.numpy(), base_scores.labels.numpy(), groups_of(context, base_scores))
    fold_models = len(scores.fold_models) if scores.out_of_fold else None
    fitted = fit_scrc(rows, config, base=base, fold_models=fold_models)

    params, point = fitted.params, fitted.params.operating_points["data"].metrics
    one_class_only = (point["recall"], point["fpr"]) in ((0.0, 0.0), (1.0, 1.0))
    if one_class_only:
        only, where = context.class_names[int(point["recall"])], "all folds" if scores.out_of_fold else "VAL_CALIB"
        context.progress.warn(f"at its threshold the model predicts {only} for every image of {where}: do not use it")
    metrics = {
        **{f"{name}_before": figure.estimate for name, figure in params.before.items()},
        **{f"{name}_after": figure.estimate for name, figure in params.after.items()},
        "mcc_in_sample": point["mcc"],
    }
    _draw_plots(fitted, rows, context)
    extra = _write_front(fitted, context)
    schema.out_of_fold_json.unlink(missing_ok=True)
    if scores.out_of_fold:
        _write_out_of_fold(fitted, scores.reference, context)
        extra = (*extra, schema.out_of_fold_json)
    policy = ScrcPolicy(scrc_params=params, metrics=metrics, scores=scores.reference).model_dump(mode="json")
    write_bytes_atomic(schema.scrc_params_pkl, pickle.dumps(policy, protocol=4))
    write_json_atomic(schema.scrc_params_json, policy)
    save_reference(context, scores)
    return Outcome(_summary(params, metrics), {**metrics, "one_class_only": int(one_class_only)}, extra_outputs=extra)


def _write_out_of_fold(fitted: ScrcFit, scores: ScoresRef, context: Context) -> None:
    """Write every metric of the images of all folds, each predicted by what was fitted without its group."""
    some_interval = next(iter(fitted.intervals.values()))  # all rest on the same units
    record = OutOfFoldReport(
        scores=scores,
        folds=len(scores.fold_models),
        n=len(fitted.predictions),
        units=some_interval.units,
        rarer_units=some_interval.rarer_units,
        few_units=some_interval.few_units,
        level=fitted.level,
        metrics=estimates_with_intervals(fitted.intervals),
    )
    write_json_atomic(context.schema.out_of_fold_json, record.model_dump(mode="json"))


def _draw_plots(fitted: ScrcFit, rows: CalibrationSet, context: Context) -> None:
    schema, control = context.schema, fitted.params.risk_control
    before, after = (Predictions(rows.labels, p, rows.groups) for p in (fitted.before, fitted.after))
    positive = context.class_names[1]
    uncalibrated = reliability_diagram(before, positive=positive, name="uncalibrated")
    write_bytes_atomic(schema.reliability_before_plot, uncalibrated)
    name = "retrained" if fitted.params.method == MAC_CAL else "cross-fitted"
    calibrated = reliability_diagram(after, before=fitted.before, positive=positive, name=name)
    write_bytes_atomic(schema.reliability_plot, calibrated)

    threshold = bagged_threshold(after, seed=context.settings(Phase5Config).seed)
    curve = risk_coverage(after, threshold=threshold, kind=control.kind)
    certified = None  # coverage and risk of the certified rule, on the rows that certify it
    if control.lo is not None and control.hi is not None:
        margin = margins(rows.logits)
        figures = selective_metrics(rows.labels, margin >= control.hi, ~abstained(margin, control.lo, control.hi))
        certified = figures["coverage"], figures[control.kind]
    plot = risk_coverage_curve(curve, kind=control.kind, alpha=control.alpha, certified=certified)
    write_bytes_atomic(schema.risk_coverage_plot, plot)


def _write_front(fitted: ScrcFit, context: Context) -> tuple[Path, ...]:
    """Write the Pareto front as a table and a plot if the method has one; else remove those of an earlier run."""
    table, plot = context.schema.pareto_front_csv, context.schema.pareto_front_plot
    front = fitted.selection.front
    if not front:
        table.unlink(missing_ok=True)
        plot.unlink(missing_ok=True)
        return ()
    write_text_atomic(table, front_csv(front))
    picture = pareto_plot(
        np.array([point.objectives for point in front]),
        [point.on_front for point in front],
        names=OBJECTIVES,
        selected=next(i for i, point in enumerate(front) if point.selected),
    )
    write_bytes_atomic(plot, picture)
    return table, plot


def _summary(params: ScrcParams, metrics: dict[str, float | int | None]) -> str:
    name = MAC_CAL if params.method == MAC_CAL else params.calibrator.name
    if name == UNCALIBRATED:
        reason = "not calibrated"
        if params.method != UNCALIBRATED:
            only = len(params.candidates) == 1
            reason += ", as VAL_CALIB has one group" if only else ", as no calibrator helps"
        calibration = f"{reason}; NLL {metrics['nll_before']:.3f}, ECE {metrics['ece_before']:.3f}"
        if metrics["nll_after"] != metrics["nll_before"]:
            selected = f"NLL {metrics['nll_after']:.3f}, ECE {metrics['ece_after']:.3f}"
            calibration += f"; with the selection of each fold {selected}"
    else:
        by_weight = sorted(params.ensemble_weights.items(), key=lambda member: -member[1])
        members = ", ".join(f"{weight:.0%} {member}" for member, weight in by_weight)
        source = "VAL_CALIB" if params.method == MAC_CAL else "cross-fitted"
        calibration = (
            f"{name}{f' of {members}' if members else ''}; "
            f"{source} NLL {metrics['nll_before']:.3f} -> {metrics['nll_after']:.3f}, "
            f"ECE {metrics['ece_before']:.3f} -> {metrics['ece_after']:.3f}"
        )
    control = params.risk_control
    risk = f"{control.reason}, {control.abstained:.0%} abstained" if control.certified else control.reason
    return (
        f"{calibration} (a calibrated model: up to {params.ece_band[1]:.3f}); threshold {params.threshold:.3f}; {risk}"
    )
