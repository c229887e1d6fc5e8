"""Answers of a bundle for files and folders, as lines that another program can read."""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Literal

from streetvision.bundle.explain import draw_overlay
from streetvision.bundle.predictor import Prediction, Predictor, Prepared, load_bundle
from streetvision.contracts.errors import DataError
from streetvision.data.decode import UndecodableImage, read_image
from streetvision.data.records import IMAGE_SUFFIXES
from streetvision.io.atomic import write_bytes_atomic
from streetvision.models.fused import images_per_batch

BATCH = 64
FIELDS = ("image", "label", "decision", "probability", "certified", "error")


Answer = dict[str, object]
Writer = Callable[[Answer], object]
"""Prints one answer, which has the keys of FIELDS that apply."""


def print_predictions(
    bundle: Path, images: Iterable[Path], *, form: Literal["jsonl", "csv"], explain: Path | None = None
) -> int:
    """Print one line an image in the order given; returns how many could not be answered.

    `explain` is a folder for pictures of what each view of an image showed; JSON lines then tell it as well.
    """
    predictor = load_bundle(bundle)
    files = list(expand(images))
    write, failures = WRITERS[form](), 0
    for answer in _answers(predictor, files) if explain is None else _explained(predictor, files, explain):
        failures += "error" in answer
        write(answer)
    return failures


def expand(images: Iterable[Path]) -> Iterator[Path]:
    """Files as they are, folders as the images below them in the order of their names."""
    for path in images:
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise DataError(f"folder {str(path)!r} holds no images")
            yield from found
        else:
            yield path


def _explained(predictor: Predictor, files: list[Path], folder: Path) -> Iterator[Answer]:
    """Answers one by one, each with a picture named after its place and its image."""
    for number, path in enumerate(files, start=1):
        try:
            pixels = read_image(path, limits=predictor.limits)
        except UndecodableImage as error:
            yield {"image": str(path), "error": error.reason}
            continue
        prediction = predictor.explain(pixels)
        write_bytes_atomic(folder / f"{number:04d}-{path.stem}.png", draw_overlay(pixels, prediction))
        yield _answer(str(path), prediction)


def _answers(predictor: Predictor, files: list[Path]) -> Iterator[Answer]:
    return predict_images(predictor, ((str(path), path) for path in files))


def predict_images(
    predictor: Predictor, images: Iterable[tuple[str, Path | bytes | UndecodableImage]]
) -> Iterator[Answer]:
    """One answer for each name with its image, in their order; one that cannot be decoded has an error in its place."""
    remaining, size = iter(images), images_per_batch(predictor.model, BATCH)
    while batch := list(islice(remaining, size)):
        yield from _batch(predictor, batch)


def _batch(predictor: Predictor, images: Sequence[tuple[str, Path | bytes | UndecodableImage]]) -> Iterator[Answer]:
    made = [_prepared(predictor, image) for _, image in images]
    prepared = [one for one in made if not isinstance(one, UndecodableImage)]
    found = iter(predictor.predict_prepared(prepared) if prepared else [])
    for (name, _), one in zip(images, made, strict=True):
        if isinstance(one, UndecodableImage):
            yield {"image": name, "error": one.reason}
        else:
            yield _answer(name, next(found))


def _prepared(predictor: Predictor, image: Path | bytes | UndecodableImage) -> Prepared | UndecodableImage:
    if isinstance(image, UndecodableImage):
        return image
    try:
        return predictor.prepare(image)
    except UndecodableImage as error:
        return error


def _answer(name: str, prediction: Prediction) -> Answer:
    fields = asdict(prediction)
    if not prediction.views:
        del fields["views"]
    return {"image": name, **fields}


def _json_lines() -> Writer:
    def write(answer: Answer) -> None:
        sys.stdout.write(json.dumps(answer) + "\n")

    return write


def _csv_lines() -> Writer:
    writer = csv.DictWriter(sys.stdout, fieldnames=FIELDS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    return writer.writerow


WRITERS = {"jsonl": _json_lines, "csv": _csv_lines}
