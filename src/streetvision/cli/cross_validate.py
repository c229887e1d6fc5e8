"""streetvision cross-validate."""

from typing import Annotated

import typer

from streetvision.cli.options import ConfigFile, Overrides, open_console


def cross_validate(
    overrides: Overrides = None,
    config: ConfigFile = None,
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help="Processes at a time, if chains train.")] = None,
) -> None:
    """Estimate how well such models work, by cross-validation.

    Settings are those of train, and cross_validation.folds, .repeats and .learning_curve. The default is
    training=frozen, which takes minutes; otherwise every chain is trained in a process of its own. It resumes, and
    makes no bundle.
    """
    from streetvision.experiments.cross_validation import launch_cross_validation

    launch_cross_validation(overrides or [], file=config, jobs=jobs, console=open_console())
