"""Drawn street scenes, the embedded data set: with roadwork (label 1) or without (label 0).

A scene is a function of its seed. Each part of it has its own random stream. So the street, its traffic and the objects
that resemble roadwork are the same with and without a site, and carry no information about the label.
"""

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator

from streetvision.contracts.errors import ArtifactError, ConfigError
from streetvision.contracts.progress import Progress
from streetvision.contracts.settings import Section, Seed
from streetvision.io.atomic import cannot_write, read_json, write_bytes_atomic, write_json_atomic, write_text_atomic
from streetvision.io.process_pool import usable_cores
from streetvision.synthetic.canvas import MARK, Canvas
from streetvision.synthetic.random_draws import Dice
from streetvision.synthetic.street import Street, aim_camera, draw_backdrop, lay_street
from streetvision.synthetic.street_furniture import everyday_props
from streetvision.synthetic.traffic import Prop
from streetvision.synthetic.weather import draw_condition, finish
from streetvision.synthetic.work_site import roadwork_props

RENDERER_VERSION = 2
"""Incremented when the same seed and configuration would give another image."""
_SUPERSAMPLING = 2
"""Canvas pixels per image pixel along each side, for smooth edges."""
_ATTEMPTS = 6
"""Number of sites that are tried; the last one is used even if its visible area is outside the range."""
_BATCH = 32
"""Scenes per task of a worker process."""
_JPEG_QUALITY = 90
IDENTITY = "scenes.json"
"""The file that records the configuration of the scenes in its folder."""
_LABEL, _SETTING, _BACKDROP, _EVERYDAY, _LENS, _SITE = range(6)
"""Random streams."""


class SceneConfig(Section):
    """The scenes that are drawn if `data.root` is null."""

    count: int = Field(default=1600, ge=1)
    """Number of scenes."""
    first_seed: Seed = 0
    """Seed of the first scene; each further scene has the next one."""
    width: int = Field(default=320, ge=64, le=4096)
    """Width of an image in pixels."""
    height: int = Field(default=240, ge=64, le=4096)
    """Height of an image in pixels."""
    positive_fraction: float = Field(default=0.5, ge=0.0, le=1.0)
    """Probability that a scene has roadwork."""
    area_fraction: tuple[float, float] = (0.02, 0.2)
    """Smallest and largest share of the image that roadwork covers. It holds for nearly all of them."""

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        low, high = self.area_fraction
        if not 0.0 < low < high <= 0.5:
            raise ValueError(f"area_fraction must be [low, high] with 0 < low < high <= 0.5, not [{low}, {high}]")
        return self


@dataclass(frozen=True)
class Scene:
    """An image and its annotations."""

    image: NDArray[np.uint8]
    """(H, W, 3) uint8 RGB."""
    label: int
    """1 with roadwork, 0 without."""
    source: str
    """Condition of light and weather: a key of weather.CONDITIONS."""
    roadwork: NDArray[np.bool_]
    """(H, W): True where roadwork is visible."""


def draw_scene(seed: int, config: SceneConfig) -> Scene:
    """Draw the scene of a seed; `count` and `first_seed` have no effect on it."""
    label = int(Dice(seed, _LABEL).chance(config.positive_fraction))
    return draw_labeled(seed, label, config)


def draw_labeled(seed: int, label: int, config: SceneConfig) -> Scene:
    """Draw the scene of a seed with roadwork (label 1) or without (label 0); the street is the same."""
    setting = _set_scene(seed, config)
    canvas = _add_site(setting, seed, config) if label else _draw_props(setting, [])
    image = finish(canvas, setting.condition, reduction=_SUPERSAMPLING, dice=Dice(seed, _LENS))
    return Scene(np.asarray(image), label, setting.condition, _roadwork_mask(canvas))


def write_scenes(folder: Path, config: SceneConfig, progress: Progress) -> Path:
    """Draw the scenes of `config` into `folder` and return the path of their index.

    The index is written last and has the columns path (relative to the folder), label, group (one per scene) and
    source. If all scenes exist already, nothing is written. Scenes of another configuration are replaced.

    Raises:
        ArtifactError: The folder cannot be written.
        ConfigError: The folder has files, but no scenes.
    """
    index = folder / "index.csv"
    if _is_complete(folder, config):
        return index
    try:
        _check_replaceable(folder)
        # Without an index the folder is incomplete, so an interrupted run is repeated.
        index.unlink(missing_ok=True)
        write_json_atomic(folder / IDENTITY, _identity(config))
        (folder / "images").mkdir(parents=True, exist_ok=True)
        rows = list(progress.track(_draw_all(folder, config), total=config.count, label="scenes"))
    except OSError as error:
        raise cannot_write(folder, error) from error
    write_text_atomic(index, "\n".join(["path,label,group,source", *rows]) + "\n")
    return index


@dataclass(frozen=True)
class _Setting:
    """A street without objects, and the objects that every version of the scene has."""

    condition: str
    street: Street
    canvas: Canvas
    everyday: list[Prop]


def _set_scene(seed: int, config: SceneConfig) -> _Setting:
    dice = Dice(seed, _SETTING)
    condition, light = draw_condition(dice)
    camera = aim_camera(config.width * _SUPERSAMPLING, config.height * _SUPERSAMPLING, dice)
    street = lay_street(dice)
    canvas = Canvas.blank(camera, light)
    draw_backdrop(canvas, street, Dice(seed, _BACKDROP))
    return _Setting(condition, street, canvas, everyday_props(street, Dice(seed, _EVERYDAY)))


def _draw_props(setting: _Setting, site: Sequence[Prop], *, in_front: bool = False) -> Canvas:
    """The street with all objects, from far to near; with `in_front` nothing occludes the site."""
    canvas = setting.canvas.copy()
    groups = [setting.everyday, site] if in_front else [[*setting.everyday, *site]]
    for prop in chain.from_iterable(sorted(group, key=lambda prop: -prop.z) for group in groups):
        prop.draw(canvas)
    return canvas


def _add_site(setting: _Setting, seed: int, config: SceneConfig) -> Canvas:
    """The street with all objects and a site.

    Traffic may occlude a site, so sites are drawn until the visible area of one is in the configured range. The last
    one is drawn in front of everything and used in any case.
    """
    low, high = config.area_fraction
    for attempt in range(_ATTEMPTS):
        dice = Dice(seed, _SITE, attempt)
        target = dice.log_between(low, high)
        site = roadwork_props(setting.street, setting.canvas.camera, target, dice)
        canvas = _draw_props(setting, site, in_front=attempt == _ATTEMPTS - 1)
        if low <= _roadwork_mask(canvas).mean() <= high:
            break
    return canvas


def _roadwork_mask(canvas: Canvas) -> NDArray[np.bool_]:
    """(H, W): the pixels of the image that are covered by roadwork to at least one half."""
    covered = canvas.image.getchannel("A").reduce(_SUPERSAMPLING)
    return np.asarray(covered) >= MARK // 2


def _image_path(seed: int) -> str:
    return f"images/{seed:08d}.jpg"


def _identity(config: SceneConfig) -> dict[str, object]:
    return {"renderer_version": RENDERER_VERSION, "config": config.model_dump(mode="json")}


def _is_complete(folder: Path, config: SceneConfig) -> bool:
    """Whether `folder` contains exactly the scenes of `config`, drawn by this version of the renderer."""
    if not (folder / "index.csv").is_file():
        return False
    try:
        if read_json(folder / IDENTITY) != _identity(config):
            return False
    except ArtifactError:
        return False
    present = {path.name for path in (folder / "images").glob("*.jpg")}
    return all(Path(_image_path(seed)).name in present for seed in _seeds(config))


def _check_replaceable(folder: Path) -> None:
    """Raise ConfigError if `folder` has files that `write_scenes` did not write."""
    if (folder / IDENTITY).is_file() or not folder.is_dir():
        return
    # Hidden files are those of the operating system, and of a run that was killed while it wrote its first file.
    if found := sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")):
        raise ConfigError(
            f"{str(folder)!r} is not empty and has no scenes: it has {found[0]!r}", "choose a new folder for the scenes"
        )


def _seeds(config: SceneConfig) -> range:
    return range(config.first_seed, config.first_seed + config.count)


def _draw_all(folder: Path, config: SceneConfig) -> Iterator[str]:
    """Draw every scene and yield its index row, in the order of the seeds."""
    seeds = _seeds(config)
    batches = [seeds[start : start + _BATCH] for start in range(0, len(seeds), _BATCH)]
    # At least two batches per worker: a process takes long to start.
    workers = min(usable_cores(), math.ceil(len(batches) / 2))
    if workers == 1:
        yield from chain.from_iterable(_draw_batch(folder, config, batch) for batch in batches)
        return
    # Not fork: the caller may have started threads of torch, which a forked process would not have.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        count = len(batches)
        yield from chain.from_iterable(pool.map(_draw_batch, [folder] * count, [config] * count, batches))


def _draw_batch(folder: Path, config: SceneConfig, seeds: Iterable[int]) -> list[str]:
    """Write the images of `seeds` and return their index rows."""
    rows = []
    for seed in seeds:
        scene = draw_scene(seed, config)
        path = _image_path(seed)
        encoded = io.BytesIO()
        Image.fromarray(scene.image).save(encoded, "JPEG", quality=_JPEG_QUALITY)
        # Atomic, because a worker of a killed run may still write while the resumed run reads.
        write_bytes_atomic(folder / path, encoded.getvalue())
        rows.append(f"{path},{scene.label},scene-{seed},{scene.source}")
    return rows
