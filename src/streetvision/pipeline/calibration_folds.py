"""The number of folds of phase 5, when VAL_CALIB has few groups."""

from streetvision.calibration.config import Phase5Config
from streetvision.calibration.crossfit import CalibrationSet
from streetvision.calibration.selection import SELECTORS
from streetvision.contracts.progress import Progress


def with_possible_folds(config: Phase5Config, rows: CalibrationSet, progress: Progress) -> Phase5Config:
    """Return the settings of phase 5, with as many folds as groups if there are fewer groups than the default.

    Args:
        config: The settings.
        rows: The rows of VAL_CALIB.
        progress: Receives the choice.
    """
    folds = rows.n_groups
    if "folds" in config.model_fields_set or folds >= config.folds:
        return config
    reason = f"VAL_CALIB has {folds} group{'' if folds == 1 else 's'}"
    if folds == 1:
        reason += ", so nothing is cross-fitted: the metrics are those of uncalibrated scores at threshold 0.5"
    elif folds == 2 and config.method in SELECTORS:
        reason += "; a calibrator is not selected on one, so the cross-fitted metrics are those of uncalibrated scores"
    progress.auto_setting(f"phase5.folds={folds}", reason)
    return config.model_copy(update={"folds": folds})
