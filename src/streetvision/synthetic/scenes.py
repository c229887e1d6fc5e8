"""Procedural street scenes, the embedded data set: roadwork (1) or none (0).

A scene is a function of its seed. Each part of it draws from a stream of its own, so the street, its traffic and all
that merely looks like roadwork are the same whether or not a site stands there, and tell nothing about the label.
"""

import io
import math
import os
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
from pydantic import BaseModel, ConfigDict, Field, model_validator

from streetvision.contracts.errors import ArtifactError
from streetvision.contracts.progress import Progress
from streetvision.contracts.settings import Seed
from streetvision.io.atomic import cannot_write, read_json, write_bytes_atomic, write_json_atomic, write_text_atomic
from streetvision.synthetic.canvas import MARK, Canvas
from streetvision.synthetic.random_draws import Dice
from streetvision.synthetic.street import Street, aim_camera, draw_backdrop, lay_street
from streetvision.synthetic.street_furniture import everyday_props
from streetvision.synthetic.traffic import Prop
from streetvision.synthetic.weather import draw_condition, finish
from streetvision.synthetic.work_site import roadwork_props

RENDERER_VERSION = 2
"""Raised whenever the same seed and configuration would give another picture."""
_SUPERSAMPLING = 2
_ATTEMPTS = 6
"""Sites that are tried before one is taken whose visible share is outside the range."""
_BATCH = 32
"""Scenes that a process draws between two reports."""
_JPEG_QUALITY = 90
_LABEL, _SETTING, _BACKDROP, _EVERYDAY, _LENS, _SITE = range(6)
"""Streams of dice."""


class SceneConfig(BaseModel):
    """Which scenes to draw, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int = Field(default=1600, ge=1)
    """Number of scenes."""
    first_seed: Seed = 0
    """Seed of the first scene; the others follow one by one."""
    width: int = Field(default=320, ge=64, le=4096)
    """Pixels."""
    height: int = Field(default=240, ge=64, le=4096)
    """Pixels."""
    positive_fraction: float = Field(default=0.5, ge=0.0, le=1.0)
    """Probability that a scene has roadwork, 0 to 1."""
    area_fraction: tuple[float, float] = (0.02, 0.2)
    """Least and most of the image's area that roadwork covers where there is any, 0 to 1; met in nearly all scenes."""

    @model_validator(mode="after")
    def _range_is_a_range(self) -> Self:
        low, high = self.area_fraction
        if not 0.0 < low < high <= 0.5:
            raise ValueError(f"area_fraction is (least, most) with 0 < least < most <= 0.5, got ({low}, {high})")
        return self


@dataclass(frozen=True)
class Scene:
    """One picture and what is known of it."""

    image: NDArray[np.uint8]
    """(H, W, 3) uint8 RGB."""
    label: int
    """1 with roadwork, 0 without."""
    source: str
    """Condition of light and weather: a key of scene_weather.CONDITIONS."""
    roadwork: NDArray[np.bool_]
    """(H, W): where roadwork is what one sees."""

    @property
    def roadwork_share(self) -> float:
        """Share of the image's area where roadwork is what one sees, 0 to 1."""
        return float(self.roadwork.mean())


def draw_scene(seed: int, config: SceneConfig) -> Scene:
    """The scene of one seed; `count` and `first_seed` have no influence on it."""
    label = int(Dice(seed, _LABEL).chance(config.positive_fraction))
    return draw_labelled(seed, label, config)


def draw_labelled(seed: int, label: int, config: SceneConfig) -> Scene:
    """The scene of one seed with roadwork (label 1) or without: the same street either way."""
    setting = _set_scene(seed, config)
    canvas = _add_site(setting, seed, config) if label else _populated(setting, [])
    photograph = finish(canvas, setting.condition, reduction=_SUPERSAMPLING, dice=Dice(seed, _LENS))
    return Scene(np.asarray(photograph), label, setting.condition, _marked(canvas))


def write_scenes(folder: Path, config: SceneConfig, progress: Progress) -> Path:
    """Draw the scenes of `config` into `folder` and return the path of their index.

    index.csv has the columns path (relative to the folder), label, group (one a scene) and source. It is written last.
    Scenes that are all there already are left as they are. Raises ArtifactError when the folder cannot be written.
    """
    index = folder / "index.csv"
    if _is_complete(folder, config):
        return index
    try:
        index.unlink(missing_ok=True)
        (folder / "images").mkdir(parents=True, exist_ok=True)
        rows = list(progress.track(_draw_all(folder, config), total=config.count, label="scenes"))
    except OSError as error:
        raise cannot_write(folder, error) from error
    write_json_atomic(folder / "scenes.json", _identity(config))
    write_text_atomic(index, "\n".join(["path,label,group,source", *rows]) + "\n")
    return index


@dataclass(frozen=True)
class _Setting:
    """A street before anything stands on it, and what will."""

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


def _populated(setting: _Setting, site: Sequence[Prop], *, in_front: bool = False) -> Canvas:
    """The street with everything on it, far things first; `in_front` lets nothing hide the site."""
    canvas = setting.canvas.copy()
    groups = [setting.everyday, site] if in_front else [[*setting.everyday, *site]]
    for prop in chain.from_iterable(sorted(group, key=lambda prop: -prop.z) for group in groups):
        prop.draw(canvas)
    return canvas


def _add_site(setting: _Setting, seed: int, config: SceneConfig) -> Canvas:
    """The populated street with a site.

    Traffic may hide a site, so sites are drawn until one shows as much as was asked for; the last is taken as it is.
    """
    low, high = config.area_fraction
    for attempt in range(_ATTEMPTS):
        dice = Dice(seed, _SITE, attempt)
        target = dice.log_between(low, high)
        site = roadwork_props(setting.street, setting.canvas.camera, target, dice)
        canvas = _populated(setting, site, in_front=attempt == _ATTEMPTS - 1)
        if low <= _marked(canvas).mean() <= high:
            break
    return canvas


def _marked(canvas: Canvas) -> NDArray[np.bool_]:
    """(H, W) of the picture: the pixels of which roadwork covers at least half."""
    covered = canvas.image.getchannel("A").reduce(_SUPERSAMPLING)
    return np.asarray(covered) >= MARK // 2


def _image_path(seed: int) -> str:
    return f"images/{seed:08d}.jpg"


def _identity(config: SceneConfig) -> dict[str, object]:
    return {"renderer_version": RENDERER_VERSION, "config": config.model_dump(mode="json")}


def _is_complete(folder: Path, config: SceneConfig) -> bool:
    """Whether `folder` holds exactly the scenes of `config`, drawn by this renderer."""
    if not (folder / "index.csv").is_file():
        return False
    try:
        if read_json(folder / "scenes.json") != _identity(config):
            return False
    except ArtifactError:
        return False
    present = {path.name for path in (folder / "images").glob("*.jpg")}
    return all(Path(_image_path(seed)).name in present for seed in _seeds(config))


def _seeds(config: SceneConfig) -> range:
    return range(config.first_seed, config.first_seed + config.count)


def _draw_all(folder: Path, config: SceneConfig) -> Iterator[str]:
    """Draw every scene and yield its row of the index, in the order of the seeds."""
    seeds = _seeds(config)
    batches = [seeds[start : start + _BATCH] for start in range(0, len(seeds), _BATCH)]
    workers = min(os.cpu_count() or 1, math.ceil(len(batches) / 2))
    if workers == 1:
        yield from chain.from_iterable(_draw_batch(folder, config, batch) for batch in batches)
        return
    # Not by fork: the caller may hold the threads of torch.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        count = len(batches)
        yield from chain.from_iterable(pool.map(_draw_batch, [folder] * count, [config] * count, batches))


def _draw_batch(folder: Path, config: SceneConfig, seeds: Iterable[int]) -> list[str]:
    """Write the images of `seeds` and return their rows of the index."""
    rows = []
    for seed in seeds:
        scene = draw_scene(seed, config)
        path = _image_path(seed)
        encoded = io.BytesIO()
        Image.fromarray(scene.image).save(encoded, "JPEG", quality=_JPEG_QUALITY)
        # Whole at any moment: a process whose parent was killed goes on for a while, beside the run that resumes.
        write_bytes_atomic(folder / path, encoded.getvalue())
        rows.append(f"{path},{scene.label},scene-{seed},{scene.source}")
    return rows
