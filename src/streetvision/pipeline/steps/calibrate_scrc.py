"""phase5: calibrate the scores that will be served, and choose the operating point on the calibrated probabilities."""

import pickle

import numpy as np
from numpy.typing import NDArray

from streetvision.calibration.calibrators import make_calibrator
from streetvision.calibration.crossfit import crossfit_probabilities
from streetvision.contracts.phase import Context, Outcome, Phase
from streetvision.contracts.policies import CalibratorState, ScrcParams, ScrcPolicy
from streetvision.contracts.split_contracts import Split
from streetvision.eval.counts import confusion_counts
from streetvision.eval.metrics import brier, ece, mcc, nll, positive_probability
from streetvision.eval.plots import reliability_diagram
from streetvision.eval.thresholds import decide, threshold_for_prevalence
from streetvision.io.atomic import write_bytes_atomic, write_json_atomic
from streetvision.pipeline.settings import Phase5Config
from streetvision.pipeline.steps.scores import SCORES, groups_of, open_scores

FloatArray = NDArray[np.float64]
PROBABILITY_METRICS = {"nll": nll, "brier": brier, "ece": ece}


def run(context: Context) -> Outcome:
    """Fit on all of VAL_CALIB what ships; report what cross-fitting says of it."""
    config, scores = context.settings(Phase5Config), open_scores(context, Split.VAL_CALIB)
    logits, labels = scores.logits.numpy(), scores.labels.numpy()
    calibrator = make_calibrator(config.method).fit(logits, labels)
    probabilities = calibrator.probabilities(logits)
    before = positive_probability(logits)
    after = crossfit_probabilities(
        config.method, logits, labels, groups=groups_of(context, scores), folds=config.folds, seed=config.seed
    )
    threshold = threshold_for_prevalence(labels, probabilities)
    figures: dict[str, float | int | None] = {
        **_before_and_after(labels, before, after),
        "mcc_at_threshold": float(mcc(confusion_counts(labels, decide(probabilities, threshold)))),
    }
    state = CalibratorState(name=config.method, state=calibrator.state())
    policy = ScrcPolicy(
        scrc_params=ScrcParams(calibrator=state, threshold=threshold),
        metrics=figures,
        scores=scores.reference,
    )
    content = policy.model_dump(mode="json")
    schema = context.schema
    picture = reliability_diagram(labels, after, before=before, positive=context.class_names[1])
    write_bytes_atomic(schema.reliability, picture)
    write_bytes_atomic(schema.scrc_params_pickle, pickle.dumps(content, protocol=4))
    write_json_atomic(schema.scrc_params, content)
    return Outcome(
        f"{config.method}; cross-fitted NLL {figures['nll_before']:.3f} -> {figures['nll_after']:.3f}, "
        f"ECE {figures['ece_before']:.3f} -> {figures['ece_after']:.3f}; cut {threshold:.3f}",
        dict(figures),
    )


def _before_and_after(labels: NDArray[np.int64], before: FloatArray, after: FloatArray) -> dict[str, float]:
    moments = {"before": before, "after": after}
    return {f"{n}_{m}": float(f(labels, p)) for n, f in PROBABILITY_METRICS.items() for m, p in moments.items()}


PHASE = Phase(
    id="phase5",
    title="trust",
    config=(Phase5Config,),
    needs=SCORES,
    makes=("scrc_params", "scrc_params_pickle", "reliability"),
    run=run,
)
