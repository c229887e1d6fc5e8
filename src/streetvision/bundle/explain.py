"""A picture of what each view of an image showed: its rectangle, its probability, and how much it counted."""

import io
from collections.abc import Sequence
from heapq import nlargest

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from streetvision.bundle.predictor import Prediction, ViewAnswer
from streetvision.data.thumbnail import THUMBNAIL_PIXELS, encode_jpeg, shrink

LONGEST_SIDE = 1280
"""Pixels of the picture; rectangles and letters keep their size on it."""
TEXT_PIXELS = 18
NONE, ALL = (70, 130, 200), (235, 95, 20)
"""Colours of probability 0 and 1."""
INK = (255, 255, 255)
DECISIVE = 3
"""Frames on a thumbnail."""


def draw_overlay(pixels: Tensor, prediction: Prediction) -> bytes:
    """PNG of the image (3, H, W) with its views; the thickest frame is of the view that counted most."""
    image = shrink(pixels, LONGEST_SIDE)
    scale = image.width / pixels.shape[2]
    whole, *tiles = prediction.views
    _frame(image, tiles, scale, thickest=6)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(TEXT_PIXELS)
    for view in tiles:
        _label(pen, (view.box.left * scale + 6, view.box.top * scale + 6), _told(view), view.probability, font)
    picture = Image.new("RGB", (image.width, image.height + 2 * TEXT_PIXELS))
    picture.paste(image, (0, 2 * TEXT_PIXELS))
    caption = f"{prediction.label}  p = {prediction.probability:.3f}    whole image {_told(whole)}"
    ImageDraw.Draw(picture).text((6, TEXT_PIXELS // 2), caption, fill=INK, font=font)
    png = io.BytesIO()
    picture.save(png, "PNG")
    return png.getvalue()


def draw_decisive(pixels: Tensor, tiles: Sequence[ViewAnswer]) -> bytes:
    """A small JPEG of the image (3, H, W) with frames around the tiles that counted most, three at the most."""
    image = shrink(pixels, THUMBNAIL_PIXELS)
    decisive = nlargest(DECISIVE, tiles, key=lambda view: abs(view.weight))
    _frame(image, decisive, image.width / pixels.shape[2], thickest=4)
    return encode_jpeg(image)


def _frame(image: Image.Image, tiles: Sequence[ViewAnswer], scale: float, *, thickest: int) -> None:
    """Frames in the colours of the tiles' probabilities, the thicker the more each counted, which is drawn last."""
    most, pen = max((abs(view.weight) for view in tiles), default=0.0) or 1.0, ImageDraw.Draw(image)
    for view in sorted(tiles, key=lambda view: abs(view.weight)):
        left, top, right, bottom = (round(edge * scale) for edge in view.box)
        width = 1 + round((thickest - 1) * abs(view.weight) / most)
        pen.rectangle([left, top, right - 1, bottom - 1], outline=_colour(view.probability), width=width)


def _told(view: ViewAnswer) -> str:
    return f"{view.probability:.2f} (weight {view.weight:.2f})"


def _colour(probability: float) -> tuple[int, int, int]:
    red, green, blue = (round(low + probability * (high - low)) for low, high in zip(NONE, ALL, strict=True))
    return red, green, blue


def _label(
    pen: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    probability: float,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    left, top, right, bottom = pen.textbbox(at, text, font=font)
    pen.rectangle([left - 3, top - 2, right + 3, bottom + 2], fill=_colour(probability))
    pen.text(at, text, fill=INK, font=font)
