"""Drawing primitives of the drawn scenes: camera, light, and solids in metres.

World coordinates: the camera is at x = z = 0, `eye` metres above the ground, and points along z.
x is to the right, y is up, z is away from the camera. A `Frame` has its own axes a (right), b (up), c (away).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from PIL import Image, ImageDraw

from streetvision.synthetic.random_draws import Color, as_uint8, mix, scaled

Flat = tuple[float, float]
Solid = tuple[float, float, float]
Pixel = tuple[float, float]
Span = tuple[float, float]

NEAR = 0.6
"""Metres; points closer to the camera are projected from this distance."""
MARK = 255
"""Value of the canvas's fourth channel where roadwork is visible."""


@dataclass(frozen=True)
class Camera:
    """A pinhole camera on a street that may bend; image lengths are in canvas pixels."""

    width: int
    height: int
    focal: float
    """Pixels."""
    center: float
    """Column of the vanishing point, pixels."""
    horizon: float
    """Row of the horizon, pixels."""
    eye: float
    """Metres above the ground."""
    bend: float
    """Lateral shift of the street, metres per square metre of distance."""

    def pixel(self, x: float, y: float, z: float) -> Pixel:
        """Project a world point to the canvas."""
        # Points behind the camera have no projection, so they are moved in front of it.
        z = max(z, NEAR)
        scale = self.focal / z
        return self.center + (x + self.bend * z * z) * scale, self.horizon + (self.eye - y) * scale


@dataclass(frozen=True)
class Light:
    """Lighting, which maps the color of an object to its color on the canvas."""

    ambient: Color
    """Factor per channel; 1 in daylight."""
    haze: Color
    """Color of objects at infinite distance, 0 to 255."""
    visibility: float
    """Distance in metres at which e^-1 of an object's own color remains."""
    sun: float
    """-1 for sun from the left, 1 from the right, 0 for no direct sun."""
    headlamps: float
    """Brightness that the camera car's headlamps add at distance 0; 0 by day."""
    lamps_lit: bool
    """Whether street lamps, windows and headlamps are on."""
    wet: float = 0.0
    """How strongly the road reflects, 0 to 1."""


@dataclass(frozen=True)
class Glow:
    """A lit lamp, in canvas pixels; its halo is added to the finished image."""

    at: Pixel
    radius: float
    color: Color
    core: tuple[int, int, int, int]
    """Canvas color at `at` if the lamp is not occluded."""


@dataclass
class Canvas:
    """An RGBA image whose fourth channel marks roadwork; later drawing overwrites color and mark."""

    camera: Camera
    light: Light
    image: Image.Image
    glows: list[Glow] = field(default_factory=list)
    _tints: dict[tuple[float, float], tuple[Color, Color]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pen = ImageDraw.Draw(self.image)

    @classmethod
    def blank(cls, camera: Camera, light: Light) -> "Canvas":
        """Create an empty canvas of the camera's size."""
        return cls(camera, light, Image.new("RGBA", (camera.width, camera.height)))

    def copy(self) -> "Canvas":
        """Copy the canvas, so that drawing on the copy does not change this one."""
        return replace(self, image=self.image.copy(), glows=list(self.glows))

    def ink(
        self, color: Color, z: float, *, shade: float = 1.0, reflect: float = 0.0, mark: int = 0
    ) -> tuple[int, int, int, int]:
        """Canvas color of an object at distance z; `reflect` is how strongly it reflects headlamps."""
        # Objects share few distances, so the exponentials are cached.
        tint = self._tints.get((z, reflect))
        if tint is None:
            tint = self._tints[z, reflect] = self._tint(z, reflect)
        (red, green, blue), (haze_red, haze_green, haze_blue) = tint
        return (
            min(255, int(color[0] * red * shade + haze_red)),
            min(255, int(color[1] * green * shade + haze_green)),
            min(255, int(color[2] * blue * shade + haze_blue)),
            mark,
        )

    def _tint(self, z: float, reflect: float) -> tuple[Color, Color]:
        """Factor per channel, and the haze that is added, at distance z."""
        light = self.light
        # Light decays exponentially in haze. The beam of the headlamps is slightly yellow.
        transmission = math.exp(-z / light.visibility)
        beam = light.headlamps * math.exp(-z / 22.0) * (1.0 + reflect)
        red, green, blue = light.ambient
        gain = ((red + beam) * transmission, (green + beam * 0.96) * transmission, (blue + beam * 0.85) * transmission)
        return gain, scaled(light.haze, 1.0 - transmission)

    def fill(self, points: Sequence[Solid], color: Color, *, shade: float = 1.0) -> None:
        """Draw a flat polygon of world points, with the light at its first point."""
        pixels = [self.camera.pixel(*point) for point in points]
        self.pen.polygon(pixels, fill=self.ink(color, points[0][2], shade=shade))

    def lamplight(self, color: Color, z: float, *, mark: int = 0) -> tuple[int, int, int, int]:
        """Canvas color of a light source at distance z."""
        return (*as_uint8(mix(self.light.haze, color, math.exp(-z / self.light.visibility))), mark)

    def shine(self, at: Solid, radius: float, color: Color, *, mark: int = 0) -> None:
        """Draw a lit lamp as a disc of `radius` metres; its halo is added when the image is finished."""
        x, y = self.camera.pixel(*at)
        size = max(0.8, radius * self.camera.focal / max(at[2], NEAR))
        # The center of a lamp is overexposed, so its color is mixed with white.
        core = self.lamplight(mix(color, (255.0, 255.0, 255.0), 0.45), at[2], mark=mark)
        self.pen.ellipse((x - size, y - size, x + size, y + size), fill=core)
        self.glows.append(Glow((x, y), size, scaled(color, math.exp(-at[2] / self.light.visibility)), core))


class Frame:
    """Local axes of an object on the ground at (x, z), rotated by `yaw` radians."""

    def __init__(self, canvas: Canvas, x: float, z: float, *, yaw: float = 0.0, mark: int = 0) -> None:
        self.canvas = canvas
        self.x = x
        self.z = z
        self.mark = mark
        self._cos = math.cos(yaw)
        self._sin = math.sin(yaw)
        # The position of the camera in the axes of the frame, which decides which faces are visible.
        across = -x - canvas.camera.bend * z * z
        self._eye = (across * self._cos - z * self._sin, canvas.camera.eye, -across * self._sin - z * self._cos)

    @property
    def pixels_per_metre(self) -> float:
        """Scale at the origin of the frame."""
        return self.canvas.camera.focal / max(self.z, NEAR)

    def world(self, point: Solid) -> Solid:
        """Convert a point of the frame to world coordinates."""
        a, b, c = point
        return self.x + a * self._cos - c * self._sin, b, self.z + a * self._sin + c * self._cos

    def pixels(self, points: Sequence[Solid]) -> list[Pixel]:
        """Project points of the frame to the canvas: `world` and `Camera.pixel` in one loop, for speed."""
        camera, cos, sin, projected = self.canvas.camera, self._cos, self._sin, []
        for a, b, c in points:
            z = max(self.z + a * sin + c * cos, NEAR)
            scale = camera.focal / z
            x = self.x + a * cos - c * sin + camera.bend * z * z
            projected.append((camera.center + x * scale, camera.horizon + (camera.eye - b) * scale))
        return projected

    def _ink(self, color: Color, shade: float, reflect: float) -> tuple[int, int, int, int]:
        return self.canvas.ink(color, self.z, shade=shade, reflect=reflect, mark=self.mark)

    def _shade(self, normal: Solid) -> float:
        """Brightness of a face by its normal: the sky lights upward faces, the sun those on its side."""
        sideways = normal[0] * self._cos - normal[2] * self._sin
        return 0.86 + 0.2 * normal[1] + 0.16 * self.canvas.light.sun * sideways

    def flat(self, points: Sequence[Flat], color: Color, *, shade: float = 1.0, reflect: float = 0.0) -> None:
        """Draw a polygon in the plane c = 0, visible from both sides."""
        self.canvas.pen.polygon(self.pixels([(a, b, 0.0) for a, b in points]), fill=self._ink(color, shade, reflect))

    def disc(self, at: Flat, radius: float, color: Color, *, reflect: float = 0.0) -> None:
        """Draw a circle about `at` in the plane c = 0."""
        self.oval(at, (radius, radius), color, reflect=reflect)

    def oval(self, at: Flat, radii: Flat, color: Color, *, shade: float = 1.0, reflect: float = 0.0) -> None:
        """Draw an ellipse about `at` in the plane c = 0."""
        ((x, y),) = self.pixels([(at[0], at[1], 0.0)])
        wide, high = radii[0] * self.pixels_per_metre, radii[1] * self.pixels_per_metre
        self.canvas.pen.ellipse((x - wide, y - high, x + wide, y + high), fill=self._ink(color, shade, reflect))

    def bar(self, start: Flat, end: Flat, width: float, color: Color, *, shade: float = 1.0) -> None:
        """Draw a line of `width` metres in the plane c = 0."""
        along = (end[0] - start[0], end[1] - start[1])
        length = math.hypot(*along) or 1.0
        # The normal of the line, half its width long.
        a, b = -along[1] / length * width / 2, along[0] / length * width / 2
        corners = [(start[0] + a, start[1] + b), (end[0] + a, end[1] + b)]
        corners += [(end[0] - a, end[1] - b), (start[0] - a, start[1] - b)]
        self.flat(corners, color, shade=shade)

    def _face(self, points: Sequence[Solid], color: Color, normal: Solid, reflect: float) -> None:
        self.canvas.pen.polygon(self.pixels(points), fill=self._ink(color, self._shade(normal), reflect))

    def strip(self, start: Flat, end: Flat, span: Span, color: Color, *, reflect: float = 0.0) -> None:
        """Draw the face over the edge start -> end of a profile in (c, b) and the `span` of a, if it is visible."""
        (c0, b0), (c1, b1), (low, high) = start, end, span
        # Back-face culling: the camera is on the inner side of the face.
        if (self._eye[1] - b0) * (c0 - c1) + (self._eye[2] - c0) * (b1 - b0) <= 0.0:
            return
        length = math.hypot(c1 - c0, b1 - b0)
        corners = [(low, b1, c1), (high, b1, c1), (high, b0, c0), (low, b0, c0)]
        self._face(corners, color, (0.0, (c0 - c1) / length, (b1 - b0) / length), reflect)

    def sides(self, profile: Sequence[Flat], span: Span, color: Color, *, reflect: float = 0.0) -> None:
        """Draw the end of an extruded profile that faces the camera."""
        if self._eye[0] > span[1]:
            self._face([(span[1], b, c) for c, b in profile], color, (1.0, 0.0, 0.0), reflect)
        elif self._eye[0] < span[0]:
            self._face([(span[0], b, c) for c, b in profile], color, (-1.0, 0.0, 0.0), reflect)

    def extrude(self, profile: Sequence[Flat], span: Span, color: Color, *, reflect: float = 0.0) -> None:
        """Draw a solid with the outline `profile`: (c, b) points, counter-clockwise as seen from its right."""
        for start, end in zip(profile, [*profile[1:], profile[0]], strict=True):
            self.strip(start, end, span, color, reflect=reflect)
        self.sides(profile, span, color, reflect=reflect)

    def box(self, a: Span, b: Span, c: Span, color: Color, *, reflect: float = 0.0) -> None:
        """Draw a box between two values on each axis."""
        self.extrude([(c[0], b[0]), (c[1], b[0]), (c[1], b[1]), (c[0], b[1])], a, color, reflect=reflect)

    def shadow(self, a: Span, c: Span) -> None:
        """Draw the shadow on the ground under an object; it is never marked as roadwork."""
        # A large light patch below a small dark one makes the edge of the shadow soft.
        for grow, shade in ((0.25, 0.8), (0.0, 0.55)):
            corners = [(a[0] - grow, c[0] - grow), (a[1] + grow, c[0] - grow)]
            corners += [(a[1] + grow, c[1] + grow), (a[0] - grow, c[1] + grow)]
            ground = [(p, 0.0, q) for p, q in corners]
            self.canvas.pen.polygon(self.pixels(ground), fill=self.canvas.ink((84, 84, 88), self.z, shade=shade))

    def shine(self, at: Solid, radius: float, color: Color) -> None:
        """Draw a lit lamp at a point of the frame."""
        self.canvas.shine(self.world(at), radius, color, mark=self.mark)
