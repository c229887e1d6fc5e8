"""Signs, lamps and kerb furniture of the drawn scenes, and the placement of everything except roadwork."""

import math

from streetvision.synthetic.canvas import Canvas, Flat, Frame
from streetvision.synthetic.random_draws import Color, Dice, scaled
from streetvision.synthetic.street import Street
from streetvision.synthetic.traffic import BLACK, WARM, WHITE, Prop, paint, person, tree, vehicle

RED: Color = (204, 32, 36)
_YELLOW: Color = (242, 196, 40)
_STEEL: Color = (142, 146, 150)
_SIGN_REFLECT = 0.9
"""How strongly a sign reflects headlamps."""


def polygon_about(at: Flat, radius: float, corners: int, turn: float = 0.0) -> list[Flat]:
    """Return the corners of a regular polygon, rotated by `turn` radians; at 0 one corner is on top."""
    angles = [turn + math.pi / 2 + 2 * math.pi * index / corners for index in range(corners)]
    return [(at[0] + radius * math.cos(angle), at[1] + radius * math.sin(angle)) for angle in angles]


def _plate(frame: Frame, corners: list[Flat], color: Color) -> None:
    frame.flat(corners, color, reflect=_SIGN_REFLECT)


def _no_entry(frame: Frame, at: Flat) -> None:
    _plate(frame, polygon_about(at, 0.36, 20), RED)
    _plate(
        frame, [(at[0] + a, at[1] + b) for a, b in ((-0.26, -0.06), (0.26, -0.06), (0.26, 0.06), (-0.26, 0.06))], WHITE
    )


def _stop(frame: Frame, at: Flat) -> None:
    _plate(frame, polygon_about(at, 0.42, 8, math.pi / 8), WHITE)
    _plate(frame, polygon_about(at, 0.38, 8, math.pi / 8), RED)
    for a in (-0.22, -0.08, 0.06, 0.2):
        frame.bar((at[0] + a, at[1] - 0.09), (at[0] + a, at[1] + 0.09), 0.06, WHITE)


def _yield(frame: Frame, at: Flat) -> None:
    _plate(frame, polygon_about(at, 0.48, 3, math.pi), RED)
    _plate(frame, polygon_about(at, 0.26, 3, math.pi), WHITE)


def _warning(frame: Frame, at: Flat) -> None:
    """A permanent warning sign. It is white; the triangle at roadwork is yellow."""
    _plate(frame, polygon_about(at, 0.48, 3), RED)
    _plate(frame, polygon_about(at, 0.3, 3), WHITE)
    frame.bar((at[0], at[1] - 0.1), (at[0], at[1] + 0.1), 0.06, BLACK)


def _limit(frame: Frame, at: Flat) -> None:
    _plate(frame, polygon_about(at, 0.36, 20), RED)
    _plate(frame, polygon_about(at, 0.26, 20), WHITE)
    for a in (-0.1, 0.08):
        frame.bar((at[0] + a, at[1] - 0.11), (at[0] + a, at[1] + 0.11), 0.08, BLACK)


def _priority(frame: Frame, at: Flat) -> None:
    _plate(frame, polygon_about(at, 0.44, 4), WHITE)
    _plate(frame, polygon_about(at, 0.3, 4), _YELLOW)


def _guide(frame: Frame, at: Flat) -> None:
    _plate(
        frame,
        [(at[0] + a, at[1] + b) for a, b in ((-0.6, -0.25), (0.6, -0.25), (0.6, 0.25), (-0.6, 0.25))],
        (30, 76, 160),
    )
    for b in (-0.1, 0.08):
        frame.bar((at[0] - 0.45, at[1] + b), (at[0] + 0.4, at[1] + b), 0.07, WHITE)


_PLATES = (_no_entry, _stop, _yield, _warning, _limit, _priority, _guide)


def ordinary_sign(dice: Dice, x: float, z: float) -> Prop:
    """A permanent sign on a post."""
    plate, high = dice.pick(_PLATES), dice.between(2.0, 2.6)

    def draw(canvas: Canvas) -> None:
        frame = Frame(canvas, x, z)
        frame.bar((0.0, 0.0), (0.0, high + 0.3), 0.07, _STEEL)
        plate(frame, (0.0, high))

    return Prop(z, draw)


def traffic_light(dice: Dice, x: float, z: float) -> Prop:
    """A traffic light; one lamp is on at any time of day."""
    lit = dice.integer(0, 2)
    lamps: tuple[Color, ...] = ((255, 52, 40), (255, 176, 36), (48, 255, 150))
    dark: tuple[Color, ...] = ((70, 22, 20), (74, 54, 18), (18, 60, 40))

    def draw(canvas: Canvas) -> None:
        frame = Frame(canvas, x, z)
        frame.bar((0.0, 0.0), (0.0, 3.4), 0.11, (70, 72, 74))
        frame.flat([(-0.19, 2.5), (0.19, 2.5), (0.19, 3.5), (-0.19, 3.5)], BLACK)
        for index in range(3):
            at = (0.0, 3.33 - 0.32 * index)
            if index == lit:
                frame.shine((*at, 0.0), 0.12, lamps[index])
            else:
                frame.disc(at, 0.11, dark[index])

    return Prop(z, draw)


def street_lamp(x: float, z: float, side: int) -> Prop:
    """A street lamp with an arm over the road; it is on in the dark."""

    def draw(canvas: Canvas) -> None:
        frame = Frame(canvas, x, z)
        frame.bar((0.0, 0.0), (0.0, 6.6), 0.13, (92, 94, 98))
        frame.bar((0.0, 6.55), (-side * 1.9, 6.8), 0.1, (92, 94, 98))
        head = (-side * 1.9, 6.74)
        if canvas.light.lamps_lit:
            frame.shine((*head, 0.0), 0.2, (255, 206, 140))
        else:
            frame.oval(head, (0.4, 0.1), (120, 122, 126))

    return Prop(z, draw)


def bin_or_box(dice: Dice, x: float, z: float) -> Prop:
    """A litter bin, letter box or grit box in a strong color."""
    wide, tall = dice.between(0.22, 0.5), dice.between(0.7, 1.35)
    color, lid = paint(dice, 0.65), dice.between(0.5, 0.9)

    def draw(canvas: Canvas) -> None:
        frame = Frame(canvas, x, z + wide)
        frame.shadow((-wide, wide), (-wide, wide))
        frame.box((-wide, wide), (0.0, tall), (-wide, wide), color)
        frame.box((-wide - 0.03, wide + 0.03), (tall, tall + 0.1), (-wide - 0.03, wide + 0.03), scaled(color, lid))
        frame.strip(
            (-wide - 0.01, tall * 0.8), (-wide - 0.01, tall * 0.7), (-wide * 0.6, wide * 0.6), scaled(color, 0.3)
        )

    return Prop(z, draw)


def planter(dice: Dice, x: float, z: float) -> Prop:
    """A terracotta pot with a conical or round bush."""
    pot, leaf = dice.near((190, 92, 52), 14), dice.near((58, 98, 50), 12)
    cone, tall = dice.chance(0.5), dice.between(0.8, 1.6)

    def draw(canvas: Canvas) -> None:
        frame = Frame(canvas, x, z)
        frame.shadow((-0.3, 0.3), (-0.3, 0.3))
        if cone:
            frame.flat([(-0.38, 0.45), (0.38, 0.45), (0.0, 0.5 + tall)], leaf)
            frame.flat([(0.0, 0.45), (0.38, 0.45), (0.0, 0.5 + tall)], leaf, shade=0.8)
        else:
            frame.oval((0.0, 0.5 + tall * 0.3), (0.42, 0.2 + tall * 0.3), leaf)
        frame.flat([(-0.26, 0.0), (0.26, 0.0), (0.36, 0.5), (-0.36, 0.5)], pot)

    return Prop(z, draw)


def parasol(dice: Dice, x: float, z: float) -> Prop:
    """A café parasol in one or two colors."""
    cloth, other = paint(dice, 0.85), dice.pick((WHITE, WHITE, (60, 90, 70)))
    wide, plain = dice.between(1.0, 1.6), dice.chance(0.5)

    def draw(canvas: Canvas) -> None:
        frame = Frame(canvas, x, z)
        frame.bar((0.0, 0.0), (0.0, 2.4), 0.06, (120, 104, 84))
        for index in range(6):
            left, right = -wide + wide * index / 3, -wide + wide * (index + 1) / 3
            color = cloth if plain or index % 2 == 0 else other
            frame.flat(
                [(left, 1.95), (right, 1.95), (right * 0.1, 2.6), (left * 0.1, 2.6)], color, shade=1.0 - 0.04 * index
            )

    return Prop(z, draw)


def banded_posts(dice: Dice, x: float, z: float) -> Prop:
    """A row of permanent bollards, gray or with colored bands."""
    bands = dice.pick(((RED, WHITE), (WHITE, RED), (_STEEL, _STEEL), (BLACK, WHITE)))
    count, gap = dice.integer(2, 5), dice.between(1.2, 2.0)

    def draw(canvas: Canvas) -> None:
        for index in reversed(range(count)):
            frame = Frame(canvas, x, z + gap * index)
            for step in range(4):
                frame.bar((0.0, 0.25 * step), (0.0, 0.25 * step + 0.25), 0.11, bands[step % 2])

    return Prop(z, draw)


def billboard(dice: Dice, x: float, z: float) -> Prop:
    """A billboard on two legs."""
    wide, high = dice.between(1.0, 2.2), dice.between(1.0, 1.7)
    ground, ink = paint(dice, 0.7), dice.pick((WHITE, BLACK, *WARM))
    lines = [(dice.between(-0.8, 0.0), dice.between(0.1, 0.8), dice.between(0.1, 0.9)) for _ in range(4)]

    def draw(canvas: Canvas) -> None:
        frame = Frame(canvas, x, z)
        for a in (-wide * 0.7, wide * 0.7):
            frame.bar((a, 0.0), (a, 1.0), 0.1, (80, 82, 86))
        frame.flat([(-wide, 0.9), (wide, 0.9), (wide, 0.9 + high), (-wide, 0.9 + high)], (90, 92, 96))
        inner = wide - 0.08
        frame.flat([(-inner, 0.98), (inner, 0.98), (inner, 0.82 + high), (-inner, 0.82 + high)], ground, reflect=0.5)
        for left, right, b in lines:
            frame.bar((left * wide, 1.0 + b * (high - 0.3)), (right * wide, 1.0 + b * (high - 0.3)), 0.1 * high, ink)

    return Prop(z, draw)


def kiosk(dice: Dice, x: float, z: float) -> Prop:
    """A stall with a counter and a striped awning."""
    wide, cloth, wall = dice.between(0.9, 1.5), paint(dice, 0.85), paint(dice, 0.5)

    def draw(canvas: Canvas) -> None:
        frame = Frame(canvas, x, z + 1.0)
        frame.shadow((-wide, wide), (-1.0, 1.0))
        frame.box((-wide, wide), (0.0, 2.3), (-0.6, 1.0), wall)
        frame.strip((-0.61, 1.9), (-0.61, 1.0), (-wide + 0.1, wide - 0.1), (58, 50, 44))
        for index in range(8):
            span = (-wide + wide * index / 4, -wide + wide * (index + 1) / 4)
            color = WHITE if index % 2 else cloth
            frame.strip((-0.6, 2.5), (-1.0, 2.0), span, color, reflect=0.3)
            frame.strip((-1.0, 2.0), (-1.0, 1.75), span, color, reflect=0.3)

    return Prop(z, draw)


_KERBSIDE = (
    ordinary_sign,
    ordinary_sign,
    ordinary_sign,
    bin_or_box,
    bin_or_box,
    planter,
    parasol,
    parasol,
    banded_posts,
    banded_posts,
    billboard,
    billboard,
    kiosk,
    kiosk,
    traffic_light,
)
"""Objects at the kerb; repeated ones are more frequent."""


def everyday_props(street: Street, dice: Dice) -> list[Prop]:
    """Draw all objects of a street except roadwork; they are the same with and without a site."""
    props = [_driven(street, dice) for _ in range(dice.integer(1, 5))]
    props += [_parked(street, dice) for _ in range(dice.integer(0, 3))]
    for _ in range(dice.integer(1, 5)):
        side = dice.side()
        props.append(
            person(dice, street.kerb(side) + side * dice.between(0.3, street.pavement), dice.log_between(4.5, 45.0))
        )
    for _ in range(dice.integer(2, 7)):
        side = dice.side()
        x = street.kerb(side) + side * dice.between(0.4, 1.2)
        props.append(dice.pick(_KERBSIDE)(dice, x, dice.log_between(4.0, 40.0)))
    for side in (-1, 1):
        props += _avenue(street, side, dice)
    return props


def _driven(street: Street, dice: Dice) -> Prop:
    lane = dice.integer(0, len(street.lanes) - 1)
    # Vehicles in the camera's own lane keep a larger distance.
    near = 9.0 if lane == street.own_lane else 6.0
    x, z = street.lanes[lane] + dice.between(-0.3, 0.3), dice.log_between(near, 70.0)
    # Some vehicles cross the street.
    if dice.chance(0.08):
        return vehicle(dice, x, z, yaw=dice.side() * math.pi / 2)
    return vehicle(dice, x, z, yaw=dice.between(-0.06, 0.06) + (math.pi if lane < street.own_lane else 0.0))


def _parked(street: Street, dice: Dice) -> Prop:
    side = dice.side()
    x = street.kerb(side) + side * 0.2
    return vehicle(dice, x, dice.log_between(4.0, 40.0), yaw=math.pi if side < 0 else 0.0)


def _avenue(street: Street, side: int, dice: Dice) -> list[Prop]:
    """Street lamps at equal distances, and trees on some streets."""
    x = street.kerb(side) + side * 0.5
    gap, z = dice.between(14.0, 26.0), dice.between(6.0, 18.0)
    has_trees = dice.chance(0.35)
    props: list[Prop] = []
    while z < 80.0:
        props.append(street_lamp(x, z, side))
        if has_trees:
            props.append(tree(dice, x + side * dice.between(0.0, 0.8), z + gap / 2))
        z += gap
    return props
