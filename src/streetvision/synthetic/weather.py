"""Light and weather of the drawn scenes, and the effects of lens and sensor."""

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from streetvision.synthetic.canvas import Canvas, Light
from streetvision.synthetic.random_draws import Dice, as_uint8, mix, scaled

Gray = NDArray[np.float32]
Picture = NDArray[np.uint8]
_NOISE_TILE = 512
_GLOW_REDUCTION = 4


def _day(dice: Dice) -> Light:
    overcast = dice.chance(0.4)
    level = dice.between(0.95, 1.25)
    warmth = 0.0 if overcast else dice.between(0.0, 0.07)
    haze = dice.near((196, 204, 212) if overcast else (198, 214, 232), 16)
    sun = 0.0 if overcast else dice.side() * dice.between(0.4, 1.0)
    ambient = (level * (1 + warmth), level, level * (1 - warmth))
    return Light(ambient, haze, dice.log_between(180.0, 900.0), sun, 0.0, lamps_lit=False)


def _dusk(dice: Dice) -> Light:
    level = dice.between(0.42, 0.7)
    haze = mix((232, 150, 92), (170, 140, 160), dice.unit())
    ambient = (level * dice.between(1.0, 1.18), level * 0.93, level * dice.between(0.82, 1.0))
    return Light(ambient, haze, dice.log_between(120.0, 500.0), dice.side() * 0.8, 0.25, lamps_lit=True)


def _night(dice: Dice) -> Light:
    level = dice.between(0.2, 0.36)
    haze = dice.pick(((16.0, 18.0, 32.0), (34.0, 28.0, 28.0), (10.0, 12.0, 20.0)))
    ambient = (level * dice.between(0.95, 1.2), level * 0.95, level * dice.between(0.9, 1.25))
    return Light(ambient, haze, dice.log_between(90.0, 300.0), 0.0, dice.between(0.5, 0.85), lamps_lit=True)


def _rain(dice: Dice) -> Light:
    level = dice.between(0.48, 0.85)
    haze = scaled((192, 200, 208), level)
    ambient = (level * 0.96, level, level * 1.05)
    return Light(
        ambient, haze, dice.log_between(60.0, 180.0), 0.0, 0.12, lamps_lit=level < 0.6, wet=dice.between(0.25, 0.55)
    )


def _fog(dice: Dice) -> Light:
    level = dice.between(0.6, 0.95)
    haze = scaled(dice.near((206, 208, 210), 8), level)
    return Light((level, level, level), haze, dice.log_between(34.0, 90.0), 0.0, 0.1, lamps_lit=level < 0.7)


CONDITIONS: Mapping[str, tuple[float, Callable[[Dice], Light]]] = MappingProxyType(
    {
        "day": (0.42, _day),
        "dusk": (0.13, _dusk),
        "night": (0.2, _night),
        "rain": (0.15, _rain),
        "fog": (0.1, _fog),
    }
)
"""Condition -> its probability and a function that draws its light. The probabilities sum to 1."""


def draw_condition(dice: Dice) -> tuple[str, Light]:
    """Draw a condition by its probability, and its light."""
    remaining = dice.unit()
    for name, (share, light) in CONDITIONS.items():
        remaining -= share
        if remaining < 0:
            return name, light(dice)
    # Because of rounding the sum may be slightly below 1.
    return name, light(dice)


def finish(canvas: Canvas, condition: str, *, reduction: int, dice: Dice) -> Image.Image:
    """Return the final image: scaled down by `reduction`, with wet road, glare, rain, blur, exposure and noise."""
    image = canvas.image.convert("RGB").reduce(reduction)
    if canvas.light.wet:
        _mirror_road(image, int(canvas.camera.horizon / reduction), canvas.light.wet * dice.between(0.5, 0.8))
    if canvas.glows:
        image = ImageChops.add(image, _glare(canvas, image.size, reduction))
    if condition == "rain":
        image = _streak(image, dice)
    image = _blur(image, dice)
    return Image.fromarray(_expose(np.asarray(image), condition, dice))


def _mirror_road(image: Image.Image, horizon: int, share: float) -> None:
    """Blend a flipped and blurred copy of the image above row `horizon` into the ground below it."""
    width, below = image.width, image.height - horizon
    above = image.crop((0, 0, width, horizon)).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    # Reflections on wet asphalt are stretched vertically, so rows are reduced more than columns.
    smeared = above.resize((width // 4, below // 16 + 1), Image.Resampling.BOX)
    ground = (0, horizon, width, image.height)
    mirrored = smeared.resize((width, below), Image.Resampling.BILINEAR)
    image.paste(Image.blend(image.crop(ground), mirrored, share), ground)


def _glare(canvas: Canvas, size: tuple[int, int], reduction: int) -> Image.Image:
    """An image of the halos of all lamps that are not occluded, on black."""
    factor = _GLOW_REDUCTION * reduction
    halo = Image.new("RGB", (size[0] // _GLOW_REDUCTION + 1, size[1] // _GLOW_REDUCTION + 1))
    pen = ImageDraw.Draw(halo)
    for glow in canvas.glows:
        x, y = int(glow.at[0]), int(glow.at[1])
        if not (0 <= x < canvas.camera.width and 0 <= y < canvas.camera.height):
            continue
        # Any other color at this pixel means that an object occludes the lamp.
        if canvas.image.getpixel((x, y)) != glow.core:
            continue
        radius = max(0.7, 1.8 * glow.radius / factor)
        column, row = x / factor, y / factor
        corners = (column - radius, row - radius, column + radius, row + radius)
        pen.ellipse(corners, fill=as_uint8(scaled(glow.color, 0.9)))
    # A narrow and a wide blur together: a bright center in a faint halo.
    halo = ImageChops.add(halo.filter(ImageFilter.BoxBlur(1)), halo.filter(ImageFilter.GaussianBlur(4)), scale=1.2)
    return halo.resize(size, Image.Resampling.BILINEAR)


def _streak(image: Image.Image, dice: Dice) -> Image.Image:
    """Rain as slanted bright strokes."""
    mask = Image.new("L", image.size)
    pen = ImageDraw.Draw(mask)
    width, height = image.size
    slant = dice.between(-0.25, 0.25)
    for _ in range(dice.integer(70, 220)):
        x, y = dice.between(-20, width + 20), dice.between(-20, height)
        long = height * dice.log_between(0.02, 0.12)
        pen.line((x, y, x + slant * long, y + long), fill=dice.integer(30, 110))
    image.paste((206, 212, 220), (0, 0), mask)
    return image


def _blur(image: Image.Image, dice: Dice) -> Image.Image:
    """Defocus in 40 % and motion blur in 8 % of the scenes, relative to the height of the image."""
    unit = image.height / 240.0
    if dice.chance(0.4):
        image = image.filter(ImageFilter.BoxBlur(dice.between(0.35, 1.0) * unit))
    if dice.chance(0.08):
        image = image.filter(ImageFilter.BoxBlur((dice.between(0.6, 1.4) * unit, 0)))
    return image


@cache
def _noise() -> Gray:
    """A tile of standard normal noise; each scene uses it from another offset."""
    generator = np.random.default_rng(21)
    return generator.standard_normal((_NOISE_TILE, _NOISE_TILE), dtype=np.float32)


def _expose(pixels: Picture, condition: str, dice: Dice) -> Picture:
    """Apply white balance, exposure, vignetting and noise to an image (H, W, 3) uint8."""
    height, width, _ = pixels.shape
    gain = np.array([dice.between(0.9, 1.1) for _ in range(3)], np.float32) * np.float32(dice.between(0.85, 1.15))
    dim = 1.0 - _vignette(height, width) * np.float32(dice.between(0.05, 0.3))
    # At night the gain of the sensor is higher, and so is its noise.
    rough = dice.between(1.0, 3.5) + (2.5 if condition == "night" else 0.0)
    rows = (np.arange(height) + dice.integer(0, _NOISE_TILE - 1)) % _NOISE_TILE
    columns = (np.arange(width) + dice.integer(0, _NOISE_TILE - 1)) % _NOISE_TILE
    grain = _noise()[rows[:, None], columns] * np.float32(rough) + np.float32(dice.between(-8.0, 14.0))
    # In place where possible: this runs on every pixel of every scene.
    out = pixels * dim[..., None]
    out *= gain
    out += grain[..., None]
    np.clip(out, 0.0, 255.0, out=out)
    return out.astype(np.uint8)


@cache
def _vignette(height: int, width: int) -> Gray:
    """Squared distance from the center (H, W), 1 in the corners."""
    y = np.linspace(-1.0, 1.0, height, dtype=np.float32)[:, None]
    x = np.linspace(-1.0, 1.0, width, dtype=np.float32)[None, :]
    return ((x * x + y * y) / 2.0).astype(np.float32)
