"""Train, evaluate and cross-validate from Python, with the settings and the results of the command line."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from streetvision.bundle.predictor import Predictor, load_bundle
from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.policies import EstimateWithInterval
from streetvision.data.config import DEFAULT_LIMITS, LoaderConfig
from streetvision.io.atomic import read_json
from streetvision.io.user_paths import user_path, user_source
from streetvision.io.validators import validate_json
from streetvision.pipeline.config import compose_config, format_overrides
from streetvision.pipeline.console import Console

if TYPE_CHECKING:
    from streetvision.experiments.cross_validation_report import CrossValidation

PathLike: TypeAlias = str | os.PathLike[str]


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of a bundle on images that it was not trained on."""

    metrics: Mapping[str, EstimateWithInterval]
    """Metric, for example "mcc", "recall", "ece" -> estimate with the bounds of its interval."""
    summary: tuple[str, ...]
    """The lines that the command line prints."""
    folder: Path
    """Folder of the report, the predictions of each image, and the plots."""

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.folder / ArtifactSchema.report_html.name

    @property
    def predictions(self) -> Path:
        """CSV with the prediction of each image, by each policy."""
        return self.folder / ArtifactSchema.predictions_csv.name

    def __str__(self) -> str:
        return "\n".join(self.summary)


@dataclass(frozen=True)
class Run:
    """A run folder: what `train` returns, or an earlier run that is opened by its path.

    Args:
        path: The run folder.
    """

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", user_path(Path(self.path)))

    @property
    def artifacts(self) -> ArtifactSchema:
        """Paths of all artifacts."""
        return ArtifactSchema(self.path)

    @cached_property
    def bundle(self) -> Predictor:
        """The exported bundle, loaded at the first use. It accepts images of the size that the run accepts.

        Raises:
            ArtifactError: The run has exported no bundle, or its files do not match.
        """
        from streetvision.pipeline.run import recorded_settings

        loader = recorded_settings(self.artifacts, LoaderConfig)
        return load_bundle(self.artifacts.export_dir, limits=DEFAULT_LIMITS if loader is None else loader.limits)

    def evaluate(self, data: PathLike | None = None, *, progress: bool = True, **settings: object) -> Evaluation:
        """Evaluate the bundle on VAL_TEST of this run, or on another labeled data set.

        Args:
            data: Another data set, as `root` of `train`; None: VAL_TEST. Each access to VAL_TEST is logged.
            progress: Print what the command line prints; False: nothing.
            **settings: As in `train`, for example `evaluation={"n_resamples": 2000}`.

        Raises:
            ConfigError: A setting is invalid, or this folder is not the run of the bundle.
            ArtifactError: The run has exported no bundle.
            DataError: The data cannot be used.
        """
        from streetvision.pipeline.run import launch_evaluation

        other = None if data is None else user_source(data)
        console = Console(silent=not progress)
        config = compose_config(format_overrides(settings))
        schema = launch_evaluation(self.artifacts.export_dir, config, data=other, console=console)
        report = read_json(schema.evaluation_report_json)
        assert isinstance(report, dict)
        metrics = report["metrics"]
        assert isinstance(metrics, dict)
        for line in (summary := [str(line) for line in report["summary"]]):
            console.text(line)
        figures = {name: EstimateWithInterval.model_validate(figure) for name, figure in metrics.items()}
        return Evaluation(figures, tuple(summary), schema.evaluation_dir)


def train(
    root: PathLike | None = None, *, config: PathLike | None = None, progress: bool = True, **settings: object
) -> Run:
    """Train on images, calibrate, and export a bundle. An interrupted run resumes with the same call.

    In a script, call it below `if __name__ == "__main__":`, because worker processes import the script.

    Args:
        root: The images: a folder with one folder per class, an index.csv, or another data set (docs: Prepare data).
            None: the data of the run in `run_dir`, or else drawn scenes.
        config: A YAML file of settings; `settings` win over it.
        progress: Print what the command line prints; False: nothing, and warnings go to `warnings`.
        **settings: Settings of the command line. A section is a mapping, `training={"epochs": 3}`; a packaged
            choice is its name, `model="dinov2_small"`; a dotted key is unpacked, `**{"training.epochs": 3}`.

    Returns:
        The run, with its bundle.

    Raises:
        ConfigError: A setting does not exist or is not allowed.
        DataError: The images cannot be used.

    Examples:
        >>> import streetvision
        >>> run = streetvision.train(PHOTOS, run_dir=FOLDER, progress=False, **FAST)
        >>> prediction = run.bundle.predict(PHOTO)[0]
        >>> prediction.label in run.bundle.manifest.class_names
        True
        >>> evaluation = run.evaluate(progress=False, evaluation={"n_resamples": 100})
        >>> evaluation.metrics["recall"].estimate <= 1
        True
    """
    console = Console(silent=not progress)
    composed = compose_config(_overrides(root, settings), file=_path(config))
    console.line("run", f"{composed.root}: {', '.join(composed.pipeline.phases)}")
    from streetvision.pipeline.label_rounds import print_round
    from streetvision.pipeline.run import COLLAPSED_WARNING, launch_training, predicts_one_class_only

    schema = launch_training(composed, console=console)
    print_round(schema, console)
    if predicts_one_class_only(schema):
        console.warn(COLLAPSED_WARNING)
    return Run(schema.output_dir)


def cross_validate(
    root: PathLike | None = None,
    *,
    config: PathLike | None = None,
    jobs: int | None = None,
    progress: bool = True,
    **settings: object,
) -> "CrossValidation":
    """Estimate how well such models work, by repeated cross-validation of the whole chain. It makes no bundle.

    Args:
        root: As in `train`.
        config: As in `train`.
        jobs: Processes at a time, if chains train; None: one per core, on a GPU one.
        progress: As in `train`.
        **settings: As in `train`, and `cross_validation={"folds": 5, "repeats": 3, "learning_curve": []}`.

    Returns:
        Metrics with intervals over all images, and the learning curve.

    Raises:
        ConfigError: A setting does not exist, is not allowed or has no effect here.
        DataError: The images cannot be used, or there are too few groups.

    Examples:
        >>> import streetvision
        >>> folds = {"folds": 2, "repeats": 1, "learning_curve": [], "n_resamples": 100}
        >>> result = streetvision.cross_validate(
        ...     PHOTOS, run_dir=FOLDER + "-cross-validation", progress=False, cross_validation=folds, **FAST
        ... )
        >>> result.metrics["mcc"].low <= result.metrics["mcc"].high
        True
    """
    from streetvision.experiments.cross_validation import launch_cross_validation
    from streetvision.experiments.cross_validation_report import CrossValidation

    console = Console(silent=not progress)
    schema = launch_cross_validation(_overrides(root, settings), file=_path(config), jobs=jobs, console=console)
    return validate_json(schema.cross_validation_json, CrossValidation)


def _overrides(root: PathLike | None, settings: Mapping[str, object]) -> list[str]:
    return format_overrides({} if root is None else {"data.root": root}, settings)


def _path(file: PathLike | None) -> Path | None:
    return None if file is None else user_path(Path(file))
