"""streetvision subnet reward | check-export."""

from pathlib import Path
from typing import Annotated

import typer

from streetvision.cli.errors import USER_ERROR
from streetvision.cli.options import BundlePath, key_value, open_console


def reward(
    bundle: BundlePath,
    overrides: Annotated[list[str] | None, key_value("Settings: reward.n_simulations=500")] = None,
) -> None:
    """Simulate the subnet's reward; accesses VAL_TEST."""
    from streetvision.subnet.reward import SUBNET_STATUS

    console = open_console()
    console.line("subnet", SUBNET_STATUS)
    from streetvision.pipeline.config import compose_config
    from streetvision.pipeline.run import launch_reward, reward_lines

    for line in reward_lines(launch_reward(bundle, compose_config(overrides or []), console=console)):
        console.text(line)


def check_export(
    folder: Annotated[Path, typer.Argument(help="A folder written by export --format miner.")],
    images: Annotated[list[Path], typer.Argument(help="Image files or folders.")],
    bundle: BundlePath,
    python: Annotated[
        Path | None, typer.Option(help="Python interpreter of another environment to load it in.")
    ] = None,
) -> None:
    """Compare a miner folder with its bundle."""
    from streetvision.pipeline.export import check_miner_folder

    if not check_miner_folder(folder, images, bundle, python=python, console=open_console()):
        raise typer.Exit(USER_ERROR)
