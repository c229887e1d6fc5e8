"""Draw the views of an image with their predictions: position, probability and weight. Does not import torch.

The patches of a dense pass are drawn like tiles.

Shapes: H, W pixels of the image; h, w pixels of the drawn picture.
"""

import io
from collections.abc import Sequence
from heapq import nlargest

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from streetvision.bundle.predictor import Prediction, ViewPrediction
from streetvision.data.image_file import Pixels
from streetvision.data.thumbnail import THUMBNAIL_PIXELS, encode_jpeg, shrink

WIDTH = 960
"""Pixels of the width of an overlay. Every image is scaled to it, so that text has the same size on all."""
MAX_HEIGHT = 1280
"""Pixels of the height of the picture in an overlay."""
MARGIN, TEXT_PIXELS, LINE = 16, 18, 26
"""Pixels: around each part of an overlay, of the font, and of a line of text."""
TILES_PER_ROW = 5
COLOR_0, COLOR_1 = (70, 130, 200), (235, 95, 20)
"""Colors of probability 0 and 1."""
BACKGROUND, TEXT_COLOR = (255, 255, 255), (25, 25, 25)
HEAT = 0.55
"""Largest opacity of the heat-map."""
MAX_CARDS = 10
"""Tiles that are numbered and shown on their own, if there are more than MAX_TILES: those of largest weight."""
MAX_TILES = 30
MAX_FRAMES = 3
"""Tiles with a frame on a thumbnail."""


def draw_overlay(pixels: Pixels, prediction: Prediction) -> bytes:
    """Draw the views of an image: the picture with a heat-map and numbered tiles, a legend, and each tile on its own.

    A pixel of the heat-map has the mean probability of the tiles that show it, by weight. It is more opaque where the
    weights are larger.

    Args:
        pixels: (H, W, 3).
        prediction: From `Predictor.explain`.

    Returns:
        A PNG, WIDTH pixels wide. All text is outside the picture, except the numbers of the tiles.
    """
    whole, *views = prediction.views
    views = _visible(views)
    tiles = views
    if len(views) > MAX_TILES:
        tiles = nlargest(MAX_CARDS, views, key=lambda view: abs(view.weight))
    image = Image.fromarray(pixels)
    scale = min((WIDTH - 2 * MARGIN) / image.width, MAX_HEIGHT / image.height)
    picture = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    tile_width = (WIDTH - (TILES_PER_ROW + 1) * MARGIN) // TILES_PER_ROW
    tile_rows = [tiles[start : start + TILES_PER_ROW] for start in range(0, len(tiles), TILES_PER_ROW)]
    cards = [[_fit(image.crop(view.box), tile_width) for view in row] for row in tile_rows]

    top = 2 * LINE + 2 * MARGIN
    heights = [max(card.height for card in row) + 2 * LINE + MARGIN for row in cards]
    legend = 2 * LINE + 2 * MARGIN if tiles else 0
    overlay = Image.new("RGB", (WIDTH, top + picture.height + MARGIN + legend + sum(heights)), BACKGROUND)
    draw, font = ImageDraw.Draw(overlay), ImageFont.load_default(TEXT_PIXELS)
    draw.text(
        (MARGIN, MARGIN), f"{prediction.label}; probability of class 1: {prediction.probability:.3f}", TEXT_COLOR, font
    )
    draw.text((MARGIN, MARGIN + LINE), f"whole image: {_view_text(whole)}", TEXT_COLOR, font)
    left = (WIDTH - picture.width) // 2
    overlay.paste(_heat_map(picture, views, scale), (left, top))
    y = top + picture.height + MARGIN
    if tiles:
        _draw_legend(draw, font, y, shown="all" if tiles is views else f"the {len(tiles)} of largest weight")
        y += legend
    for number, view in enumerate(tiles, start=1):
        box = view.box
        center = (left + (box.left + box.right) / 2 * scale, top + (box.top + box.bottom) / 2 * scale)
        draw.circle(center, TEXT_PIXELS * 0.8, fill=_color(view.probability), outline=BACKGROUND, width=2)
        draw.text(center, str(number), BACKGROUND, font, anchor="mm")
    number = 0
    for row, images, height in zip(tile_rows, cards, heights, strict=True):
        for column, (view, card) in enumerate(zip(row, images, strict=True)):
            number += 1
            x = MARGIN + column * (tile_width + MARGIN)
            overlay.paste(card, (x, y))
            frame = (x, y, x + card.width - 1, y + card.height - 1)
            draw.rectangle(frame, outline=_color(view.probability), width=4)
            text_y = y + card.height + 4
            draw.text((x, text_y), f"{number}: {view.probability:.2f}", TEXT_COLOR, font)
            draw.text((x, text_y + LINE - 4), f"weight {view.weight:.2f}", TEXT_COLOR, font)
        y += height
    png = io.BytesIO()
    overlay.save(png, "PNG")
    return png.getvalue()


def _heat_map(picture: Image.Image, tiles: Sequence[ViewPrediction], scale: float) -> Image.Image:
    """The picture, in color where no tile is, with the colors of the tiles over it."""
    if not tiles:
        return picture
    total = np.zeros((picture.height, picture.width))
    weighted = total.copy()
    for view in tiles:
        left, top, right, bottom = (round(edge * scale) for edge in view.box)
        total[top:bottom, left:right] += abs(view.weight)
        weighted[top:bottom, left:right] += abs(view.weight) * view.probability
    probability = weighted / np.maximum(total, 1e-9)
    opacity = HEAT * (total / max(float(total.max()), 1e-9))[..., None]
    colors = np.array(COLOR_0) + probability[..., None] * (np.array(COLOR_1) - np.array(COLOR_0))
    gray = np.asarray(picture.convert("L").convert("RGB"))
    return Image.fromarray(((1 - opacity) * gray + opacity * colors).round().astype(np.uint8))


def _draw_legend(
    draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, y: int, *, shown: str
) -> None:
    """A scale of the colors from probability 0 to 1, and what the heat-map means."""
    bar = WIDTH // 4
    draw.text((MARGIN, y), "0", TEXT_COLOR, font)
    for x in range(bar):
        draw.line((MARGIN + 20 + x, y + 2, MARGIN + 20 + x, y + TEXT_PIXELS), fill=_color(x / (bar - 1)))
    draw.text((MARGIN + 30 + bar, y), "1   probability of class 1 in each tile", TEXT_COLOR, font)
    draw.text((MARGIN, y + LINE), f"Stronger colors: more weight. Shown below: {shown}.", TEXT_COLOR, font)


def _fit(image: Image.Image, width: int) -> Image.Image:
    """Scale to a width, or to the same height if the image is taller than wide."""
    scale = width / max(image.size)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))


def draw_decisive(pixels: Pixels, tiles: Sequence[ViewPrediction]) -> bytes:
    """Draw a thumbnail of an image (H, W, 3) with frames around the tiles of largest weight, and return a JPEG."""
    image = shrink(pixels, THUMBNAIL_PIXELS)
    decisive = nlargest(MAX_FRAMES, _visible(tiles), key=lambda view: abs(view.weight))
    _draw_frames(image, decisive, image.width / pixels.shape[1], max_width=4)
    return encode_jpeg(image)


def _draw_frames(image: Image.Image, tiles: Sequence[ViewPrediction], scale: float, *, max_width: int) -> None:
    """Frame tiles in the color of their probability; the width grows with the weight, up to `max_width`."""
    largest, draw = max((abs(view.weight) for view in tiles), default=0.0) or 1.0, ImageDraw.Draw(image)
    for view in sorted(tiles, key=lambda view: abs(view.weight)):  # tiles overlap, so the most important is drawn last
        left, top, right, bottom = (round(edge * scale) for edge in view.box)
        width = 1 + round((max_width - 1) * abs(view.weight) / largest)
        corner = (max(left, right - 1), max(top, bottom - 1))  # a tile may be smaller than a pixel of the drawing
        draw.rectangle([(left, top), corner], outline=_color(view.probability), width=width)


def _visible(views: Sequence[ViewPrediction]) -> list[ViewPrediction]:
    """Those that show a part of the image: in an image of a few pixels, many patches of a dense pass show none."""
    return [view for view in views if view.box.left < view.box.right and view.box.top < view.box.bottom]


def _view_text(view: ViewPrediction) -> str:
    return f"{view.probability:.2f}, weight {view.weight:.2f}"


def _color(probability: float) -> tuple[int, int, int]:
    red, green, blue = (round(low + probability * (high - low)) for low, high in zip(COLOR_0, COLOR_1, strict=True))
    return red, green, blue
