"""The street of a drawn scene without objects: sky, ground, lanes, buildings."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from streetvision.synthetic.buildings import Building
from streetvision.synthetic.canvas import Camera, Canvas, Flat
from streetvision.synthetic.random_draws import Color, Dice, as_uint8, mix, scaled

LANE = 3.3
"""Width of a lane, metres."""
FAR = 140.0
"""Distance at which the street ends, metres."""
_DEPTHS = tuple(float(z) for z in np.geomspace(1.8, FAR, 22))
_BLOCKS = 5
"""Largest number of buildings on each side."""

_WHITE: Color = (236, 234, 228)


@dataclass(frozen=True)
class Street:
    """Cross-section of the street, in metres from the camera's axis; left is negative."""

    left_kerb: float
    right_kerb: float
    lanes: tuple[float, ...]
    """Center of each lane, from left to right."""
    own_lane: int
    """Index of the camera's lane; traffic on the lanes left of it is oncoming."""
    pavement: float
    """Width of each pavement."""

    def wall(self, side: int) -> float:
        """Return x of the house fronts on a side (-1: left, 1: right)."""
        return self.left_kerb - self.pavement if side < 0 else self.right_kerb + self.pavement

    def kerb(self, side: int) -> float:
        """Return x of the kerb on a side (-1: left, 1: right)."""
        return self.left_kerb if side < 0 else self.right_kerb


def lay_street(dice: Dice) -> Street:
    """Draw the layout of a street with two to four lanes; the camera is on one of the right-hand lanes."""
    count = dice.integer(2, 4)
    # Right-hand traffic: the camera is in the right half of the street.
    own = dice.integer(count // 2, count - 1)
    left = -LANE * (own + 0.5) + dice.between(-0.5, 0.5)
    shoulder = dice.pick((0.3, 0.3, 2.2))
    lanes = tuple(left + LANE * (index + 0.5) for index in range(count))
    return Street(left - shoulder, left + LANE * count + shoulder, lanes, own, dice.between(1.8, 5.0))


def draw_backdrop(canvas: Canvas, street: Street, dice: Dice) -> None:
    """Draw sky, skyline, ground and buildings over the whole canvas."""
    _draw_sky(canvas, dice)
    _draw_skyline(canvas, dice)
    _draw_ground(canvas, street, dice)
    for side in (-1, 1):
        _draw_row(canvas, street, side, dice)


@cache
def cloud_tile() -> Image.Image:
    """Return a (256, 256) gray image of fractal noise, the same for all scenes."""
    generator = np.random.default_rng(20)
    total = np.zeros((256, 256), dtype=np.float32)
    for octave, weight in ((4, 1.0), (8, 0.6), (16, 0.35), (32, 0.2), (64, 0.1)):
        noise = Image.fromarray((generator.random((octave, octave)) * 255).astype(np.uint8))
        total += weight * np.asarray(noise.resize((256, 256), Image.Resampling.BICUBIC), dtype=np.float32)
    total -= total.min()
    return Image.fromarray((total * (255.0 / total.max())).astype(np.uint8))


def _draw_sky(canvas: Canvas, dice: Dice) -> None:
    camera, light = canvas.camera, canvas.light
    rows = int(camera.horizon) + 2
    low = light.haze
    high = mix(scaled(light.ambient, 92.0), (66.0, 128.0, 214.0), dice.between(0.2, 0.8) * min(1.0, light.ambient[1]))
    # In rain, in fog and in the dark the sky is nearly uniform.
    if light.visibility < 200.0 or light.lamps_lit:
        high = mix(low, scaled(low, 0.55), 0.8)
    # A quarter of the size is enough, because the sky has no sharp edges.
    small = (camera.width // 4, rows // 4 + 1)
    ramp = np.linspace(0.0, 1.0, small[1], dtype=np.float32)[:, None] ** 1.4
    column = np.asarray(high, np.float32) * (1.0 - ramp) + np.asarray(low, np.float32) * ramp
    sky = Image.fromarray(np.clip(column, 0, 255).astype(np.uint8)[:, None, :]).resize(small)
    corner, span = dice.integer(0, 120), dice.integer(60, 130)
    clouds = cloud_tile().crop((corner, corner // 2, corner + span, corner // 2 + span // 2))
    density = dice.between(0.0, 0.75)
    # Clouds are the parts of the noise above a level, which is lower for denser clouds.
    curve = [int(255 * min(1.0, max(0.0, (level / 255.0 - 0.75 + density * 0.6) * 2.2))) for level in range(256)]
    cloud = mix(low, scaled(light.ambient, 245.0), 0.6)
    sky.paste(as_uint8(cloud), (0, 0), clouds.resize(small, Image.Resampling.BILINEAR).point(curve))
    sky = sky.resize((camera.width, rows), Image.Resampling.BILINEAR)
    # The fourth channel marks roadwork.
    sky.putalpha(0)
    canvas.image.paste(sky, (0, 0))


def _draw_skyline(canvas: Canvas, dice: Dice) -> None:
    """Flat shapes of a distant town or of hills."""
    camera = canvas.camera
    x = 0.0
    tall = dice.between(0.03, 0.16) * camera.height
    while x < camera.width:
        step = dice.between(0.02, 0.09) * camera.width
        top = camera.horizon - tall * dice.between(0.3, 1.0)
        color = canvas.ink(dice.near((120, 124, 128), 22), FAR * 0.8)
        canvas.pen.rectangle((x, top, x + step, camera.horizon + 1), fill=color)
        x += step * dice.between(0.7, 1.2)


def _ribbon(canvas: Canvas, low: float, high: float, color: Color, depths: Sequence[float] = _DEPTHS) -> None:
    """A band of ground between two values of x, in short pieces that follow the bend and the haze."""
    left = [canvas.camera.pixel(low, 0.0, z) for z in depths]
    right = [canvas.camera.pixel(high, 0.0, z) for z in depths]
    for index in range(len(depths) - 1):
        corners = (left[index], right[index], right[index + 1], left[index + 1])
        canvas.pen.polygon(corners, fill=canvas.ink(color, (depths[index] + depths[index + 1]) / 2))


def _draw_ground(canvas: Canvas, street: Street, dice: Dice) -> None:
    asphalt = scaled((1.0, 1.0, 1.02), dice.between(86, 126))
    paving = scaled(dice.pick(((1.0, 0.98, 0.94), (1.0, 0.9, 0.8), (1.0, 1.0, 1.0))), dice.between(124, 172))
    verge = dice.pick(((92, 116, 66), (140, 136, 128), (112, 110, 84)))
    camera = canvas.camera
    # Later layers cover earlier ones: verge, pavement, kerb, asphalt.
    canvas.pen.rectangle((0, camera.horizon, camera.width, camera.height), fill=canvas.ink(verge, FAR))
    _ribbon(canvas, -400.0, 400.0, verge)
    _ribbon(canvas, street.wall(-1) - 1.0, street.wall(1) + 1.0, paving)
    for side in (-1, 1):
        kerb = street.kerb(side)
        _ribbon(canvas, min(kerb, kerb + side * 0.35), max(kerb, kerb + side * 0.35), scaled(paving, 1.16))
    _ribbon(canvas, street.left_kerb, street.right_kerb, asphalt)
    _draw_wear(canvas, street, asphalt, dice)
    _draw_markings(canvas, street, dice)


def _draw_wear(canvas: Canvas, street: Street, asphalt: Color, dice: Dice) -> None:
    """Wheel tracks, patches, manholes and cracks."""
    for middle in street.lanes:
        for wheel in (-0.8, 0.8):
            _ribbon(canvas, middle + wheel - 0.25, middle + wheel + 0.25, scaled(asphalt, 0.95), _DEPTHS[:14])
    # Repaired patches, lighter or darker than the asphalt.
    for _ in range(dice.integer(4, 12)):
        x, z = dice.between(street.left_kerb, street.right_kerb - 1.0), dice.log_between(2.5, 40.0)
        wide, deep = dice.between(0.3, 1.8), dice.between(0.4, 5.0)
        wide = min(wide, street.right_kerb - x)
        patch = scaled(asphalt, dice.between(0.74, 1.14))
        canvas.fill([(x, 0, z), (x + wide, 0, z), (x + wide, 0, z + deep), (x, 0, z + deep)], patch)
    # Manholes.
    for _ in range(dice.integer(0, 2)):
        x, z = dice.pick(street.lanes) + dice.between(-0.5, 0.5), dice.log_between(4.0, 25.0)
        ring = [(x + 0.35 * a, 0.0, z + 0.35 * c) for a, c in _OCTAGON]
        canvas.fill(ring, scaled(asphalt, 0.5))


_OCTAGON: tuple[Flat, ...] = tuple(
    (float(np.cos(angle)), float(np.sin(angle))) for angle in np.linspace(0, 2 * np.pi, 13)[:-1]
)


def _draw_markings(canvas: Canvas, street: Street, dice: Dice) -> None:
    """Lane lines, edge lines and sometimes a zebra crossing."""
    paint = scaled(_WHITE, dice.between(0.72, 1.0))
    center_paint = dice.pick((paint, paint, (222, 178, 62)))
    for left, right in zip(street.lanes, street.lanes[1:], strict=False):
        x = (left + right) / 2
        # The line between the two directions may be solid and yellow.
        against_traffic = right == street.lanes[street.own_lane]
        if against_traffic and dice.chance(0.6):
            _ribbon(canvas, x - 0.07, x + 0.07, center_paint)
            continue
        # Dashes of 3 m with gaps of 5 m.
        start = dice.between(0.0, 6.0)
        for index in range(11):
            near = max(1.0, start + 8.0 * index)
            _ribbon(canvas, x - 0.07, x + 0.07, paint, (near, near + 3.0))
    if dice.chance(0.6):
        for side in (-1, 1):
            x = street.kerb(side) - side * 0.3
            _ribbon(canvas, x - 0.06, x + 0.06, paint, _DEPTHS[::2])
    # A zebra crossing: stripes of 0.5 m with gaps of the same width.
    if dice.chance(0.25):
        z, x = dice.log_between(5.0, 24.0), street.left_kerb + 0.3
        while x < street.right_kerb - 0.5:
            _ribbon(canvas, x, x + 0.5, paint, (z, z + 3.0))
            x += 1.0


def _draw_row(canvas: Canvas, street: Street, side: int, dice: Dice) -> None:
    """The buildings of one side, from far to near."""
    fronts = []
    # The row may start behind the camera.
    z = dice.between(-6.0, 8.0)
    for _ in range(_BLOCKS):
        deep = dice.between(9.0, 26.0)
        if dice.chance(0.86):
            fronts.append((max(z, 2.0), z + deep))
        z += deep + dice.pick((0.0, 0.0, 0.0, 4.0, 12.0))
    for near, far in reversed(fronts):
        Building(canvas, side, street.wall(side), near, far, dice).draw()


def aim_camera(width: int, height: int, dice: Dice) -> Camera:
    """Draw the camera of a scene: a dashboard camera with random height, heading and pitch."""
    return Camera(
        width=width,
        height=height,
        focal=width * dice.between(0.78, 1.0),
        center=width * dice.between(0.38, 0.62),
        horizon=height * dice.between(0.40, 0.52),
        eye=dice.between(1.3, 2.1),
        bend=dice.between(-0.0022, 0.0022),
    )
