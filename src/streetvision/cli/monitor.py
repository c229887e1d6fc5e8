"""streetvision monitor."""

from pathlib import Path
from typing import Annotated

import typer

from streetvision.cli.errors import ALARM
from streetvision.cli.options import BundlePath, open_console


def monitor(
    bundle: BundlePath,
    predictions: Annotated[
        list[Path], typer.Argument(help="Folders of predict --out --signals, logs of serve, or .jsonl files.")
    ],
    state: Annotated[Path, typer.Option("--state", help="State file; created if it does not exist.")],
    labels: Annotated[Path | None, typer.Option("--labels", help="CSV with the columns image and label.")] = None,
    group_pattern: Annotated[
        str | None, typer.Option("--group-pattern", help="Regular expression for the group in an image's name.")
    ] = None,
    report: Annotated[Path | None, typer.Option("--report", help="HTML page to write.")] = None,
    images: Annotated[Path | None, typer.Option("--images", help="Folder with the images, for the page.")] = None,
    alpha: Annotated[float, typer.Option(help="Chance of ever raising a false alarm.")] = 0.01,
) -> None:
    """Check predictions for drift; exit code 4 on alarm."""
    from streetvision.monitoring.summary import print_status
    from streetvision.monitoring.update import update_state

    console = open_console()
    status = update_state(
        bundle,
        predictions,
        state=state,
        labels=labels,
        group_pattern=group_pattern,
        report=report,
        images=images,
        alpha=alpha,
        progress=console,
    )
    print_status(status, console)
    console.line("state", str(state))
    if report is not None:
        console.line("report", str(report))
    if status.alarms:
        raise typer.Exit(ALARM)
