"""Vehicles, people and trees of the drawn scenes; many have the colors of roadwork."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from streetvision.synthetic.canvas import Canvas, Flat, Frame
from streetvision.synthetic.random_draws import Color, Dice, mix, scaled

WARM: tuple[Color, ...] = (
    (238, 104, 20),
    (244, 130, 26),
    (226, 82, 24),
    (240, 150, 26),
    (246, 180, 30),
    (240, 198, 46),
    (204, 32, 36),
)
"""Colors that roadwork has as well."""
_COOL: tuple[Color, ...] = (
    (228, 230, 232),
    (196, 200, 204),
    (130, 134, 140),
    (44, 46, 52),
    (36, 60, 110),
    (60, 96, 150),
    (44, 84, 66),
    (116, 40, 48),
    (150, 140, 120),
)
WHITE: Color = (238, 238, 234)
BLACK: Color = (26, 26, 28)
_GLASS: Color = (48, 60, 74)
_TYRE: Color = (28, 28, 30)
_SKIN: tuple[Color, ...] = ((232, 190, 160), (198, 146, 110), (140, 94, 66), (92, 62, 46))


@dataclass(frozen=True)
class Prop:
    """An object of a scene; objects are drawn from far to near."""

    z: float
    """Distance from the camera to the nearest part, metres."""
    draw: Callable[[Canvas], None]


def paint(dice: Dice, warm_share: float) -> Color:
    """Draw a new or faded color; with probability `warm_share` it is one of roadwork."""
    color = dice.pick(WARM if dice.chance(warm_share) else _COOL)
    return mix(dice.near(color, 12), (156, 146, 134), dice.between(0.0, 0.3))


@dataclass(frozen=True)
class _Body:
    """Shape of a vehicle type: outline and windows in (c, b), from rear to front, metres."""

    half_width: float
    length: float
    outline: tuple[Flat, ...]
    rear_glass: tuple[Flat, Flat]
    front_glass: tuple[Flat, Flat]
    side_glass: tuple[tuple[Flat, ...], ...]
    wheels: tuple[float, float]
    tyre: float


_CAR = _Body(
    half_width=0.88,
    length=4.4,
    outline=((0.0, 0.3), (4.4, 0.3), (4.4, 0.72), (3.35, 0.95), (2.55, 1.44), (1.05, 1.46), (0.35, 1.0), (0.0, 0.92)),
    rear_glass=((0.95, 1.4), (0.42, 1.05)),
    front_glass=((3.25, 1.02), (2.65, 1.38)),
    side_glass=(
        ((0.75, 1.0), (1.75, 1.0), (1.75, 1.38), (1.15, 1.38)),
        ((1.85, 1.0), (3.05, 1.0), (2.5, 1.38), (1.85, 1.38)),
    ),
    wheels=(0.8, 3.55),
    tyre=0.33,
)
_HATCH = _Body(
    half_width=0.86,
    length=3.9,
    outline=((0.0, 0.3), (3.9, 0.3), (3.9, 0.75), (3.0, 1.0), (2.3, 1.58), (0.3, 1.6), (0.05, 1.0)),
    rear_glass=((0.27, 1.5), (0.09, 1.08)),
    front_glass=((2.9, 1.08), (2.38, 1.5)),
    side_glass=(
        ((0.35, 1.05), (1.35, 1.05), (1.35, 1.5), (0.5, 1.5)),
        ((1.45, 1.05), (2.7, 1.05), (2.25, 1.5), (1.45, 1.5)),
    ),
    wheels=(0.65, 3.15),
    tyre=0.33,
)
_VAN = _Body(
    half_width=1.0,
    length=5.4,
    outline=((0.0, 0.35), (5.4, 0.35), (5.4, 1.0), (4.7, 1.25), (4.0, 2.25), (0.0, 2.3)),
    rear_glass=((0.0, 2.0), (0.0, 1.45)),
    front_glass=((4.62, 1.36), (4.08, 2.12)),
    side_glass=(((3.2, 1.3), (4.45, 1.3), (3.95, 2.0), (3.2, 2.0)),),
    wheels=(1.0, 4.45),
    tyre=0.36,
)
_BUS = _Body(
    half_width=1.25,
    length=10.5,
    outline=((0.0, 0.35), (10.5, 0.35), (10.5, 1.2), (10.3, 3.1), (0.0, 3.1)),
    rear_glass=((0.0, 2.7), (0.0, 1.7)),
    front_glass=((10.5, 1.25), (10.33, 2.75)),
    side_glass=tuple(
        ((0.4 + 1.65 * i, 1.35), (1.9 + 1.65 * i, 1.35), (1.9 + 1.65 * i, 2.5), (0.4 + 1.65 * i, 2.5)) for i in range(6)
    ),
    wheels=(2.3, 8.3),
    tyre=0.5,
)
_BODIES = (_CAR, _CAR, _CAR, _HATCH, _HATCH, _VAN, _VAN, _BUS)
"""Vehicle types; repeated ones are more frequent."""


def vehicle(dice: Dice, x: float, z: float, *, yaw: float) -> Prop:
    """A car, van, box truck or bus; its rear is at z for yaw 0, its front faces the camera for yaw pi."""
    body = dice.pick(_BODIES)
    color = paint(dice, 0.5)
    band = dice.near(dice.pick((*WARM, WHITE)), 10) if dice.chance(0.3) else None
    cargo = body is _VAN and dice.chance(0.4)
    cargo_color = paint(dice, 0.6)

    def draw(canvas: Canvas) -> None:
        half = body.length / 2
        frame = Frame(canvas, x, z + half, yaw=yaw)
        painter = _Vehicle(frame, body, half)
        painter.chassis(color)
        painter.glass()
        if band is not None:
            painter.band(band)
        if cargo:
            painter.cargo(cargo_color)
        painter.lamps(lit=canvas.light.lamps_lit)

    return Prop(z, draw)


class _Vehicle:
    """Draws a body that is centered at the origin of the frame."""

    def __init__(self, frame: Frame, body: _Body, half: float) -> None:
        self.frame, self.body, self.half = frame, body, half
        self.span = (-body.half_width, body.half_width)

    def _at(self, outline: tuple[Flat, ...]) -> list[Flat]:
        return [(c - self.half, b) for c, b in outline]

    def chassis(self, color: Color) -> None:
        """Shadow, underside, painted shell and wheels."""
        wide = self.body.half_width
        self.frame.shadow((-wide, wide), (-self.half, self.half))
        for wheel in self.body.wheels:
            middle = wheel - self.half
            self.frame.box((-wide + 0.05, wide - 0.05), (0.0, 0.45), (middle - 0.3, middle + 0.3), _TYRE)
        self.frame.extrude(self._at(self.body.outline), self.span, color)
        low, high = 0.3, 0.3 + 0.12 * self.body.outline[2][1]
        for c in (-self.half - 0.01, self.half + 0.01):
            self.frame.box((-wide + 0.02, wide - 0.02), (low, high), (c - 0.01, c + 0.01), scaled(color, 0.35))
        for wheel in self.body.wheels:
            self._wheel(wheel - self.half)

    def _wheel(self, c: float) -> None:
        for radius, color in (
            (self.body.tyre * 1.2, (16, 16, 18)),
            (self.body.tyre, _TYRE),
            (self.body.tyre * 0.6, (150, 152, 156)),
        ):
            ring = [(c + radius * p, self.body.tyre + radius * q) for p, q in _CIRCLE]
            self.frame.sides(ring, (self.span[0] - 0.01, self.span[1] + 0.01), color)

    def glass(self) -> None:
        """Draw windscreen, rear window and side windows."""
        inner = (self.span[0] + 0.12, self.span[1] - 0.12)
        glass = mix(_GLASS, self.frame.canvas.light.haze, 0.22)
        for start, end in (self.body.rear_glass, tuple(reversed(self.body.front_glass))):
            rear = (start, end) == self.body.rear_glass
            first, last = (start, end) if rear else (end, start)
            self.frame.strip((first[0] - self.half, first[1]), (last[0] - self.half, last[1]), inner, glass)
        for pane in self.body.side_glass:
            self.frame.sides(self._at(pane), self.span, glass)

    def band(self, color: Color) -> None:
        """Draw a stripe along the sides and across the rear."""
        low, high = 0.55, 0.8
        c = self.half * 0.94
        self.frame.sides(
            [(-c, low), (c, low), (c, high), (-c, high)], (self.span[0] - 0.01, self.span[1] + 0.01), color
        )
        self.frame.strip((-self.half, high), (-self.half, low), (self.span[0] + 0.05, self.span[1] - 0.05), color)

    def cargo(self, color: Color) -> None:
        """Draw the box of a small truck."""
        self.frame.box((self.span[0] - 0.08, self.span[1] + 0.08), (0.75, 2.9), (-self.half, self.half - 1.9), color)

    def lamps(self, *, lit: bool) -> None:
        """Draw tail lamps, headlamps and number plates where they are visible."""
        wide = self.body.half_width
        rear_high = min(0.85, self.body.outline[-1][1] - 0.05)
        for a in (-wide + 0.17, wide - 0.17):
            self._lamp(a, (rear_high - 0.2, rear_high), -self.half, (176, 24, 22), (255, 40, 24), lit=lit)
            self._lamp(a, (0.52, 0.68), self.half, (232, 232, 222), (255, 244, 214), lit=lit)
        self.frame.strip((-self.half - 0.02, 0.62), (-self.half - 0.02, 0.5), (-0.26, 0.26), (224, 220, 190))
        self.frame.strip((self.half + 0.02, 0.4), (self.half + 0.02, 0.52), (-0.26, 0.26), (224, 224, 218))

    def _lamp(self, a: float, b: Flat, c: float, color: Color, lit_color: Color, *, lit: bool) -> None:
        outward = 1.0 if c > 0 else -1.0
        _, _, z = self.frame.world((a, 0.0, c))
        if lit and z < self.frame.z:
            self.frame.shine((a, (b[0] + b[1]) / 2, c), 0.1, lit_color)
            return
        ends = ((c + outward * 0.02, b[0]), (c + outward * 0.02, b[1]))
        start, end = ends if outward > 0 else (ends[1], ends[0])
        self.frame.strip(start, end, (a - 0.13, a + 0.13), color)


_CIRCLE: tuple[Flat, ...] = (
    (1.0, 0.0),
    (0.87, 0.5),
    (0.5, 0.87),
    (0.0, 1.0),
    (-0.5, 0.87),
    (-0.87, 0.5),
    (-1.0, 0.0),
    (-0.87, -0.5),
    (-0.5, -0.87),
    (0.0, -1.0),
    (0.5, -0.87),
    (0.87, -0.5),
)
"""Twelve points of the unit circle, counter-clockwise."""


def person(dice: Dice, x: float, z: float) -> Prop:
    """A pedestrian; the coat is often orange, red or yellow, sometimes with reflective bands."""
    tall = dice.between(1.5, 1.9)
    coat, trousers = paint(dice, 0.5), dice.near(dice.pick(((40, 44, 60), (70, 64, 58), (30, 30, 32))), 12)
    # Some people wear high-visibility yellow without being at work.
    if dice.chance(0.12):
        coat = dice.near((196, 214, 40), 14)
    banded, skin, step = dice.chance(0.35), dice.pick(_SKIN), dice.between(0.05, 0.28)
    hair = dice.pick(((40, 30, 24), (96, 70, 44), (150, 146, 140), coat))

    def draw(canvas: Canvas) -> None:
        frame = Frame(canvas, x, z)
        frame.shadow((-0.2, 0.25), (-0.15, 0.2))
        hip, neck = tall * 0.48, tall * 0.83
        for foot in (-step, step):
            frame.flat([(foot - 0.07, 0.0), (foot + 0.08, 0.0), (0.13, hip), (-0.13, hip)], trousers)
        frame.bar((-0.2, neck - 0.06), (-0.3, hip - 0.02), 0.11, coat, shade=0.85)
        frame.bar((0.2, neck - 0.06), (0.29, hip - 0.04), 0.11, coat, shade=0.85)
        frame.flat([(-0.19, hip - 0.08), (0.19, hip - 0.08), (0.24, neck), (-0.24, neck)], coat, reflect=0.4)
        if banded:
            for b in (hip + 0.12, hip + 0.3):
                frame.bar((-0.21, b), (0.21, b), 0.06, (214, 216, 206))
        frame.oval((0.0, tall * 0.91), (tall * 0.062, tall * 0.085), hair)
        frame.oval((0.0, tall * 0.9), (tall * 0.052, tall * 0.07), skin)

    return Prop(z, draw)


def tree(dice: Dice, x: float, z: float) -> Prop:
    """A street tree; one in four has orange or red leaves."""
    tall = dice.between(4.0, 8.5)
    leaf = dice.near(dice.pick(((62, 96, 46), (78, 112, 52), (50, 84, 52))), 12)
    if dice.chance(0.25):
        leaf = dice.near(dice.pick(((206, 112, 34), (196, 74, 34), (220, 164, 48))), 12)
    blobs = []
    # The leaves are 20 ellipses inside an ellipsoid, from bottom to top.
    for index in range(20):
        a, b = dice.between(-1.0, 1.0), -1.0 + index / 10.0
        reach = 0.22 * math.sqrt(1.05 - b * b)
        blobs.append((a * tall * reach, tall * (0.69 + 0.2 * b), tall * dice.between(0.05, 0.09), 0.86 + 0.2 * b))

    def draw(canvas: Canvas) -> None:
        frame = Frame(canvas, x, z)
        frame.shadow((-1.0, 1.0), (-0.6, 0.6))
        trunk = tall * 0.025
        frame.flat([(-trunk, 0.0), (trunk, 0.0), (trunk * 0.7, tall * 0.6), (-trunk * 0.7, tall * 0.6)], (84, 66, 50))
        for a, b, radius, shade in blobs:
            frame.oval((a, b), (radius, radius * 0.85), leaf, shade=shade)

    return Prop(z, draw)
