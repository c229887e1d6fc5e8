"""The data of an experiment: a labeled folder, or scenes that are drawn once."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from streetvision.contracts.errors import ConfigError
from streetvision.io.atomic import sha256_json
from streetvision.pipeline.config import compose_config
from streetvision.pipeline.console import Console
from streetvision.synthetic.scenes import write_scenes

NAME_DIGITS = 12
"""Digits of a settings digest in the name of a folder."""
VARIABLE = re.compile(r"\$\{?(\w+)\}?")


def with_environment(name: str, settings: Sequence[str], console: Console) -> tuple[str, ...] | None:
    """Return the settings of a data set with the values of the environment variables in them.

    None if one is not set; the console receives a warning that the data set is left out.
    """
    for variable in (found for setting in settings for found in VARIABLE.findall(setting)):
        if variable not in os.environ:
            console.warn(f"data set {name!r} is left out: the environment variable {variable} is not set")
            return None
    return tuple(map(os.path.expandvars, settings))


def no_data_sets() -> ConfigError:
    """Return the error of a table none of whose data sets is left."""
    return ConfigError("no data set of the table is available", "set the environment variables that it names")


def drawn_or_given(
    name: str, settings: Sequence[str], overrides: Sequence[str], folder: Path, console: Console
) -> tuple[str, ...]:
    """Return the settings that select a data set, after drawing its scenes unless they have been drawn.

    Args:
        name: Name of the data set.
        settings: Its settings; data.root=... if it is given, else scenes.*=... of the scenes.
        overrides: Settings of the command line, which may contain both kinds, too.
        folder: For the scenes.
        console: Receives progress.

    Raises:
        ConfigError: There is a data.root as well as settings of scenes.
    """
    scene_settings, rest = split_scene_settings([*settings, *overrides])
    if any(setting.startswith("data.root=") for setting in rest):
        if scene_settings:
            raise ConfigError(
                f"data set {name!r} has a data.root, and {scene_settings[0]} draws scenes", "leave out one of the two"
            )
        return tuple(settings)
    scenes = compose_config(scene_settings).scenes
    drawn = folder / f"{name}_{sha256_json(scenes.model_dump(mode='json'))[:NAME_DIGITS]}"
    write_scenes(drawn, scenes, console)
    return (*split_scene_settings(settings)[1], f"data.root={drawn.absolute()}")


def split_scene_settings(settings: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the settings of scenes, and the others."""
    scenes = [setting for setting in settings if setting.startswith("scenes.")]
    return scenes, [setting for setting in settings if setting not in scenes]
