"""streetvision data import: index a data set in a folder."""

import time
from collections.abc import Sequence
from pathlib import Path

from streetvision.contracts.errors import ConfigError
from streetvision.contracts.settings import no_effect
from streetvision.data.sources.importer import IMPORT_SETTINGS, Consistency, import_images
from streetvision.io.atomic import cannot_write, remove_stray_temps
from streetvision.io.lock import run_lock
from streetvision.pipeline.config import compose_config
from streetvision.pipeline.console import Console
from streetvision.pipeline.settings import refuse_settings_of_options, warn_without_effect


def import_data(
    source: str, folder: Path, overrides: Sequence[str], *, copy: bool, consistent: str | None, console: Console
) -> None:
    """Index `source` in `folder`; `consistent` is COLUMN=WORD,WORD."""
    composed = compose_config(overrides, base={"data": {"root": source}})
    refuse_settings_of_options(composed, {"data.root": "the argument SOURCE"})
    config = composed.data
    if config.labels is not None:
        raise no_effect("data.labels", "images are imported", "set it for train")
    for name in ("group_pattern", "source_pattern"):
        if getattr(config, name) is not None:
            raise no_effect(f"data.{name}", "images are imported", "set it for data check and train")
    warn_without_effect(composed, [f"data.{name}" for name in IMPORT_SETTINGS], "data import", console)
    consistency = None if consistent is None else _consistency(consistent)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    started = time.perf_counter()
    with run_lock(folder / ".lock", option="--to ..."):
        remove_stray_temps(folder)
        counts = import_images(source, folder, config=config, copy=copy, consistency=consistency, progress=console)
    left_out = f"{counts['unreadable']} unreadable and {counts['inconsistent']} inconsistent images left out"
    console.line("import", f"{counts['rows']} images, {left_out}", seconds=time.perf_counter() - started)
    names = [override for override in overrides if override.startswith("data.class_names=")]
    console.next_command("streetvision", "data", "check", folder, *names)


def _consistency(text: str) -> Consistency:
    column, _, words = text.partition("=")
    stripped = tuple(word.strip() for word in words.split(",") if word.strip())
    if not column or not stripped:
        raise ConfigError(
            f"--consistent {text!r} is not COLUMN=WORD,WORD", "for example --consistent scene_description=cone,digger"
        )
    return Consistency(column, stripped)
