"""streetvision label."""

from pathlib import Path
from typing import Annotated, Any

import typer

from streetvision.cli.options import Overrides, open_console, refuse_options
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
        str | None,
        typer.Option("--queue", help="mixed (default), diverse, uncertain, abstained, suspicious or random."),
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", min=1, max=100_000, help="Images in the queue; default: 200.")
    ] = None,
    labeler: Annotated[str | None, typer.Option("--labeler", help="Your name; default: that of your account.")] = None,
    second_opinion: Annotated[
        bool, typer.Option("--second-opinion", help="Show images that others have labeled.")
    ] = False,
    show_model: Annotated[
        bool, typer.Option("--show-model", help="Show the prediction before the decision, not after it.")
    ] = False,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of the queue; default: 0.")] = None,
    import_from: Annotated[
        Path | None, typer.Option("--import", help="Add labels of Label Studio (.json) or CVAT (.xml).")
    ] = None,
    export_to: Annotated[
        Path | None, typer.Option("--export", help="Write the labels for Label Studio (.json) or CVAT (.xml).")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address; default: 127.0.0.1; all but loopback need STREETVISION_API_KEY.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="TCP port; default: 8010; 0 takes a free one.")
    ] = None,
) -> None:
    """Label images on a local page, chosen by a queue.

    The labels are in data.labels=FOLDER, by default outputs/labels. Train with them by the same setting.
    """
    from streetvision.pipeline.label_images import (
        WITHOUT_FEATURES,
        LabelOptions,
        export_labels,
        import_labels,
        serve_labels,
    )

    console = open_console()
    if import_from is not None and export_to is not None:
        raise ConfigError("--import and --export exclude each other", "run the command twice")
    page_options: dict[str, object] = {
        "predictions": predictions,
        "count": count,
        "second_opinion": second_opinion or None,
        "show_model": show_model or None,
        "seed": seed,
        "host": host,
        "port": port,
    }
    if export_to is not None:
        refuse_options(
            "has no effect with --export", images=images or None, queue=queue, labeler=labeler, **page_options
        )
        export_labels(overrides or [], export_to, console=console)
        return
    if import_from is not None:
        refuse_options("has no effect with --import", **page_options)
    elif second_opinion:
        refuse_options(
            "has no effect with --second-opinion",
            images=images or None,
            predictions=predictions,
            queue=queue,
            show_model=show_model or None,
        )
    elif queue in WITHOUT_FEATURES:
        refuse_options(f"has no effect with --queue {queue}", show_model=show_model or None)
    given: dict[str, Any] = {"strategy": queue, "count": count, "seed": seed}
    options = LabelOptions(
        images=tuple(images or ()),
        predictions=predictions,
        labeler=labeler,
        second_opinion=second_opinion,
        show_model=show_model,
        **{name: value for name, value in given.items() if value is not None},
    )
    if import_from is not None:
        import_labels(overrides or [], options, import_from, console=console)
    else:
        serve_labels(
            overrides or [],
            options,
            host=host or "127.0.0.1",
            port=8010 if port is None else port,
            console=console,
        )
