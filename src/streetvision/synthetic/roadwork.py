"""Roadwork items of the drawn scenes: cones, drums, barriers, signs and arrow boards."""

from collections.abc import Callable
from dataclasses import dataclass

from streetvision.synthetic.canvas import MARK, Canvas, Flat, Frame, Span
from streetvision.synthetic.random_draws import Color, Dice, mix, scaled
from streetvision.synthetic.street_furniture import RED, polygon_about
from streetvision.synthetic.traffic import BLACK, WHITE

_REFLECT = 0.9
"""How strongly boards and white bands reflect headlamps."""
_ORANGES: tuple[Color, ...] = ((238, 104, 20), (244, 130, 26), (226, 82, 24))
_YELLOWS: tuple[Color, ...] = ((246, 180, 30), (240, 198, 46), (240, 150, 26))
_LAMP: Color = (255, 170, 40)


@dataclass(frozen=True)
class Livery:
    """The colors of a site, all equally faded."""

    cloth: Color
    """Color of cones and drums."""
    board: Color
    """Color of the dark stripes of boards."""
    white: Color
    machine: Color
    sign: Color


@dataclass(frozen=True)
class Item:
    """An item of a site."""

    area: float
    """Area that is visible to the camera, square metres."""
    draw: Callable[[Canvas, float, float], None]
    """Arguments: canvas, x, z."""


def draw_livery(dice: Dice) -> Livery:
    """Draw the colors of a site: new or faded, with orange or red boards."""
    fade = dice.between(0.0, 0.3)

    def faded(color: Color) -> Color:
        return mix(dice.near(color, 10), (156, 146, 134), fade)

    return Livery(
        cloth=faded(dice.pick(_ORANGES)),
        board=faded(dice.pick((RED, RED, _ORANGES[0]))),
        white=mix(WHITE, (170, 164, 152), fade),
        machine=faded(dice.pick((*_YELLOWS, _ORANGES[1]))),
        sign=faded(dice.pick(_YELLOWS)),
    )


def cone(dice: Dice, livery: Livery) -> Item:
    """A traffic cone with one or two white bands; one in ten is tilted."""
    tall, bands = dice.between(0.65, 1.0), dice.integer(1, 2)
    foot = tall * dice.between(0.24, 0.3)
    lean = dice.between(-0.04, 0.04) if dice.chance(0.9) else dice.side() * dice.between(0.2, 0.5)

    def draw(canvas: Canvas, x: float, z: float) -> None:
        frame = Frame(canvas, x, z, mark=MARK)
        frame.shadow((-foot, foot * 1.6), (-foot, foot))
        base = scaled(livery.cloth, 0.62)
        frame.box((-foot, foot), (0.0, 0.05 * tall), (-foot, foot), base)

        def ring(low: float, high: float, color: Color, reflect: float) -> None:
            wide, slim = foot * 0.8 * (1.0 - low * 0.88), foot * 0.8 * (1.0 - high * 0.88)
            b, d, p, q = tall * low, tall * high, lean * low * tall, lean * high * tall
            frame.flat([(p - wide, b), (p + wide, b), (q + slim, d), (q - slim, d)], color, reflect=reflect)
            # The right side is darker, so that the cone appears round.
            right = [(p + wide * 0.35, b), (p + wide, b), (q + slim, d), (q + slim * 0.35, d)]
            frame.flat(right, color, shade=0.82, reflect=reflect)

        ring(0.05, 1.0, livery.cloth, 0.3)
        for low in (0.34, 0.64)[:bands] if bands == 2 else (0.42,):
            ring(low, low + (0.18 if bands == 2 else 0.26), livery.white, _REFLECT)

    return Item(0.62 * foot * 2 * tall * 0.62, draw)


def drum(dice: Dice, livery: Livery) -> Item:
    """A drum with white bands, sometimes with a lamp."""
    tall, wide = dice.between(0.9, 1.15), dice.between(0.26, 0.33)
    lamp = dice.chance(0.3)

    def draw(canvas: Canvas, x: float, z: float) -> None:
        frame = Frame(canvas, x, z, mark=MARK)
        frame.shadow((-wide, wide * 1.6), (-wide, wide))
        frame.oval((0.0, 0.06), (wide * 1.2, 0.07), BLACK)
        for index in range(5):
            color = livery.white if index % 2 else livery.cloth
            low, high, taper = tall * index / 5, tall * (index + 1) / 5, 1.0 - 0.03 * index
            # Strips of different brightness, so that the drum appears round.
            for left, right, shade in ((-1.0, -0.3, 1.0), (-0.3, 0.45, 0.94), (0.45, 1.0, 0.76)):
                band = [(left * wide * taper, low + 0.05), (right * wide * taper, low + 0.05)]
                band += [(right * wide * (taper - 0.02), high + 0.05), (left * wide * (taper - 0.02), high + 0.05)]
                frame.flat(band, color, shade=shade, reflect=_REFLECT if index % 2 else 0.3)
        frame.oval((0.0, tall + 0.05), (wide * 0.85, 0.05), scaled(livery.cloth, 0.9))
        if lamp:
            frame.oval((0.0, tall + 0.2), (0.1, 0.13), _LAMP)
            if canvas.light.lamps_lit:
                frame.shine((0.0, tall + 0.2, 0.0), 0.09, _LAMP)

    return Item(2 * wide * tall, draw)


def _stripes(frame: Frame, a: Span, b: Span, colors: tuple[Color, Color], slant: float) -> None:
    """A board in the plane c = 0 with slanted stripes in two colors."""
    (left, right), (low, high) = a, b
    frame.flat([(left, low), (right, low), (right, high), (left, high)], colors[1], reflect=_REFLECT)
    pitch = 0.72 * min(high - low, 0.34)
    shift = (high - low) * slant
    start = left - abs(shift)
    while start < right + abs(shift):
        foot = (start, start + pitch)
        corners = [(foot[0], low), (foot[1], low), (foot[1] + shift, high), (foot[0] + shift, high)]
        # Stripes are clipped at both ends of the board.
        stripe = [(min(max(p, left), right), q) for p, q in corners]
        frame.flat(stripe, colors[0], reflect=_REFLECT)
        start += 2 * pitch


def barrier(dice: Dice, livery: Livery) -> Item:
    """A barrier of one or two striped planks on legs."""
    long, plank = dice.between(1.2, 2.2), dice.between(0.22, 0.34)
    planks, slant, yaw = dice.integer(1, 2), dice.side() * 1.0, dice.between(-0.35, 0.35)
    lamp = dice.chance(0.35)

    def draw(canvas: Canvas, x: float, z: float) -> None:
        frame = Frame(canvas, x, z, yaw=yaw, mark=MARK)
        half = long / 2
        frame.shadow((-half, half), (-0.2, 0.2))
        for a in (-half * 0.8, half * 0.8):
            frame.bar((a, 0.0), (a, 1.0), 0.07, (96, 98, 100))
            frame.bar((a - 0.22, 0.03), (a + 0.22, 0.03), 0.08, (60, 60, 62))
        for index in range(planks):
            top = 1.05 - 0.5 * index
            _stripes(frame, (-half, half), (top - plank, top), (livery.board, livery.white), slant)
        if lamp:
            for a in (-half * 0.8, half * 0.8):
                frame.oval((a, 1.16), (0.1, 0.12), _LAMP)
                if canvas.light.lamps_lit:
                    frame.shine((a, 1.16, 0.0), 0.09, _LAMP)

    return Item(long * plank * planks + 0.1, draw)


def beacon(dice: Dice, livery: Livery) -> Item:
    """A vertical striped board on a base."""
    wide, slant = dice.between(0.12, 0.17), dice.side() * 1.3

    def draw(canvas: Canvas, x: float, z: float) -> None:
        frame = Frame(canvas, x, z, mark=MARK)
        frame.shadow((-0.3, 0.3), (-0.2, 0.2))
        frame.box((-0.3, 0.3), (0.0, 0.12), (-0.2, 0.2), (48, 48, 50))
        _stripes(frame, (-wide, wide), (0.15, 1.2), (livery.board, livery.white), slant * 0.35)

    return Item(2 * wide * 1.05 + 0.08, draw)


def blocks(dice: Dice, livery: Livery) -> Item:
    """A row of plastic barriers in two alternating colors."""
    count, yaw = dice.integer(2, 4), dice.between(-0.5, 0.5)

    def draw(canvas: Canvas, x: float, z: float) -> None:
        frame = Frame(canvas, x, z, yaw=yaw, mark=MARK)
        frame.shadow((-count * 0.5, count * 0.5), (-0.25, 0.25))
        # From far to near, which depends on the rotation.
        order = range(count) if yaw < 0 else reversed(range(count))
        for index in order:
            left = index - count / 2
            color = livery.white if index % 2 else livery.board
            outline = [(-0.26, 0.0), (0.26, 0.0), (0.14, 0.35), (0.11, 0.9), (-0.11, 0.9), (-0.14, 0.35)]
            frame.extrude(outline, (left + 0.02, left + 0.98), color, reflect=0.3)
            for a in (left + 0.2, left + 0.62):
                frame.strip((-0.27, 0.13), (-0.27, 0.03), (a, a + 0.2), scaled(color, 0.35))

    return Item(count * 0.9, draw)


def _digging_man(frame: Frame, at: Flat, size: float) -> None:
    """The pictogram of a man at work."""

    def point(a: float, b: float) -> Flat:
        return at[0] + a * size, at[1] + b * size

    frame.disc(point(-0.08, 0.3), 0.09 * size, BLACK)
    for start, end, width in (
        ((-0.12, 0.2), (-0.16, -0.08), 0.15),
        ((-0.16, -0.05), (-0.3, -0.38), 0.1),
        ((-0.14, -0.05), (0.0, -0.38), 0.1),
        ((-0.08, 0.16), (0.14, -0.02), 0.08),
        ((-0.2, 0.08), (0.3, -0.28), 0.05),
    ):
        frame.bar(point(*start), point(*end), width * size, BLACK)
    frame.flat([point(0.12, -0.4), point(0.5, -0.4), point(0.32, -0.18)], BLACK)


def sign(dice: Dice, livery: Livery) -> Item:
    """The men-at-work sign: an orange diamond or a yellow triangle on two legs."""
    size, high = dice.between(0.5, 0.72), dice.between(1.0, 2.1)
    diamond = dice.chance(0.5)

    def draw(canvas: Canvas, x: float, z: float) -> None:
        frame = Frame(canvas, x, z, mark=MARK)
        frame.shadow((-0.4, 0.4), (-0.2, 0.2))
        for a in (-0.35, 0.35):
            frame.bar((a, 0.0), (0.0, high - 0.2), 0.06, (100, 102, 106))
        at = (0.0, high)
        if diamond:
            frame.flat(polygon_about(at, size * 1.1, 4), BLACK)
            frame.flat(polygon_about(at, size * 1.02, 4), mix(livery.cloth, livery.sign, 0.25), reflect=_REFLECT)
            _digging_man(frame, at, size * 0.95)
        else:
            frame.flat(polygon_about(at, size * 1.2, 3), RED, reflect=_REFLECT)
            frame.flat(polygon_about(at, size * 0.84, 3), livery.sign, reflect=_REFLECT)
            _digging_man(frame, (0.0, high - 0.04), size * 0.72)

    return Item(size * size * 2.2, draw)


def arrow_board(dice: Dice, livery: Livery) -> Item:
    """A trailer with an arrow of lamps."""
    wide, high, side = dice.between(0.9, 1.3), dice.between(1.0, 1.4), dice.side()
    # (height, position along the arrow) of each lamp: first the shaft, then the head.
    rows = [(0.0, a) for a in (-0.7, -0.42, -0.14, 0.14, 0.42)]
    rows += [(b, 0.72 - abs(b) * 0.62) for b in (-0.56, -0.28, 0.0, 0.28, 0.56)]

    def draw(canvas: Canvas, x: float, z: float) -> None:
        frame = Frame(canvas, x, z, mark=MARK)
        frame.shadow((-wide, wide), (-0.5, 0.9))
        for a in (-wide * 0.8, wide * 0.8):
            frame.bar((a, 0.0), (a, 0.6), 0.18, BLACK)
        _stripes(frame, (-wide, wide), (0.45, 0.72), (livery.board, livery.white), 1.0)
        frame.flat([(-wide, 0.85), (wide, 0.85), (wide, 0.9 + high), (-wide, 0.9 + high)], livery.machine)
        rim = 0.08
        inner = [(-wide + rim, 0.85 + rim), (wide - rim, 0.85 + rim), (wide - rim, 0.9 + high - rim)]
        frame.flat([*inner, (-wide + rim, 0.9 + high - rim)], (30, 30, 32))
        for b, a in rows:
            at = (side * a * wide * 0.85, 0.88 + high / 2 + b * high * 0.55)
            if canvas.light.lamps_lit:
                frame.shine((*at, 0.0), 0.075, _LAMP)
            else:
                frame.disc(at, 0.085, _LAMP)

    return Item(2 * wide * high + 0.5, draw)
