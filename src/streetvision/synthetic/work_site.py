"""Roadwork sites of the drawn scenes: their items, position and distance."""

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
"""Range of the distance of a site, metres."""
_EDGE = 0.1
"""Smallest distance of a site's anchor from the left and right image border, as a fraction of the width."""


@dataclass(frozen=True)
class _Placed:
    item: Item
    x: float
    """Metres to the right of the anchor."""
    z: float
    """Metres behind the anchor."""


def _row(items: list[Item], step: Flat) -> list[_Placed]:
    """Items at equal distances along `step` = (right, away)."""
    middle = (len(items) - 1) / 2
    return [_Placed(item, step[0] * (index - middle), step[1] * index) for index, item in enumerate(items)]


def _cones(dice: Dice, livery: Livery) -> list[_Placed]:
    taper = (dice.between(-0.9, 0.9), dice.between(0.3, 2.2))
    return _row([cone(dice, livery) for _ in range(dice.integer(2, 7))], taper)


def _drums(dice: Dice, livery: Livery) -> list[_Placed]:
    taper = (dice.between(-1.3, 1.3), dice.between(0.2, 2.0))
    return _row([drum(dice, livery) for _ in range(dice.integer(2, 5))], taper)


def _barriers(dice: Dice, livery: Livery) -> list[_Placed]:
    placed = _row(
        [barrier(dice, livery) for _ in range(dice.integer(1, 3))], (dice.side() * 2.3, dice.between(0.0, 0.6))
    )
    if dice.chance(0.5):
        placed.append(_Placed(heap(dice), dice.between(-0.6, 0.6), 1.8))
    return placed


def _beacons(dice: Dice, livery: Livery) -> list[_Placed]:
    taper = (dice.between(-0.8, 0.8), dice.between(0.5, 2.5))
    return _row([beacon(dice, livery) for _ in range(dice.integer(3, 6))], taper)


def _barrier_blocks(dice: Dice, livery: Livery) -> list[_Placed]:
    return [_Placed(blocks(dice, livery), 0.0, 0.5), *_extras(dice, livery)]


def _signs(dice: Dice, livery: Livery) -> list[_Placed]:
    return [_Placed(sign(dice, livery), 0.0, 0.0), *_extras(dice, livery)]


def _arrow(dice: Dice, livery: Livery) -> list[_Placed]:
    return [_Placed(arrow_board(dice, livery), 0.0, 1.0), *_extras(dice, livery)]


def _dig(dice: Dice, livery: Livery) -> list[_Placed]:
    fence = _cones if dice.chance(0.5) else _barriers
    return [_Placed(digger(dice, livery), dice.between(-1.0, 1.0), 3.0), *fence(dice, livery)]


def _extras(dice: Dice, livery: Livery) -> list[_Placed]:
    """Up to three cones or one barrier next to the main item."""
    if dice.chance(0.3):
        return [_Placed(barrier(dice, livery), dice.side() * 1.6, 0.4)]
    count, side = dice.integer(0, 3), dice.side()
    return [_Placed(cone(dice, livery), side * (1.1 + 0.8 * index), 0.4 * index) for index in range(count)]


_SITES = (_cones, _cones, _drums, _barriers, _barriers, _beacons, _barrier_blocks, _signs, _signs, _arrow, _dig, _dig)


def roadwork_props(street: Street, camera: Camera, target: float, dice: Dice) -> list[Prop]:
    """Draw a site that covers about the fraction `target` of the image if nothing occludes it."""
    pixels = target * camera.width * camera.height
    # A site is drawn again if it would have to be too near or too far for its area.
    for _ in range(12):
        placed = dice.pick(_SITES)(dice, draw_livery(dice))
        distance = _distance(placed, camera, pixels)
        if _NEAREST < distance < _FARTHEST:
            break
    distance = min(max(distance, _NEAREST), _FARTHEST)
    middle = dice.between(street.wall(-1) + 0.5, street.wall(1) - 0.5)
    # The anchor is kept inside the image, with the bend of the street taken into account.
    bent = camera.bend * distance**2
    bounds = [((share - camera.center / camera.width) * camera.width / camera.focal) for share in (_EDGE, 1.0 - _EDGE)]
    anchor = min(max(middle, bounds[0] * distance - bent), bounds[1] * distance - bent)
    return [_prop(item, anchor, distance) for item in placed]


def _prop(placed: _Placed, anchor: float, distance: float) -> Prop:
    x, z = anchor + placed.x, distance + placed.z
    return Prop(z, lambda canvas: placed.item.draw(canvas, x, z))


def _distance(placed: list[_Placed], camera: Camera, pixels: float) -> float:
    """Distance of the anchor at which the items cover `pixels`, by bisection."""
    low, high = 0.5, 4.0 * _FARTHEST
    for _ in range(24):
        # The geometric mean, because distances extend over orders of magnitude.
        middle = math.sqrt(low * high)
        visible = sum(p.item.area * (camera.focal / (middle + p.z)) ** 2 for p in placed)
        low, high = (middle, high) if visible > pixels else (low, middle)
    return middle
