"""phase2: the threshold that maximises MCC on phase 1's own scores of VAL_CALIB."""

from streetvision.contracts.phase import Context, Outcome, Phase
from streetvision.contracts.policies import ThresholdPolicy
from streetvision.contracts.split_contracts import Split
from streetvision.eval.plots import plot_mcc_curve
from streetvision.eval.thresholds import select_threshold_max_mcc, sweep_csv
from streetvision.io.atomic import write_bytes_atomic, write_json_atomic, write_text_atomic
from streetvision.pipeline.settings import Phase2Config
from streetvision.pipeline.steps.scores import SCORES, open_scores


def run(context: Context) -> Outcome:
    """Sweep every cut, write the policy, the grid that was asked for, and its picture."""
    schema, scores = context.schema, open_scores(context, Split.VAL_CALIB)
    n = context.settings(Phase2Config).n_thresholds
    threshold, mcc, metrics = select_threshold_max_mcc(scores.logits, scores.labels, n, return_curve=True)
    picture = plot_mcc_curve(metrics, threshold=threshold)
    curve = metrics.pop("curve")
    policy = ThresholdPolicy(threshold=threshold, metrics=metrics, scores=scores.reference)
    write_text_atomic(schema.threshold_sweep, sweep_csv(curve))
    write_bytes_atomic(schema.mcc_curve, picture)
    write_json_atomic(schema.thresholds, policy.model_dump(mode="json"))
    return Outcome(
        f"{threshold:.3f} (exact; VAL_CALIB MCC {mcc:.3f}, grid of {n} {metrics['grid_mcc']:.3f})",
        {"threshold": threshold, "val_calib_mcc": mcc},
    )


PHASE = Phase(
    id="phase2",
    title="cut",
    config=(Phase2Config,),
    needs=SCORES,
    makes=("thresholds", "threshold_sweep", "mcc_curve"),
    run=run,
)
