"""Large items of a roadwork site in the drawn scenes: excavators and heaps of earth."""

import math

from streetvision.synthetic.canvas import MARK, Canvas, Flat, Frame
from streetvision.synthetic.random_draws import Color, Dice, scaled
from streetvision.synthetic.roadwork import Item, Livery


def _beam(frame: Frame, start: Flat, end: Flat, width: float, color: Color) -> None:
    """An arm between two points in (c, b)."""
    length = math.dist(start, end)
    c, b = (end[1] - start[1]) / length * width / 2, -(end[0] - start[0]) / length * width / 2
    outline = [
        (start[0] + c, start[1] + b),
        (end[0] + c, end[1] + b),
        (end[0] - c, end[1] - b),
        (start[0] - c, start[1] - b),
    ]
    frame.extrude(outline, (-0.16, 0.16), color)


def digger(dice: Dice, livery: Livery) -> Item:
    """An excavator on tracks."""
    yaw = dice.side() * dice.between(0.7, 2.2)
    reach, lift = dice.between(3.6, 4.8), dice.between(2.6, 4.0)
    bucket = dice.between(0.5, 1.6)

    def draw(canvas: Canvas, x: float, z: float) -> None:
        frame = Frame(canvas, x, z + 2.0, yaw=yaw, mark=MARK)
        frame.shadow((-1.3, 1.3), (-1.9, 1.9))
        # Parts are drawn from far to near, which depends on the rotation.
        left_near = frame.world((-1.0, 0.0, 0.0))[2] < frame.z
        tread = [(-1.5, 0.0), (1.5, 0.0), (1.85, 0.38), (1.5, 0.75), (-1.5, 0.75), (-1.85, 0.38)]
        for a in ((0.65, 1.2), (-1.2, -0.65)) if left_near else ((-1.2, -0.65), (0.65, 1.2)):
            frame.extrude(tread, a, (46, 46, 48))
            frame.sides([(-1.4, 0.22), (1.4, 0.22), (1.4, 0.52), (-1.4, 0.52)], a, (86, 84, 80))
        parts = [_digger_house, _digger_cab]
        for part in parts if left_near else reversed(parts):
            part(frame, livery)
        elbow, wrist = (reach * 0.55, lift), (reach, lift * 0.82)
        hand = (reach + 0.25, bucket + 0.5)
        _beam(frame, (0.5, 1.5), elbow, 0.5, livery.machine)
        _beam(frame, elbow, wrist, 0.42, livery.machine)
        _beam(frame, wrist, hand, 0.34, scaled(livery.machine, 0.92))
        frame.extrude(
            [
                (hand[0] - 0.7, hand[1] - 0.5),
                (hand[0] + 0.1, hand[1] - 0.6),
                (hand[0] + 0.2, hand[1]),
                (hand[0] - 0.5, hand[1]),
            ],
            (-0.45, 0.45),
            (58, 56, 54),
        )

    return Item(8.0, draw)


def _digger_house(frame: Frame, livery: Livery) -> None:
    frame.box((-0.9, 0.9), (0.7, 0.9), (-0.9, 0.9), (40, 40, 42))
    body = [(-2.0, 0.95), (0.9, 0.95), (0.9, 1.75), (-1.3, 2.0), (-2.0, 1.8)]
    frame.extrude(body, (-1.2, 1.2), livery.machine)
    frame.sides([(-1.9, 1.05), (-1.0, 1.05), (-1.0, 1.6), (-1.9, 1.6)], (-1.21, 1.21), scaled(livery.machine, 0.45))


def _digger_cab(frame: Frame, livery: Livery) -> None:
    cab = [(-0.2, 1.0), (1.35, 1.0), (1.45, 1.9), (1.15, 2.85), (-0.2, 2.85)]
    frame.extrude(cab, (-1.2, -0.15), livery.machine)
    frame.sides([(-0.05, 1.75), (1.28, 1.75), (1.05, 2.7), (-0.05, 2.7)], (-1.21, -0.14), (52, 62, 74))
    frame.strip((1.46, 1.85), (1.17, 2.75), (-1.1, -0.25), (52, 62, 74))


def heap(dice: Dice) -> Item:
    """A heap of earth or gravel."""
    wide, high = dice.between(0.7, 1.6), dice.between(0.5, 1.1)
    earth = dice.near(dice.pick(((110, 84, 60), (132, 124, 112), (94, 76, 62))), 12)
    crest = [(dice.between(-0.1, 0.1), dice.between(0.85, 1.0)) for _ in range(3)]

    def draw(canvas: Canvas, x: float, z: float) -> None:
        frame = Frame(canvas, x, z, mark=MARK)
        frame.shadow((-wide, wide), (-0.3, 0.3))
        # The crest consists of three random points from right to left.
        tops = [(wide * (0.35 - 0.35 * index + a), high * b) for index, (a, b) in enumerate(crest)]
        frame.flat([(-wide, 0.0), (wide, 0.0), (wide * 0.7, high * 0.5), *tops, (-wide * 0.75, high * 0.45)], earth)
        frame.flat([(0.0, 0.0), (wide, 0.0), (wide * 0.7, high * 0.5), tops[0]], earth, shade=0.8)

    return Item(wide * high * 1.2, draw)
