"""Print predictions of a bundle for files and folders, as JSON lines or CSV."""

import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

from streetvision.bundle.explain import draw_overlay
from streetvision.bundle.predictor import Prediction, Predictor, PreparedImage, load_bundle
from streetvision.contracts.errors import ConfigError, DataError
from streetvision.data.config import DEFAULT_LIMITS, DecodeLimits
from streetvision.data.file_search import LeftOut, printable, search_folder
from streetvision.data.image_file import UndecodableImage
from streetvision.data.records import RejectedFile
from streetvision.data.sources.image_stream import LISTERS, refuse_compressed
from streetvision.io.atomic import write_bytes_atomic
from streetvision.io.process_pool import usable_cores

BATCH_SIZE = 64
MAX_STEM_BYTES = 160
"""Bytes of an image's name in the name of its drawing."""
FIELDS = ("image", "label", "decision", "probability", "certified", "note", "withdrawn", "error")

PredictionRow: TypeAlias = dict[str, Any]
"""The prediction for one image, with the keys of FIELDS that apply, and `views` if it is explained."""
NamedImage: TypeAlias = tuple[str, Path | bytes | UndecodableImage]
"""The name of an image in the predictions; its file, its bytes, or the reason why there are none."""


def print_predictions(
    bundle: Path,
    images: Iterable[Path],
    *,
    output_format: Literal["jsonl", "csv"],
    explain: Path | None = None,
    monitor_state: Path | None = None,
    limits: DecodeLimits = DEFAULT_LIMITS,
) -> int:
    """Print one line per image.

    Args:
        bundle: Folder of the bundle, or its bundle.json.
        images: Image files, and folders with images.
        output_format: CSV lines have no views.
        explain: Folder for drawings of each image with its views; None: nothing is drawn.
        monitor_state: State file of `streetvision monitor`, which may withdraw the certificate.
        limits: Largest accepted image.

    Returns:
        The number of images that cannot be decoded.

    Raises:
        ConfigError: A tar or a Parquet file is given.
        DataError: A compressed archive is given, or a folder has no images.
    """
    images = list(images)
    for path in images:
        _refuse_archive(path)
    predictor, left_out = load_bundle(bundle, limits=limits), LeftOut()
    if monitor_state is not None:
        predictor.use_monitor_state(monitor_state)
    files = list_files(images, left_out)
    print_left_out(left_out)
    if explain is None:
        rows = predict_images(predictor, files, decoders=usable_cores())
    else:
        rows = _explain_files(predictor, files, explain)
    write_row, failures = WRITERS[output_format](), 0
    for row in rows:
        failures += "error" in row
        write_row(row)
    return failures


def _refuse_archive(path: Path) -> None:
    refuse_compressed(path)
    if path.suffix.lower() in LISTERS and not os.path.isdir(path):  # noqa: PTH112 (as in list_files)
        raise ConfigError(f"{str(path)!r} is read with --out only", "add --out FOLDER")


def list_files(images: Iterable[Path], left_out: LeftOut) -> list[NamedImage]:
    """List files as they are given, and the images in folders sorted by path.

    A folder that cannot be read is in the list with its error.

    Args:
        images: Files and folders.
        left_out: Counts what else is in the folders.

    Raises:
        DataError: A folder has no images.
    """
    listed: list[NamedImage] = []
    for path in images:
        if not os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises if the path is too long or closed)
            listed.append((str(path), path))
            continue
        found = sorted(search_folder(path), key=lambda file: Path(file.path))
        used = [file for file in found if file.unreadable or not file.reason]
        for file in found:
            if file.reason and not file.unreadable:
                left_out.add(RejectedFile(file.path, file.reason))
        if not used:
            title, *files = left_out.lines() or [""]
            hint = f"{title} {'; '.join(map(str.strip, files))}"
            raise DataError(f"folder {str(path)!r} has no images", hint.strip() or None)
        listed += [(file.path, UndecodableImage(file.reason) if file.unreadable else Path(file.path)) for file in used]
    return listed


def print_left_out(left_out: LeftOut) -> None:
    """Print the files that are left out to standard error."""
    for line in left_out.lines():
        sys.stderr.write(f"{printable(line)}\n")


def predict_images(predictor: Predictor, images: Iterable[NamedImage], *, decoders: int = 1) -> Iterator[PredictionRow]:
    """Predict named images in batches, in their order. An image that cannot be decoded gets a row with the error.

    Args:
        predictor: The bundle.
        images: Names and images.
        decoders: Threads that decode the images of a batch.
    """
    remaining, size = iter(images), predictor.images_per_batch(BATCH_SIZE)
    with ThreadPoolExecutor(max_workers=decoders) as pool:
        while batch := list(islice(remaining, size)):
            inputs = list(pool.map(partial(_prepare, predictor), (image for _, image in batch)))
            prepared = [image for image in inputs if not isinstance(image, UndecodableImage)]
            predictions = iter(predictor.predict_prepared(prepared) if prepared else [])
            for (name, _), image in zip(batch, inputs, strict=True):
                if isinstance(image, UndecodableImage):
                    yield {"image": name, "error": image.reason}
                else:
                    yield _row(name, next(predictions))


def _prepare(predictor: Predictor, image: Path | bytes | UndecodableImage) -> PreparedImage | UndecodableImage:
    """Decode and resize an image; an error is a value, so that the rest of the batch is still predicted."""
    if isinstance(image, UndecodableImage):
        return image
    try:
        return predictor.prepare_with_note(image)
    except UndecodableImage as error:
        return error


def _explain_files(predictor: Predictor, images: list[NamedImage], folder: Path) -> Iterator[PredictionRow]:
    """Predict images one by one, and write a drawing of each, named by its position and its file."""
    for number, (name, image) in enumerate(images, start=1):
        try:
            if isinstance(image, UndecodableImage):
                raise image
            pixels = predictor.read_image(image)
        except UndecodableImage as error:
            yield {"image": name, "error": error.reason}
            continue
        prediction = predictor.explain(image)
        # A file name has at most 255 bytes on most file systems, and the temporary file has a longer one.
        stem = Path(name).stem.encode(errors="surrogateescape")[:MAX_STEM_BYTES].decode(errors="ignore")
        write_bytes_atomic(folder / f"{number:04d}-{stem}.png", draw_overlay(pixels, prediction))
        yield _row(name, prediction)


def _row(name: str, prediction: Prediction) -> PredictionRow:
    fields = asdict(prediction)
    for optional in ("views", "note", "withdrawn", "signals"):
        if not fields[optional]:
            del fields[optional]
    return {"image": name, **fields}


def _json_writer() -> Callable[[PredictionRow], object]:
    return lambda row: sys.stdout.write(json.dumps(row) + "\n")


def _csv_writer() -> Callable[[PredictionRow], object]:
    writer = csv.DictWriter(sys.stdout, fieldnames=FIELDS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    return writer.writerow


WRITERS: dict[str, Callable[[], Callable[[PredictionRow], object]]] = {"jsonl": _json_writer, "csv": _csv_writer}
"""--format -> a function that starts the output and returns the writer of its rows."""
