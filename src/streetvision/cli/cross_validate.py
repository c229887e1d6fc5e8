"""streetvision cross-validate."""

from typing import Annotated

import typer

from streetvision.cli.options import ConfigFile, Overrides, open_console


def cross_validate(
    overrides: Overrides = None,
    config: ConfigFile = None,
    leave_out: Annotated[
        str | None,
        typer.Option("--leave-out", help="source: also predict each source by a chain that uses none of its images."),
    ] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help="Processes at a time, if chains train.")] = None,
) -> None:
    """Estimate how well such models work, by cross-validation.

    Settings are those of train, and cross_validation.folds, .repeats and .learning_curve. The default is
    training=frozen, which takes minutes; otherwise every chain is trained in a process of its own. It resumes, and
    makes no bundle.
    """
    from streetvision.experiments.cross_validation import launch_cross_validation

    settings = list(overrides or [])
    if leave_out is not None:
        settings.append(f"cross_validation.leave_out={leave_out}")
    launch_cross_validation(settings, file=config, jobs=jobs, console=open_console())
