"""The verbs below `streetvision data`, and what every verb takes."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from streetvision.pipeline.console import Console

CONSISTENT_HELP = "Leave out images whose text in COLUMN has none of the words in class 1, or one in class 0."


def key_value(example: str) -> Any:
    """What is written behind a command, and its help."""
    return typer.Argument(metavar="KEY=VALUE", help=example)


Overrides = Annotated[list[str] | None, key_value("Settings: training.epochs=5")]


def check(
    root: Annotated[str, typer.Argument(help="The data set, as data.root= takes it.")],
    overrides: Annotated[list[str] | None, key_value("Settings: data.group_column=ride")] = None,
    labels: Annotated[bool, typer.Option("--labels", help="Also doubt labels, by a classifier on features.")] = False,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Also ask the backbone (model=NAME) which images are nearly the same.")
    ] = False,
    page: Annotated[
        Path | None, typer.Option("--page", help="The page with the pictures; outputs/NAME_check.html if left out.")
    ] = None,
) -> None:
    """Read every image of a data set and say what is wrong with it."""
    from streetvision.pipeline.data.check import check_data

    check_data(root, overrides or [], labels=labels, embeddings=embeddings, page=page, console=open_console())


def import_(
    source: Annotated[str, typer.Argument(help="A folder, CSV, labels.json, hf://owner/name, tar or folder of tars.")],
    folder: Annotated[Path, typer.Option("--to", help="Folder of the index, and of images that are no files yet.")],
    overrides: Annotated[list[str] | None, key_value("Settings: data.group_column=ride")] = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy images that are files, too.")] = False,
    consistent: Annotated[str | None, typer.Option(metavar="COLUMN=WORD,WORD", help=CONSISTENT_HELP)] = None,
) -> None:
    """Index a folder, CSV, labels.json, Hugging Face dataset or WebDataset tars; the same line again goes on."""
    from streetvision.pipeline.data.import_data import import_data

    import_data(source, folder, overrides or [], copy=copy, consistent=consistent, console=open_console())


def scenes(
    folder: Annotated[Path, typer.Argument(help="A new folder, or one of earlier scenes with the same settings.")],
    overrides: Annotated[list[str] | None, key_value("Settings: scenes.count=1600 scenes.first_seed=0")] = None,
) -> None:
    """Draw procedural street scenes with a CSV index."""
    from streetvision.pipeline.config import compose_config
    from streetvision.synthetic.scenes import write_scenes

    console = open_console()
    config = compose_config(overrides or []).scenes
    console.line("data", f"{config.count} scenes: {write_scenes(folder, config, console)}")


def open_console() -> "Console":
    """Where a verb prints; loaded when one runs."""
    from streetvision.pipeline.console import Console

    return Console()


DATA_VERBS: dict[str, Callable[..., None]] = {"check": check, "import": import_, "scenes": scenes}
