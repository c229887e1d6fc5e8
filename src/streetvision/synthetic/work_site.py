"""Roadwork sites of the procedural scenes: which things stand together, where, and how far away."""

import math
from dataclasses import dataclass

from streetvision.synthetic.canvas import Camera, Flat
from streetvision.synthetic.machines import digger, heap
from streetvision.synthetic.random_draws import Dice
from streetvision.synthetic.roadwork import (
    Item,
    Livery,
    arrow_board,
    barrier,
    beacon,
    blocks,
    cone,
    draw_livery,
    drum,
    sign,
)
from streetvision.synthetic.street import Street
from streetvision.synthetic.traffic import Prop

_NEAREST, _FARTHEST = 3.6, 60.0
"""Metres between which a site may begin."""
_EDGE = 0.1
"""A site's anchor stays this share of the width away from the image's sides."""


@dataclass(frozen=True)
class _Placed:
    item: Item
    x: float
    """Metres right of the site's anchor."""
    z: float
    """Metres behind the site's anchor."""


def _row(items: list[Item], step: Flat) -> list[_Placed]:
    """Items at even distances along `step` = (right, away)."""
    middle = (len(items) - 1) / 2
    return [_Placed(item, step[0] * (index - middle), step[1] * index) for index, item in enumerate(items)]


def _cones(dice: Dice, livery: Livery) -> list[_Placed]:
    taper = (dice.between(-0.9, 0.9), dice.between(0.3, 2.2))
    return _row([cone(dice, livery) for _ in range(dice.whole(2, 7))], taper)


def _drums(dice: Dice, livery: Livery) -> list[_Placed]:
    taper = (dice.between(-1.3, 1.3), dice.between(0.2, 2.0))
    return _row([drum(dice, livery) for _ in range(dice.whole(2, 5))], taper)


def _barriers(dice: Dice, livery: Livery) -> list[_Placed]:
    placed = _row([barrier(dice, livery) for _ in range(dice.whole(1, 3))], (dice.side() * 2.3, dice.between(0.0, 0.6)))
    if dice.chance(0.5):
        placed.append(_Placed(heap(dice), dice.between(-0.6, 0.6), 1.8))
    return placed


def _beacons(dice: Dice, livery: Livery) -> list[_Placed]:
    taper = (dice.between(-0.8, 0.8), dice.between(0.5, 2.5))
    return _row([beacon(dice, livery) for _ in range(dice.whole(3, 6))], taper)


def _plastic(dice: Dice, livery: Livery) -> list[_Placed]:
    return [_Placed(blocks(dice, livery), 0.0, 0.5), *_extras(dice, livery)]


def _warned(dice: Dice, livery: Livery) -> list[_Placed]:
    return [_Placed(sign(dice, livery), 0.0, 0.0), *_extras(dice, livery)]


def _arrow(dice: Dice, livery: Livery) -> list[_Placed]:
    return [_Placed(arrow_board(dice, livery), 0.0, 1.0), *_extras(dice, livery)]


def _dig(dice: Dice, livery: Livery) -> list[_Placed]:
    fence = _cones if dice.chance(0.5) else _barriers
    return [_Placed(digger(dice, livery), dice.between(-1.0, 1.0), 3.0), *fence(dice, livery)]


def _extras(dice: Dice, livery: Livery) -> list[_Placed]:
    """Up to three cones or one board beside the main thing."""
    if dice.chance(0.3):
        return [_Placed(barrier(dice, livery), dice.side() * 1.6, 0.4)]
    count, side = dice.whole(0, 3), dice.side()
    return [_Placed(cone(dice, livery), side * (1.1 + 0.8 * index), 0.4 * index) for index in range(count)]


_SITES = (_cones, _cones, _drums, _barriers, _barriers, _beacons, _plastic, _warned, _warned, _arrow, _dig, _dig)


def roadwork_props(street: Street, camera: Camera, target: float, dice: Dice) -> list[Prop]:
    """A site that covers about the share `target` of the image while nothing hides it."""
    pixels = target * camera.width * camera.height
    for _ in range(12):
        placed = dice.pick(_SITES)(dice, draw_livery(dice))
        distance = _distance(placed, camera, pixels)
        if _NEAREST < distance < _FARTHEST:
            break
    distance = min(max(distance, _NEAREST), _FARTHEST)
    middle = dice.between(street.wall(-1) + 0.5, street.wall(1) - 0.5)
    bent = camera.bend * distance**2
    bounds = [((share - camera.centre / camera.width) * camera.width / camera.focal) for share in (_EDGE, 1.0 - _EDGE)]
    anchor = min(max(middle, bounds[0] * distance - bent), bounds[1] * distance - bent)
    return [_prop(one, anchor, distance) for one in placed]


def _prop(placed: _Placed, anchor: float, distance: float) -> Prop:
    x, z = anchor + placed.x, distance + placed.z
    return Prop(z, lambda canvas: placed.item.draw(canvas, x, z))


def _distance(placed: list[_Placed], camera: Camera, pixels: float) -> float:
    """Distance of the anchor at which the items together show `pixels` (bisection; they shrink with distance)."""
    low, high = 0.5, 4.0 * _FARTHEST
    for _ in range(24):
        middle = math.sqrt(low * high)
        shown = sum(one.item.area * (camera.focal / (middle + one.z)) ** 2 for one in placed)
        low, high = (middle, high) if shown > pixels else (low, middle)
    return middle
