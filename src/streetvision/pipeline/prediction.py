"""Answers of a bundle for files and folders, as lines that another program can read."""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from streetvision.bundle.predictor import Prediction, Predictor, Prepared, load_bundle
from streetvision.contracts.errors import DataError
from streetvision.data.decode import UndecodableImage, read_image
from streetvision.data.index import IMAGE_SUFFIXES
from streetvision.io.atomic import write_bytes_atomic
from streetvision.pipeline.overlay import draw_overlay
from streetvision.training.predict import images_at_once

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
        yield _answer(path, prediction)


def _answers(predictor: Predictor, files: list[Path]) -> Iterator[Answer]:
    size = images_at_once(predictor.model, BATCH)
    for start in range(0, len(files), size):
        yield from _batch(predictor, files[start : start + size])


def _batch(predictor: Predictor, files: list[Path]) -> Iterator[Answer]:
    prepared: dict[Path, Prepared] = {}
    errors: dict[Path, str] = {}
    for path in files:
        try:
            prepared[path] = predictor.prepare(path)
        except UndecodableImage as error:
            errors[path] = error.reason
    found = predictor.predict_prepared(list(prepared.values())) if prepared else []
    answered: dict[Path, Prediction] = dict(zip(prepared, found, strict=True))
    for path in files:
        if path in errors:
            yield {"image": str(path), "error": errors[path]}
        else:
            yield _answer(path, answered[path])


def _answer(path: Path, prediction: Prediction) -> Answer:
    fields = asdict(prediction)
    if not prediction.views:
        del fields["views"]
    return {"image": str(path), **fields}


def _json_lines() -> Writer:
    def write(answer: Answer) -> None:
        sys.stdout.write(json.dumps(answer) + "\n")

    return write


def _csv_lines() -> Writer:
    writer = csv.DictWriter(sys.stdout, fieldnames=FIELDS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    return writer.writerow


WRITERS = {"jsonl": _json_lines, "csv": _csv_lines}
