"""streetvision data check | import | scenes."""

from pathlib import Path
from typing import Annotated

import typer

from streetvision.cli.options import key_value, open_console
from streetvision.io.user_paths import user_source

CONSISTENT_HELP = (
    "Leave out class-1 images whose COLUMN contains no WORD, and class-0 images whose COLUMN contains one."
)


def check(
    root: Annotated[str, typer.Argument(help="The data set, as for data.root=.")],
    overrides: Annotated[list[str] | None, key_value("Settings: data.group_column=ride")] = None,
    labels: Annotated[
        bool, typer.Option("--labels", help="Also list suspicious labels, by a classifier on features.")
    ] = False,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Also find near-duplicates by the features of model=NAME.")
    ] = False,
    page: Annotated[
        Path | None, typer.Option("--page", help="The HTML page; default: outputs/NAME_check.html.")
    ] = None,
) -> None:
    """Find corrupt files, duplicates, conflicts and leaks."""
    from streetvision.pipeline.data.check import check_data

    check_data(
        user_source(root), overrides or [], labels=labels, embeddings=embeddings, page=page, console=open_console()
    )


def import_(
    source: Annotated[str, typer.Argument(help="A folder, CSV, labels.json, hf://owner/name, tar or folder of tars.")],
    folder: Annotated[Path, typer.Option("--to", help="Folder for the index and for images from archives.")],
    overrides: Annotated[list[str] | None, key_value("Settings: data.group_column=ride")] = None,
    copy: Annotated[bool, typer.Option("--copy", help="Also copy images that are files already.")] = False,
    consistent: Annotated[str | None, typer.Option(metavar="COLUMN=WORD,WORD", help=CONSISTENT_HELP)] = None,
) -> None:
    """Index a folder, table, archive or Hugging Face dataset.

    Run the same command again to resume an interrupted import.
    """
    from streetvision.pipeline.data.import_data import import_data

    import_data(user_source(source), folder, overrides or [], copy=copy, consistent=consistent, console=open_console())


def scenes(
    folder: Annotated[
        Path, typer.Argument(help="A new folder, or one with scenes, which are replaced if the settings differ.")
    ],
    overrides: Annotated[list[str] | None, key_value("Settings: scenes.count=1600 scenes.first_seed=0")] = None,
) -> None:
    """Draw street scenes with a CSV index."""
    from streetvision.pipeline.config import compose_config
    from streetvision.pipeline.settings import warn_without_effect
    from streetvision.synthetic.scenes import SceneConfig, write_scenes

    console = open_console()
    composed = compose_config(overrides or [])
    warn_without_effect(composed, {SceneConfig}, "data scenes", console)
    config = composed.scenes
    console.line("data", f"{config.count} scenes: {write_scenes(folder, config, console)}")
