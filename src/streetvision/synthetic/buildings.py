"""Buildings along the street of a drawn scene."""

from streetvision.synthetic.canvas import NEAR, Canvas, Pixel
from streetvision.synthetic.random_draws import Color, Dice, mix, scaled

_WALLS: tuple[Color, ...] = (
    (150, 74, 54),
    (172, 92, 64),
    (196, 170, 136),
    (214, 204, 186),
    (168, 164, 160),
    (122, 124, 130),
    (206, 182, 118),
    (190, 130, 86),
    (226, 222, 214),
    (140, 112, 92),
)
_AWNINGS: tuple[Color, ...] = (
    (238, 104, 20),
    (244, 130, 26),
    (204, 32, 36),
    (240, 170, 34),
    (44, 108, 72),
    (40, 74, 130),
)
_WHITE: Color = (236, 234, 228)


class Building:
    """A building with its front along the street and its gable towards the camera."""

    def __init__(self, canvas: Canvas, side: int, x: float, near: float, far: float, dice: Dice) -> None:
        self.canvas, self.side, self.x, self.near, self.far, self.dice = canvas, side, x, near, far, dice
        self.storey = dice.between(2.9, 3.8)
        self.storeys = dice.integer(1, 5)
        self.top = self.storey * (self.storeys + 0.25) + 0.6
        self.color = dice.near(dice.pick(_WALLS), 14)
        self.trim = mix(self.color, _WHITE, 0.45) if dice.chance(0.6) else scaled(self.color, 0.7)
        self.shade = 1.0 + 0.18 * side * canvas.light.sun
        self.lit = dice.between(0.15, 0.6) if canvas.light.lamps_lit else 0.0

    def draw(self) -> None:
        """Draw the building with its windows."""
        back = self.x + self.side * 12.0
        gable = [(self.x, 0.0), (back, 0.0), (back, self.top), (self.x, self.top)]
        self.canvas.fill([(x, y, self.near) for x, y in gable], self.color, shade=0.78)
        bays = max(1, round((self.far - self.near) / 2.7))
        step = (self.far - self.near) / bays
        for bay in reversed(range(bays)):
            z = self.near + bay * step
            self._panel(z, z + step, 0.0, self.top, self.color)
            # Distant bays are too small to show windows.
            if z < 70.0 and self._in_sight(z, z + step):
                self._bay(z, step)
        # The cornice, and a band above the ground floor.
        for low, high in ((self.top - 0.35, self.top + 0.1), (self.storey - 0.15, self.storey + 0.1)):
            self._panel(self.near, self.far, low, high, self.trim)
        if self.near < 40.0 and self.dice.chance(0.55):
            self._awning()

    def _in_sight(self, near: float, far: float) -> bool:
        """Whether a bay is on the canvas and wide enough for a visible window."""
        camera = self.canvas.camera
        first, last = camera.pixel(self.x, 0.0, near)[0], camera.pixel(self.x, 0.0, far)[0]
        return abs(first - last) > 5.0 and max(first, last) > 0.0 and min(first, last) < camera.width

    def _corners(self, near: float, far: float, low: float, high: float) -> list[Pixel]:
        """The corners of a rectangle of the front, on the canvas."""
        camera = self.canvas.camera
        corners = []
        for z, first, last in ((near, low, high), (far, high, low)):
            x, y = camera.pixel(self.x, first, z)
            corners += [(x, y), (x, y + (first - last) * camera.focal / max(z, NEAR))]
        return corners

    def _panel(self, near: float, far: float, low: float, high: float, color: Color) -> None:
        ink = self.canvas.ink(color, near, shade=self.shade)
        self.canvas.pen.polygon(self._corners(near, far, low, high), fill=ink)

    def _window(self, near: float, far: float, low: float, high: float) -> None:
        light = self.canvas.light
        self._panel(near - 0.12, far + 0.12, low - 0.12, high + 0.1, self.trim)
        if self.dice.chance(self.lit):
            glow = self.canvas.lamplight(scaled((230.0, 178.0, 84.0), self.dice.between(0.5, 1.05)), near)
            self.canvas.pen.polygon(self._corners(near, far, low, high), fill=glow)
            return
        glass: Color = (40, 46, 58)
        # By day the glass reflects the sky.
        if not light.lamps_lit:
            glass = mix((46, 56, 68), light.haze, self.dice.between(0.0, 0.45))
        self._panel(near, far, low, high, glass)
        if near < 18.0:
            self._panel(near, far, (low + high) / 2 - 0.03, (low + high) / 2 + 0.05, self.trim)

    def _bay(self, z: float, step: float) -> None:
        """A column of windows, with a shop window or a door on the ground floor."""
        width = step * 0.26
        middle = z + step / 2
        for floor in range(1, self.storeys):
            low = floor * self.storey + 0.9
            self._window(middle - width, middle + width, low, low + self.storey * 0.5)
        if self.dice.chance(0.6):
            self._window(z + 0.3, z + step - 0.3, 0.6, self.storey * 0.72)
        else:
            self._panel(middle - 0.55, middle + 0.55, 0.0, 2.2, scaled(self.dice.near((96, 70, 52), 40), 0.8))

    def _awning(self) -> None:
        """A plain or white-striped awning over the pavement."""
        cloth = self.dice.near(self.dice.pick(_AWNINGS), 16)
        long = min(self.far - self.near, self.dice.between(3.0, 8.0))
        start = max(self.near, 3.0) + self.dice.between(0.0, max(0.0, self.far - self.near - long))
        striped = self.dice.chance(0.5)
        low, high, out = self.storey * 0.74, self.storey * 0.96, self.dice.between(0.8, 1.5)
        # Strips of about 0.45 m, so that a striped awning has stripes of this width.
        count = max(4, int(long / 0.45))
        for index in reversed(range(count)):
            near, far = start + long * index / count, start + long * (index + 1) / count
            color = _WHITE if striped and index % 2 else cloth
            wall, edge = self.x, self.x - self.side * out
            self.canvas.fill([(wall, high, near), (wall, high, far), (edge, low, far), (edge, low, near)], color)
            drop = [(edge, low, near), (edge, low, far), (edge, low - 0.25, far), (edge, low - 0.25, near)]
            self.canvas.fill(drop, scaled(color, 0.85))
