"""What the procedural scenes are drawn with: a camera, the light, and solids measured in metres.

Coordinates: the camera stands at the origin, `eye` metres above the ground, and looks along z.
x points right, y up, z away from the camera. A `Frame` has its own axes a (right), b (up), c (away).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from PIL import Image, ImageDraw

from streetvision.synthetic.random_draws import Colour, mix, scaled, whole

Flat = tuple[float, float]
Solid = tuple[float, float, float]
Pixel = tuple[float, float]
Span = tuple[float, float]

NEAR = 0.6
"""Metres: nothing is projected from nearer than this."""
MARK = 255
"""Value of the canvas's fourth channel where roadwork is what one sees."""


@dataclass(frozen=True)
class Camera:
    """A pinhole camera on a street that may bend; lengths on the image are pixels of the canvas."""

    width: int
    height: int
    focal: float
    """Pixels."""
    centre: float
    """Column of the vanishing point, pixels."""
    horizon: float
    """Row of the horizon, pixels."""
    eye: float
    """Metres above the ground."""
    bend: float
    """Sideways shift of the street, metres per square metre of distance."""

    def pixel(self, x: float, y: float, z: float) -> Pixel:
        """Where the point (x, y, z) falls on the canvas."""
        z = max(z, NEAR)
        scale = self.focal / z
        return self.centre + (x + self.bend * z * z) * scale, self.horizon + (self.eye - y) * scale


@dataclass(frozen=True)
class Light:
    """How colours of things turn into colours on the canvas."""

    ambient: Colour
    """Factor a channel, 1 in plain daylight."""
    haze: Colour
    """Colour of the far distance, grey levels."""
    visibility: float
    """Metres after which e^-1 of a thing's own colour is left."""
    sun: float
    """-1 where the sun stands on the left, 1 on the right, 0 without one."""
    headlamps: float
    """Light that the camera's own car adds at the very front; 0 by day."""
    lamps_lit: bool
    """Whether street lamps, windows and head lights shine."""
    wet: float = 0.0
    """How much the road mirrors, 0 to 1."""


@dataclass(frozen=True)
class Glow:
    """A lamp that shines into the lens, pixels of the canvas."""

    at: Pixel
    radius: float
    colour: Colour
    core: tuple[int, int, int, int]
    """What the canvas shows there as long as nothing stands in front."""


@dataclass
class Canvas:
    """An RGBA image whose fourth channel marks the roadwork; what is drawn later covers both."""

    camera: Camera
    light: Light
    image: Image.Image
    glows: list[Glow] = field(default_factory=list)
    _tints: dict[tuple[float, float], tuple[Colour, Colour]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pen = ImageDraw.Draw(self.image)

    @classmethod
    def blank(cls, camera: Camera, light: Light) -> "Canvas":
        """An empty canvas as large as the camera's picture."""
        return cls(camera, light, Image.new("RGBA", (camera.width, camera.height)))

    def copy(self) -> "Canvas":
        """A canvas that can be drawn on without changing this one."""
        return replace(self, image=self.image.copy(), glows=list(self.glows))

    def ink(
        self, colour: Colour, z: float, *, shade: float = 1.0, reflect: float = 0.0, mark: int = 0
    ) -> tuple[int, int, int, int]:
        """The canvas colour of a thing at distance z; `reflect` is how strongly it throws head lights back."""
        tint = self._tints.get((z, reflect))
        if tint is None:
            tint = self._tints[z, reflect] = self._tint(z, reflect)
        (red, green, blue), (haze_red, haze_green, haze_blue) = tint
        return (
            min(255, int(colour[0] * red * shade + haze_red)),
            min(255, int(colour[1] * green * shade + haze_green)),
            min(255, int(colour[2] * blue * shade + haze_blue)),
            mark,
        )

    def _tint(self, z: float, reflect: float) -> tuple[Colour, Colour]:
        """The factor of each channel and the haze in front, at distance z."""
        light = self.light
        seen = math.exp(-z / light.visibility)
        beam = light.headlamps * math.exp(-z / 22.0) * (1.0 + reflect)
        red, green, blue = light.ambient
        gain = ((red + beam) * seen, (green + beam * 0.96) * seen, (blue + beam * 0.85) * seen)
        return gain, scaled(light.haze, 1.0 - seen)

    def fill(self, points: Sequence[Solid], colour: Colour, *, shade: float = 1.0) -> None:
        """A flat polygon given by points of the world, lit as its first point is."""
        pixels = [self.camera.pixel(*point) for point in points]
        self.pen.polygon(pixels, fill=self.ink(colour, points[0][2], shade=shade))

    def lamplight(self, colour: Colour, z: float, *, mark: int = 0) -> tuple[int, int, int, int]:
        """The canvas colour of something at distance z that shines by itself."""
        return (*whole(mix(self.light.haze, colour, math.exp(-z / self.light.visibility))), mark)

    def shine(self, at: Solid, radius: float, colour: Colour, *, mark: int = 0) -> None:
        """A burning lamp: a bright disc of `radius` metres now, its glow when the picture is finished."""
        x, y = self.camera.pixel(*at)
        size = max(0.8, radius * self.camera.focal / max(at[2], NEAR))
        core = self.lamplight(mix(colour, (255.0, 255.0, 255.0), 0.45), at[2], mark=mark)
        self.pen.ellipse((x - size, y - size, x + size, y + size), fill=core)
        self.glows.append(Glow((x, y), size, scaled(colour, math.exp(-at[2] / self.light.visibility)), core))


class Frame:
    """Axes of their own for one thing: it stands on the ground at (x, z), turned by `yaw` radians."""

    def __init__(self, canvas: Canvas, x: float, z: float, *, yaw: float = 0.0, mark: int = 0) -> None:
        self.canvas = canvas
        self.x = x
        self.z = z
        self.mark = mark
        self._cos = math.cos(yaw)
        self._sin = math.sin(yaw)
        across = -x - canvas.camera.bend * z * z
        self._eye = (across * self._cos - z * self._sin, canvas.camera.eye, -across * self._sin - z * self._cos)

    @property
    def pixels_per_metre(self) -> float:
        """Scale at the frame's origin."""
        return self.canvas.camera.focal / max(self.z, NEAR)

    def world(self, point: Solid) -> Solid:
        """A point of the frame in the axes of the world."""
        a, b, c = point
        return self.x + a * self._cos - c * self._sin, b, self.z + a * self._sin + c * self._cos

    def pixels(self, points: Sequence[Solid]) -> list[Pixel]:
        """Points of the frame on the canvas: `world` and `Camera.pixel` in one, since it runs most often of all."""
        camera, cos, sin, found = self.canvas.camera, self._cos, self._sin, []
        for a, b, c in points:
            z = max(self.z + a * sin + c * cos, NEAR)
            scale = camera.focal / z
            x = self.x + a * cos - c * sin + camera.bend * z * z
            found.append((camera.centre + x * scale, camera.horizon + (camera.eye - b) * scale))
        return found

    def _ink(self, colour: Colour, shade: float, reflect: float) -> tuple[int, int, int, int]:
        return self.canvas.ink(colour, self.z, shade=shade, reflect=reflect, mark=self.mark)

    def _shade(self, normal: Solid) -> float:
        """Brightness of a face: the sky lights what looks up, the sun what looks its way."""
        sideways = normal[0] * self._cos - normal[2] * self._sin
        return 0.86 + 0.2 * normal[1] + 0.16 * self.canvas.light.sun * sideways

    def flat(self, points: Sequence[Flat], colour: Colour, *, shade: float = 1.0, reflect: float = 0.0) -> None:
        """A polygon in the plane c = 0, seen from whichever side."""
        self.canvas.pen.polygon(self.pixels([(a, b, 0.0) for a, b in points]), fill=self._ink(colour, shade, reflect))

    def disc(self, at: Flat, radius: float, colour: Colour, *, reflect: float = 0.0) -> None:
        """A round plate in the plane c = 0 that faces the camera."""
        self.oval(at, (radius, radius), colour, reflect=reflect)

    def oval(self, at: Flat, radii: Flat, colour: Colour, *, shade: float = 1.0, reflect: float = 0.0) -> None:
        """An ellipse about `at` in the plane c = 0."""
        ((x, y),) = self.pixels([(at[0], at[1], 0.0)])
        wide, high = radii[0] * self.pixels_per_metre, radii[1] * self.pixels_per_metre
        self.canvas.pen.ellipse((x - wide, y - high, x + wide, y + high), fill=self._ink(colour, shade, reflect))

    def bar(self, start: Flat, end: Flat, width: float, colour: Colour, *, shade: float = 1.0) -> None:
        """A straight stick of `width` metres in the plane c = 0."""
        along = (end[0] - start[0], end[1] - start[1])
        length = math.hypot(*along) or 1.0
        a, b = -along[1] / length * width / 2, along[0] / length * width / 2
        corners = [(start[0] + a, start[1] + b), (end[0] + a, end[1] + b)]
        corners += [(end[0] - a, end[1] - b), (start[0] - a, start[1] - b)]
        self.flat(corners, colour, shade=shade)

    def _face(self, points: Sequence[Solid], colour: Colour, normal: Solid, reflect: float) -> None:
        self.canvas.pen.polygon(self.pixels(points), fill=self._ink(colour, self._shade(normal), reflect))

    def strip(self, start: Flat, end: Flat, span: Span, colour: Colour, *, reflect: float = 0.0) -> None:
        """The edge start -> end of a profile in (c, b), stretched over the `span` of a, if it looks at the camera."""
        (c0, b0), (c1, b1), (low, high) = start, end, span
        if (self._eye[1] - b0) * (c0 - c1) + (self._eye[2] - c0) * (b1 - b0) <= 0.0:
            return
        length = math.hypot(c1 - c0, b1 - b0)
        corners = [(low, b1, c1), (high, b1, c1), (high, b0, c0), (low, b0, c0)]
        self._face(corners, colour, (0.0, (c0 - c1) / length, (b1 - b0) / length), reflect)

    def sides(self, profile: Sequence[Flat], span: Span, colour: Colour, *, reflect: float = 0.0) -> None:
        """Whichever end of an extruded profile looks at the camera."""
        if self._eye[0] > span[1]:
            self._face([(span[1], b, c) for c, b in profile], colour, (1.0, 0.0, 0.0), reflect)
        elif self._eye[0] < span[0]:
            self._face([(span[0], b, c) for c, b in profile], colour, (-1.0, 0.0, 0.0), reflect)

    def extrude(self, profile: Sequence[Flat], span: Span, colour: Colour, *, reflect: float = 0.0) -> None:
        """A solid whose outline seen from its right is `profile`: (c, b) points, counter-clockwise."""
        for start, end in zip(profile, [*profile[1:], profile[0]], strict=True):
            self.strip(start, end, span, colour, reflect=reflect)
        self.sides(profile, span, colour, reflect=reflect)

    def box(self, a: Span, b: Span, c: Span, colour: Colour, *, reflect: float = 0.0) -> None:
        """A box between two values on each axis."""
        self.extrude([(c[0], b[0]), (c[1], b[0]), (c[1], b[1]), (c[0], b[1])], a, colour, reflect=reflect)

    def shadow(self, a: Span, c: Span) -> None:
        """The dark patch of ground under a thing, never part of the roadwork."""
        for grow, shade in ((0.25, 0.8), (0.0, 0.55)):
            corners = [(a[0] - grow, c[0] - grow), (a[1] + grow, c[0] - grow)]
            corners += [(a[1] + grow, c[1] + grow), (a[0] - grow, c[1] + grow)]
            ground = [(p, 0.0, q) for p, q in corners]
            self.canvas.pen.polygon(self.pixels(ground), fill=self.canvas.ink((84, 84, 88), self.z, shade=shade))

    def shine(self, at: Solid, radius: float, colour: Colour) -> None:
        """A burning lamp at a point of the frame."""
        self.canvas.shine(self.world(at), radius, colour, mark=self.mark)
