"""Draw the views of an image with their predictions: position, probability and weight. Does not import torch.

Shapes: H, W pixels of the image.
"""

import io
from collections.abc import Sequence
from heapq import nlargest

from PIL import Image, ImageDraw, ImageFont

from streetvision.bundle.predictor import Prediction, ViewPrediction
from streetvision.data.image_file import Pixels
from streetvision.data.thumbnail import THUMBNAIL_PIXELS, encode_jpeg, shrink

MAX_SIDE = 1280
"""Pixels per side of an overlay. Larger images are reduced first, so frames and text have the same size on all."""
TEXT_PIXELS = 18
COLOR_0, COLOR_1 = (70, 130, 200), (235, 95, 20)
"""Colors of probability 0 and 1."""
TEXT_COLOR = (255, 255, 255)
MAX_FRAMES = 3
"""Tiles with a frame on a thumbnail."""


def draw_overlay(pixels: Pixels, prediction: Prediction) -> bytes:
    """Draw all views of an image, with a caption above; a larger weight gives a thicker frame.

    Args:
        pixels: (H, W, 3).
        prediction: From `Predictor.explain`.

    Returns:
        A PNG.
    """
    image = shrink(pixels, MAX_SIDE)
    scale = image.width / pixels.shape[1]
    whole, *tiles = prediction.views
    _draw_frames(image, tiles, scale, max_width=6)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(TEXT_PIXELS)
    for view in tiles:
        position = (view.box.left * scale + 6, view.box.top * scale + 6)
        left, top, right, bottom = draw.textbbox(position, _view_text(view), font=font)
        draw.rectangle([left - 3, top - 2, right + 3, bottom + 2], fill=_color(view.probability))
        draw.text(position, _view_text(view), fill=TEXT_COLOR, font=font)
    overlay = Image.new("RGB", (image.width, image.height + 2 * TEXT_PIXELS))
    overlay.paste(image, (0, 2 * TEXT_PIXELS))
    caption = f"{prediction.label}  p = {prediction.probability:.3f}    whole image {_view_text(whole)}"
    ImageDraw.Draw(overlay).text((6, TEXT_PIXELS // 2), caption, fill=TEXT_COLOR, font=font)
    png = io.BytesIO()
    overlay.save(png, "PNG")
    return png.getvalue()


def draw_decisive(pixels: Pixels, tiles: Sequence[ViewPrediction]) -> bytes:
    """Draw a thumbnail of an image (H, W, 3) with frames around the tiles of largest weight, and return a JPEG."""
    image = shrink(pixels, THUMBNAIL_PIXELS)
    decisive = nlargest(MAX_FRAMES, tiles, key=lambda view: abs(view.weight))
    _draw_frames(image, decisive, image.width / pixels.shape[1], max_width=4)
    return encode_jpeg(image)


def _draw_frames(image: Image.Image, tiles: Sequence[ViewPrediction], scale: float, *, max_width: int) -> None:
    """Frame tiles in the color of their probability; the width grows with the weight, up to `max_width`."""
    largest, draw = max((abs(view.weight) for view in tiles), default=0.0) or 1.0, ImageDraw.Draw(image)
    for view in sorted(tiles, key=lambda view: abs(view.weight)):  # tiles overlap, so the most important is drawn last
        left, top, right, bottom = (round(edge * scale) for edge in view.box)
        width = 1 + round((max_width - 1) * abs(view.weight) / largest)
        draw.rectangle([left, top, right - 1, bottom - 1], outline=_color(view.probability), width=width)


def _view_text(view: ViewPrediction) -> str:
    return f"{view.probability:.2f} (weight {view.weight:.2f})"


def _color(probability: float) -> tuple[int, int, int]:
    red, green, blue = (round(low + probability * (high - low)) for low, high in zip(COLOR_0, COLOR_1, strict=True))
    return red, green, blue
