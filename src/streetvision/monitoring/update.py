"""`streetvision monitor`: update the state of a stream with new predictions and labels, and write the page."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from streetvision.bundle.format import read_bundle
from streetvision.bundle.monitor_status import MonitorStatus
from streetvision.contracts.errors import ConfigError, DataError
from streetvision.contracts.progress import Progress, Silent
from streetvision.data.grouping.name_pattern import groups_by_name
from streetvision.data.records import parse_label
from streetvision.io.atomic import read_bytes
from streetvision.io.lock import run_lock
from streetvision.io.user_paths import user_path
from streetvision.monitoring.monitor import ALPHA, Monitor
from streetvision.monitoring.report import write_report
from streetvision.monitoring.rows import BEGIN, PredictionBatch, PredictionFile, list_files, read_batches

SAME_MARGIN = 1e-3
"""Largest difference of the margins of one image; the size of the batch changes the last digits."""
IMAGE_DIGEST = re.compile("[0-9a-f]{64}")
"""The name that the server gives an image: equal names are equal images."""


def update_state(
    bundle: str | Path,
    predictions: Sequence[str | Path],
    *,
    state: str | Path,
    labels: str | Path | None = None,
    group_pattern: str | None = None,
    report: str | Path | None = None,
    images: str | Path | None = None,
    alpha: float = ALPHA,
    seed: int | None = None,
    progress: Progress | None = None,
) -> MonitorStatus:
    """Update the state file as `streetvision.monitor`, which has the arguments and the errors.

    `progress` shows progress and how many labels were used; None: nothing is printed.
    """
    if images is not None and report is None:
        raise ConfigError("--images has no effect without --report", "add --report FILE, or leave --images out")
    if images is not None and not user_path(images).is_dir():
        raise ConfigError(f"--images {str(images)!r} is not a folder", "give the folder with the predicted images")
    if group_pattern is not None:
        try:
            re.compile(group_pattern)
        except re.error as error:
            raise ConfigError(f"the group pattern {group_pattern!r} is not valid: {error}") from error
    path, page = user_path(state), None if report is None else user_path(report)
    for option, output in (("--state", path), ("--report", page)):
        if output is not None and output.is_dir():
            raise ConfigError(f"{option} {str(output)!r} is a folder", "give the path of a file")
    running = Monitor(read_bundle(user_path(bundle)), alpha, seed)
    if not path.parent.is_dir():
        raise ConfigError(f"the folder of the state {str(path)!r} does not exist", "create it")
    shown = progress or Silent()
    with run_lock(path.with_name(f".{path.name}.lock"), option="--state ...", file=path):
        if path.exists():
            running.load(path)
        before = running.status
        files = list_files([user_path(source) for source in predictions], bundle=running.status.bundle)
        for file in shown.track(files, total=len(files), label="predictions"):
            _read_file(running, file, group_pattern)
        if group_pattern is not None:
            _check_pattern(group_pattern, before, running.status)
        used = None if labels is None else _read_labels(running, user_path(labels), files, group_pattern)
        status = running.finish()
        if page is not None:
            write_report(page, running, images=None if images is None else user_path(images))
        running.state.write(path, status)
    if used is not None:
        shown.line(
            "labels", f"{used.new:,} new, {used.known:,} known from earlier updates, {used.unmatched:,} unmatched"
        )
        if used.unmatched:
            shown.warn(
                f"{used.unmatched:,} labels name images that are not in these predictions, for example "
                f"{used.example!r}: give the files of their predictions as well"
            )
    return status


def _read_file(running: Monitor, file: PredictionFile, pattern: str | None) -> None:
    start, components = running.state.files.get(file.key, BEGIN), len(running.reference.scale)
    for batch, end in read_batches(file.path, start, components=components, bundle=running.status.bundle):
        running.add(_grouped(batch, pattern))
        running.state.files[file.key] = end


def _check_pattern(pattern: str, before: MonitorStatus, after: MonitorStatus) -> None:
    """Raise ConfigError if there are new predictions and none of them has a group."""
    images, failures, without_group = (
        getattr(after, name) - getattr(before, name) for name in ("images", "failures", "without_group")
    )
    if 0 < images - failures == without_group:
        raise ConfigError(
            f"--group-pattern {pattern!r} matches no name of {without_group:,} new predictions",
            "the pattern is a regular expression; the group is what its first parentheses match",
        )


def _grouped(batch: PredictionBatch, pattern: str | None) -> PredictionBatch:
    """The batch with groups from names, where it has no groups of its own."""
    if pattern is None:
        return batch
    from_names = groups_by_name(batch.names, pattern)
    groups = [own if own is not None else other for own, other in zip(batch.groups, from_names, strict=True)]
    return PredictionBatch(**{**vars(batch), "groups": groups})


class _UsedLabels(NamedTuple):
    """How many labels of a file were used."""

    new: int
    known: int
    """Read in an earlier update; they are not counted again."""
    unmatched: int
    """Without a prediction in the given files."""
    example: str
    """An image without a prediction; empty if there is none."""


def _read_labels(running: Monitor, path: Path, files: Sequence[PredictionFile], pattern: str | None) -> _UsedLabels:
    """Add new labels in the order of their file.

    Raises:
        DataError: A labeled name has two predictions, or no label names an image of the predictions.
    """
    labels = _labels(path, running.bundle.manifest.class_names)
    found: dict[str, tuple[str | None, float, int]] = {}
    components, bundle = len(running.reference.scale), running.status.bundle
    predicted: str | None = None
    runtime = running.bundle.manifest.runtime
    ranges_of_batch = runtime is not None and (runtime.name, runtime.precision) == ("onnx", "int8")
    for file in files if labels else []:
        end = running.state.files.get(file.key, BEGIN).offset
        for batch, _ in read_batches(file.path, BEGIN, components=components, bundle=bundle, end=end):
            named = _grouped(batch, pattern)
            predicted = next(iter(named.names), predicted)
            for index, name in enumerate(named.names):
                if name in labels:
                    row = named.groups[index], float(named.margins[index]), int(named.decisions[index])
                    other = found.setdefault(name, row)
                    same_image = abs(other[1] - row[1]) <= SAME_MARGIN or (
                        ranges_of_batch and IMAGE_DIGEST.fullmatch(name)
                    )
                    if other[0] != row[0] or not same_image:
                        raise DataError(
                            f"{name!r} in {str(path)!r} is the name of two predicted images",
                            "give each image a name that is unique in all predictions",
                        )
    known = {name for name in labels if running.has_label(name)}
    unmatched = [name for name in labels if name not in known and name not in found]
    if labels and len(unmatched) == len(labels):
        names = f"; it has {unmatched[0]!r}, the predictions {predicted!r}" if predicted is not None else ""
        raise DataError(
            f"no label of {str(path)!r} names an image of these predictions{names}",
            "write the names as they are in the predictions, and give the files of these predictions",
        )
    new = [name for name in labels if name in found and name not in known]
    for name in new:
        group, margin, decision = found[name]
        running.add_label(name, group, labels[name], margin, decision)
    return _UsedLabels(len(new), len(known), len(unmatched), unmatched[0] if unmatched else "")


def _labels(path: Path, class_names: tuple[str, str]) -> dict[str, int]:
    try:
        text = read_bytes(path).decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{str(path)!r} is not a CSV file: {error}") from error
    labels: dict[str, int] = {}
    for number, row in enumerate(rows, start=2):
        name, text_label = row.get("image"), row.get("label")
        if not name or text_label is None:
            raise DataError(f"{str(path)!r} line {number} has no image or no label", "columns: image, label")
        label = parse_label(text_label, class_names=class_names, where=f"{str(path)!r} line {number}")
        if labels.setdefault(name, label) != label:
            raise DataError(f"{str(path)!r} line {number}: image {name!r} has both labels", "keep one of them")
    return labels
