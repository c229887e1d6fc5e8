"""A picture of what each view of an image showed: its rectangle, its probability, and how much it counted."""

import io

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from streetvision.bundle.predictor import Prediction, ViewAnswer

LONGEST_SIDE = 1280
"""Pixels of the picture; rectangles and letters keep their size on it."""
TEXT_PIXELS = 18
NONE, ALL = (70, 130, 200), (235, 95, 20)
"""Colours of probability 0 and 1."""
INK = (255, 255, 255)


def draw_overlay(pixels: Tensor, prediction: Prediction) -> bytes:
    """PNG of the image (3, H, W) with its views; the thickest frame is of the view that counted most."""
    image = Image.fromarray(pixels.movedim(0, -1).contiguous().numpy())
    scale = min(1.0, LONGEST_SIDE / max(image.size))
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    whole, *tiles = prediction.views
    most = max((abs(view.weight) for view in tiles), default=0.0) or 1.0
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(TEXT_PIXELS)
    for view in sorted(tiles, key=lambda view: abs(view.weight)):
        width = 1 + round(5 * abs(view.weight) / most)
        frame = [round(edge * scale) for edge in view.box]
        pen.rectangle([frame[0], frame[1], frame[2] - 1, frame[3] - 1], outline=_colour(view.probability), width=width)
    for view in tiles:
        _label(pen, (view.box.left * scale + 6, view.box.top * scale + 6), _told(view), view.probability, font)
    picture = Image.new("RGB", (image.width, image.height + 2 * TEXT_PIXELS))
    picture.paste(image, (0, 2 * TEXT_PIXELS))
    caption = f"{prediction.label}  p = {prediction.probability:.3f}    whole image {_told(whole)}"
    ImageDraw.Draw(picture).text((6, TEXT_PIXELS // 2), caption, fill=INK, font=font)
    png = io.BytesIO()
    picture.save(png, "PNG")
    return png.getvalue()


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
