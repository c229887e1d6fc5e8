"""Monitor a stream of predictions from Python, with the results of the command line."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from streetvision.bundle.monitor_status import MonitorStatus
from streetvision.monitoring.monitor import ALPHA
from streetvision.monitoring.summary import print_status
from streetvision.monitoring.update import update_state
from streetvision.pipeline.console import Console

PathLike: TypeAlias = str | os.PathLike[str]


def monitor(
    bundle: PathLike,
    predictions: PathLike | Sequence[PathLike],
    *,
    state: PathLike,
    labels: PathLike | None = None,
    group_pattern: str | None = None,
    report: PathLike | None = None,
    images: PathLike | None = None,
    alpha: float = ALPHA,
    seed: int | None = None,
    progress: bool = True,
) -> MonitorStatus:
    """Update the state of a stream with new predictions, and report.

    What was read before is not read again. The state file is replaced at the end, so after an interruption or an error
    it is the one before.

    Args:
        bundle: The bundle that made the predictions.
        predictions: One or several folders of `predict --out` with --signals, logs of `serve`, or files of such lines.
        state: The state file; it is created if it does not exist.
        labels: CSV with the columns `image`, as in the predictions, and `label`. A label that an earlier update has
            read is not counted again, and not changed.
        group_pattern: Regular expression that gives the group of an image from its name.
        report: HTML page to write.
        images: Folder with the images, for examples on the page.
        alpha: Probability that the tests ever raise a false alarm, and the same for the risk.
        seed: Seed for ties; None: a random one.
        progress: Print what the command line prints; False: nothing, and warnings go to `warnings`.

    Raises:
        ArtifactError: The bundle has no reference, or the state or the predictions do not belong to it.
        DataError: Predictions or labels are damaged, no label names an image of the predictions, or a labeled name
            is that of two images.
        ConfigError: A setting is invalid or has no effect.
    """
    console = Console(silent=not progress)
    several = [predictions] if isinstance(predictions, str | os.PathLike) else predictions
    status = update_state(
        Path(bundle),
        [Path(source) for source in several],
        state=Path(state),
        labels=None if labels is None else Path(labels),
        group_pattern=group_pattern,
        report=None if report is None else Path(report),
        images=None if images is None else Path(images),
        alpha=alpha,
        seed=seed,
        progress=console,
    )
    print_status(status, console)
    return status
