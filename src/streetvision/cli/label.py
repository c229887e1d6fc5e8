"""streetvision label."""

from pathlib import Path
from typing import Annotated

import typer

from streetvision.cli.options import Overrides, open_console
from streetvision.contracts.errors import ConfigError


def label(
    overrides: Overrides = None,
    images: Annotated[
        list[Path] | None, typer.Option("--images", help="Folder or CSV of images to label; may be repeated.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", help="Predictions of a bundle, for the images it abstained on.")
    ] = None,
    queue: Annotated[
        str, typer.Option("--queue", help="mixed, diverse, uncertain, abstained, suspicious or random.")
    ] = "mixed",
    count: Annotated[int, typer.Option("--count", min=1, max=100_000, help="Images in the queue.")] = 200,
    labeler: Annotated[str | None, typer.Option("--labeler", help="Your name; default: that of your account.")] = None,
    second_opinion: Annotated[
        bool, typer.Option("--second-opinion", help="Show images that others have labelled.")
    ] = False,
    show_model: Annotated[
        bool, typer.Option("--show-model", help="Show the prediction before the decision, not after it.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the queue.")] = 0,
    import_from: Annotated[
        Path | None, typer.Option("--import", help="Add labels of Label Studio (.json) or CVAT (.xml).")
    ] = None,
    export_to: Annotated[
        Path | None, typer.Option("--export", help="Write the labels for Label Studio (.json) or CVAT (.xml).")
    ] = None,
    host: Annotated[str, typer.Option(help="Address; all but loopback need STREETVISION_API_KEY.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0 takes a free one.")] = 8010,
) -> None:
    """Label images on a local page, chosen by a queue.

    The labels are in data.labels=FOLDER, by default outputs/labels. Train with them by the same setting.
    """
    from streetvision.pipeline.label_images import LabelOptions, export_labels, import_labels, serve_labels

    console = open_console()
    if import_from is not None and export_to is not None:
        raise ConfigError("--import and --export exclude each other", "run the command twice")
    if export_to is not None:
        export_labels(overrides or [], export_to, console=console)
        return
    options = LabelOptions(
        images=tuple(images or ()),
        predictions=predictions,
        strategy=queue,
        count=count,
        labeler=labeler,
        second_opinion=second_opinion,
        show_model=show_model,
        seed=seed,
    )
    if import_from is not None:
        import_labels(overrides or [], options, import_from, console=console)
    else:
        serve_labels(overrides or [], options, host=host, port=port, console=console)
