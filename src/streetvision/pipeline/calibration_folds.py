"""The number of folds of phase 5, when VAL_CALIB has few groups."""

from collections.abc import Sequence

from streetvision.calibration.config import Phase5Config
from streetvision.calibration.crossfit import assign_folds
from streetvision.contracts.progress import Progress


def with_possible_folds(config: Phase5Config, groups: Sequence[str | None], progress: Progress) -> Phase5Config:
    """Return the settings of phase 5, with fewer folds if they are the default and the groups are too few for them.

    The selection of a calibrator divides the rows outside a fold into as many folds again.

    Args:
        config: The settings.
        groups: (N,) group ids; None: the row is a group of its own.
        progress: Receives the choice.
    """
    if "folds" in config.model_fields_set:
        return config
    names = [name if name is not None else position for position, name in enumerate(groups)]
    total = len(set(names))
    for folds in range(min(config.folds, total), 1, -1):
        of_row = assign_folds(groups, folds=folds, seed=config.seed).tolist()
        outside = [
            len({name for name, place in zip(names, of_row, strict=True) if place != fold}) for fold in range(folds)
        ]
        if min(outside) >= folds:
            break
    else:
        return config  # too few for any; phase 5 reports it
    if folds == config.folds:
        return config
    progress.auto_setting(f"phase5.folds={folds}", f"VAL_CALIB has {total} groups")
    return config.model_copy(update={"folds": folds})
