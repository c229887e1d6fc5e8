"""Lightning's loggers for the epochs of a training: TensorBoard always, Weights & Biases or MLflow if configured.

By default nothing is sent anywhere. `metrics.csv` is not one of them: the phases write it atomically from the history,
and Lightning's CSVLogger would add a column.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from streetvision.contracts.errors import ConfigError
from streetvision.training.config import LearningConfig

PROJECT = "streetvision"


@contextmanager
def open_loggers(folder: Path, config: LearningConfig) -> Iterator[tuple[Logger, ...]]:
    """Open the loggers of a run, and close them at the end of the block.

    Args:
        folder: Where they write; its earlier content is removed.
        config: Chooses the tracker, and is recorded by it.

    Raises:
        ConfigError: The package of the tracker is not installed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    with ExitStack() as stack:
        loggers: list[Logger] = [TensorBoardLogger(folder, name="tensorboard", version="", default_hp_metric=False)]
        if config.tracker != "none":
            loggers.append(stack.enter_context(TRACKERS[config.tracker](folder, config)))
            loggers[-1].log_hyperparams(config.model_dump(mode="json"))
        status = "failed"
        try:
            yield tuple(loggers)
            status = "success"
        finally:
            for logger in loggers:
                logger.finalize(status)


def log_row(loggers: Iterable[Logger], row: Mapping[str, float | int]) -> None:
    """Send the metrics of an epoch to loggers; `epoch` is its number."""
    for logger in loggers:
        logger.log_metrics(dict(row), step=int(row["epoch"]))


@contextmanager
def _wandb(folder: Path, config: LearningConfig) -> Iterator[Logger]:
    try:
        import wandb
    except ImportError as error:
        raise _not_installed("wandb") from error
    folder.mkdir(parents=True, exist_ok=True)
    logger = WandbLogger(
        project=PROJECT,
        save_dir=folder,
        # Not `offline=True`, which would set WANDB_MODE for all later runs of the process.
        mode="offline" if config.tracker_offline else "online",
        settings=wandb.Settings(console="off", silent=True),
    )
    try:
        yield logger
    finally:
        wandb.finish()  # Lightning leaves the run open, and the next logger would continue it


@contextmanager
def _mlflow(folder: Path, config: LearningConfig) -> Iterator[Logger]:
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    try:
        import mlflow
    except ImportError as error:
        raise _not_installed("mlflow-skinny") from error
    # Read here, because Lightning's default is the value at its import.
    configured = os.environ.get("MLFLOW_TRACKING_URI")
    uri = (folder / "mlflow").absolute().as_uri() if config.tracker_offline else configured
    try:
        yield MLFlowLogger(experiment_name=PROJECT, tracking_uri=uri)
    finally:
        # Lightning sets the URI for the whole process, so a later run would log to this folder.
        mlflow.set_tracking_uri(configured or "")
        if configured is None:
            os.environ.pop("MLFLOW_TRACKING_URI", None)


def _not_installed(package: str) -> ConfigError:
    return ConfigError(f"the tracker needs {package}, which is not installed", "pip install 'streetvision[tracking]'")


TRACKERS: Mapping[str, Callable[[Path, LearningConfig], AbstractContextManager[Logger]]] = {
    "wandb": _wandb,
    "mlflow": _mlflow,
}
"""training.tracker -> function that opens its logger."""
