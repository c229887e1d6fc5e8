"""The table of phases."""

from collections.abc import Mapping

from streetvision.contracts.phase import Phase
from streetvision.pipeline.steps import (
    calibrate_scrc,
    evaluate_model,
    export_bundle,
    prepare_data,
    sweep_thresholds,
    train_baseline,
)

PHASES: Mapping[str, Phase] = {
    step.PHASE.id: step.PHASE
    for step in (prepare_data, train_baseline, sweep_thresholds, calibrate_scrc, export_bundle, evaluate_model)
}
"""Id -> phase, in the order of the data."""
