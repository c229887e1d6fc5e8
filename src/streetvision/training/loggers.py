"""Where the epochs of a training run can be followed: TensorBoard always, Weights & Biases or MLflow when asked."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from streetvision.contracts.errors import ConfigError
from streetvision.training.config import LearningConfig
from streetvision.training.lightning_module import EpochRow

Sink = Callable[[EpochRow], None]
"""Takes the row of an epoch."""


@contextmanager
def sinks(folder: Path, config: LearningConfig) -> Iterator[tuple[Sink, ...]]:
    """What takes the rows of this run, writing under `folder`, whose earlier content is removed.

    Raises ConfigError when the tracker that was asked for is not installed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    with ExitStack() as stack:
        yield (
            stack.enter_context(_tensorboard(folder / "tensorboard")),
            *(stack.enter_context(open_(folder, config)) for open_ in TRACKERS[config.tracker]),
        )


@contextmanager
def _tensorboard(folder: Path) -> Iterator[Sink]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))

    def write(row: EpochRow) -> None:
        for name, value in row.items():
            writer.add_scalar(name, value, int(row["epoch"]))

    try:
        yield write
    finally:
        writer.close()


@contextmanager
def _wandb(folder: Path, config: LearningConfig) -> Iterator[Sink]:
    try:
        import wandb
    except ImportError as error:
        raise _not_installed("wandb") from error
    folder.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project="streetvision",
        dir=folder,
        mode="offline" if config.tracker_offline else "online",
        config=config.model_dump(mode="json"),
        settings=wandb.Settings(console="off", silent=True),
    )
    try:
        yield lambda row: run.log(dict(row), step=int(row["epoch"]))
    finally:
        run.finish()


@contextmanager
def _mlflow(folder: Path, config: LearningConfig) -> Iterator[Sink]:
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    try:
        import mlflow
    except ImportError as error:
        raise _not_installed("mlflow-skinny") from error
    # Online means wherever MLFLOW_TRACKING_URI points.
    client = mlflow.MlflowClient((folder / "mlflow").absolute().as_uri() if config.tracker_offline else None)
    found = client.get_experiment_by_name("streetvision")
    experiment = found.experiment_id if found else client.create_experiment("streetvision")
    run = client.create_run(experiment).info.run_id
    client.log_param(run, "training", config.model_dump_json())

    def write(row: EpochRow) -> None:
        for name, value in row.items():
            client.log_metric(run, name, value, step=int(row["epoch"]))

    try:
        yield write
    finally:
        client.set_terminated(run)


def _not_installed(package: str) -> ConfigError:
    return ConfigError(f"the tracker needs {package}, which is not installed", "pip install 'streetvision[tracking]'")


TRACKERS: Mapping[str, tuple[Callable[[Path, LearningConfig], AbstractContextManager[Sink]], ...]] = {
    "none": (),
    "wandb": (_wandb,),
    "mlflow": (_mlflow,),
}
"""training.tracker -> what opens it."""
