"""Answers of a bundle for files and folders, as lines that another program can read."""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from torch import Tensor

from streetvision.bundle.predictor import Prediction, Predictor, load_bundle
from streetvision.contracts.errors import DataError
from streetvision.data.decode import UndecodableImage
from streetvision.data.index import IMAGE_SUFFIXES

BATCH = 64
FIELDS = ("image", "label", "decision", "probability", "certified", "error")


Answer = dict[str, object]
Writer = Callable[[Answer], object]
"""Prints one answer, which has the keys of FIELDS that apply."""


def print_predictions(bundle: Path, images: Iterable[Path], *, form: Literal["jsonl", "csv"]) -> int:
    """Print one line an image in the order given; returns how many could not be answered."""
    predictor = load_bundle(bundle)
    files = list(expand(images))
    write, failures = WRITERS[form](), 0
    for start in range(0, len(files), BATCH):
        for answer in _answers(predictor, files[start : start + BATCH]):
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


def _answers(predictor: Predictor, files: list[Path]) -> Iterator[Answer]:
    prepared: dict[Path, Tensor] = {}
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
            yield {"image": str(path), **asdict(answered[path])}


def _json_lines() -> Writer:
    def write(answer: Answer) -> None:
        sys.stdout.write(json.dumps(answer) + "\n")

    return write


def _csv_lines() -> Writer:
    writer = csv.DictWriter(sys.stdout, fieldnames=FIELDS, lineterminator="\n")
    writer.writeheader()
    return writer.writerow


WRITERS = {"jsonl": _json_lines, "csv": _csv_lines}
