"""The verbs below `streetvision data`, and what every verb takes."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from streetvision.pipeline.console import Console

CONSISTENT_HELP = "Leave out images whose text in COLUMN has none of the words in class 1, or one in class 0."
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings: training.epochs=5")]


def check(
    root: str,
    overrides: Overrides = None,
    labels: Annotated[bool, typer.Option("--labels", help="Also doubt labels, by a classifier on features.")] = False,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Also ask the backbone (model=NAME) which images are nearly the same.")
    ] = False,
    page: Annotated[Path | None, typer.Option("--page", help="Where to write the page with the pictures.")] = None,
) -> None:
    """Read every image of a data set and say what is wrong with it."""
    from streetvision.pipeline.data_check import check_data

    check_data(root, overrides or [], labels=labels, embeddings=embeddings, page=page, console=open_console())


def import_(
    source: str,
    folder: Annotated[Path, typer.Option("--to", help="Folder of the index, and of images that are no files yet.")],
    overrides: Overrides = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy images that are files, too.")] = False,
    consistent: Annotated[str | None, typer.Option(metavar="COLUMN=WORD,WORD", help=CONSISTENT_HELP)] = None,
) -> None:
    """Index a folder, CSV, labels.json, Hugging Face dataset or WebDataset tars; the same line again goes on."""
    from streetvision.pipeline.data_import import import_data

    import_data(source, folder, overrides or [], copy=copy, consistent=consistent, console=open_console())


def scenes(folder: Path, overrides: Overrides = None) -> None:
    """Draw procedural street scenes with a CSV index: scenes.count=1600 scenes.first_seed=0."""
    from streetvision.data.scenes import write_scenes
    from streetvision.pipeline.compose import compose_config

    console = open_console()
    config = compose_config(overrides or []).scenes
    console.line("data", f"{config.count} scenes: {write_scenes(folder, config, console)}")


def open_console() -> "Console":
    """Where a verb prints; loaded when one runs."""
    from streetvision.pipeline.console import Console

    return Console()


DATA_VERBS: dict[str, Callable[..., None]] = {"check": check, "import": import_, "scenes": scenes}
