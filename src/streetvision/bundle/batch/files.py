"""Print predictions of a bundle for files and folders, as JSON lines or CSV."""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

from streetvision.bundle.explain import draw_overlay
from streetvision.bundle.model import Prepared
from streetvision.bundle.predictor import Prediction, Predictor, load_bundle
from streetvision.contracts.errors import DataError
from streetvision.data.image_file import UndecodableImage
from streetvision.data.records import IMAGE_SUFFIXES
from streetvision.io.atomic import write_bytes_atomic

BATCH_SIZE = 64
FIELDS = ("image", "label", "decision", "probability", "certified", "error")

PredictionRow: TypeAlias = dict[str, Any]
"""The prediction for one image, with the keys of FIELDS that apply, and `views` if it is explained."""


def print_predictions(
    bundle: Path, images: Iterable[Path], *, output_format: Literal["jsonl", "csv"], explain: Path | None = None
) -> int:
    """Print one line per image.

    Args:
        bundle: Folder of the bundle, or its bundle.json.
        images: Image files, and folders with images.
        output_format: CSV lines have no views.
        explain: Folder for drawings of each image with its views; None: nothing is drawn.

    Returns:
        The number of images that cannot be decoded.
    """
    predictor = load_bundle(bundle)
    files = list(expand(images))
    if explain is None:
        rows = predict_images(predictor, ((str(path), path) for path in files))
    else:
        rows = _explain_files(predictor, files, explain)
    write_row, failures = WRITERS[output_format](), 0
    for row in rows:
        failures += "error" in row
        write_row(row)
    return failures


def expand(images: Iterable[Path]) -> Iterator[Path]:
    """Yield files as they are, and the images in folders sorted by path; raises DataError if a folder has none."""
    for path in images:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
            if not files:
                raise DataError(f"folder {str(path)!r} has no images")
            yield from files
        else:
            yield path


def predict_images(
    predictor: Predictor, images: Iterable[tuple[str, Path | bytes | UndecodableImage]]
) -> Iterator[PredictionRow]:
    """Predict named images in batches, in their order. An image that cannot be decoded gets a row with the error."""
    remaining, size = iter(images), predictor.images_per_batch(BATCH_SIZE)
    while batch := list(islice(remaining, size)):
        inputs = [_prepare(predictor, image) for _, image in batch]
        prepared = [image for image in inputs if not isinstance(image, UndecodableImage)]
        predictions = iter(predictor.predict_prepared(prepared) if prepared else [])
        for (name, _), image in zip(batch, inputs, strict=True):
            if isinstance(image, UndecodableImage):
                yield {"image": name, "error": image.reason}
            else:
                yield _row(name, next(predictions))


def _prepare(predictor: Predictor, image: Path | bytes | UndecodableImage) -> Prepared | UndecodableImage:
    """Decode and resize an image; an error is a value, so that the rest of the batch is still predicted."""
    if isinstance(image, UndecodableImage):
        return image
    try:
        return predictor.prepare(image)
    except UndecodableImage as error:
        return error


def _explain_files(predictor: Predictor, files: list[Path], folder: Path) -> Iterator[PredictionRow]:
    """Predict files one by one, and write a drawing of each, named by its position and its file."""
    for number, path in enumerate(files, start=1):
        try:
            pixels = predictor.read_image(path)
        except UndecodableImage as error:
            yield {"image": str(path), "error": error.reason}
            continue
        prediction = predictor.explain(pixels)
        write_bytes_atomic(folder / f"{number:04d}-{path.stem}.png", draw_overlay(pixels, prediction))
        yield _row(str(path), prediction)


def _row(name: str, prediction: Prediction) -> PredictionRow:
    fields = asdict(prediction)
    if not prediction.views:
        del fields["views"]
    return {"image": name, **fields}


def _json_writer() -> Callable[[PredictionRow], object]:
    return lambda row: sys.stdout.write(json.dumps(row) + "\n")


def _csv_writer() -> Callable[[PredictionRow], object]:
    writer = csv.DictWriter(sys.stdout, fieldnames=FIELDS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    return writer.writerow


WRITERS: dict[str, Callable[[], Callable[[PredictionRow], object]]] = {"jsonl": _json_writer, "csv": _csv_writer}
"""--format -> a function that starts the output and returns the writer of its rows."""
