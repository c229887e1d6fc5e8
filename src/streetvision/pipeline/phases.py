"""The table of phases."""

from collections.abc import Callable, Mapping

from streetvision.contracts.phase import Context, Phase
from streetvision.pipeline.steps import (
    calibrate_scrc,
    evaluate_model,
    expect_reward,
    export_bundle,
    prepare_data,
    sweep_thresholds,
    train_baseline,
    train_cvfm,
    train_explora,
    train_mac_cal,
)

PHASES: Mapping[str, Phase] = {
    phase.id: phase
    for phase in (
        prepare_data.PHASE,
        train_explora.PHASE,
        train_baseline.PHASE,
        sweep_thresholds.PHASE,
        train_cvfm.PHASE,
        train_mac_cal.PHASE,
        calibrate_scrc.PHASE,
        export_bundle.PHASE,
        evaluate_model.PHASE,
        evaluate_model.ELSEWHERE,
        expect_reward.PHASE,
    )
}
"""Id -> phase, in the order of the data."""

JOINS: Mapping[str, Callable[[Context], None]] = {
    train_explora.PHASE.id: train_explora.join,
    train_baseline.PHASE.id: train_baseline.join,
}
"""Id -> how the other processes of a distributed run take part in a phase that trains."""
