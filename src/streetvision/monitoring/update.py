"""`streetvision monitor`: update the state of a stream with new predictions and labels, and write the page."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

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


def monitor(
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
    """Update the state of a stream with new predictions, and report.

    What was read before is not read again. The state file is replaced at the end, so after an interruption or an error
    it is the one before.

    Args:
        bundle: The bundle that made the predictions.
        predictions: Folders of `predict --out` with --signals, logs of `serve`, or files of such lines.
        state: The state file; it is created if it does not exist.
        labels: CSV with the columns `image`, as in the predictions, and `label`.
        group_pattern: Regular expression that gives the group of an image from its name.
        report: HTML page to write.
        images: Folder with the images, for examples on the page.
        alpha: Probability that the tests ever raise a false alarm, and the same for the risk.
        seed: Seed for ties; None: a random one.
        progress: Shows progress; None: nothing is printed.

    Raises:
        ArtifactError: The bundle has no reference, or the state or the predictions do not belong to it.
        DataError: Predictions or labels are damaged.
        ConfigError: A setting is invalid or has no effect.
    """
    if images is not None and report is None:
        raise ConfigError("--images has no effect without --report", "add --report FILE, or leave --images out")
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
    with run_lock(path.with_name(f".{path.name}.lock"), option="--state ...", file=path):
        if path.exists():
            running.load(path)
        before = running.status
        files = list_files([user_path(source) for source in predictions], bundle=running.status.bundle)
        for file in (progress or Silent()).track(files, total=len(files), label="predictions"):
            _read_file(running, file, group_pattern)
        if group_pattern is not None:
            _check_pattern(group_pattern, before, running.status)
        unmatched = 0 if labels is None else _read_labels(running, user_path(labels), files, group_pattern)
        status = running.finish()
        if page is not None:
            write_report(page, running, images=None if images is None else user_path(images))
        running.state.write(path, status)
    if unmatched and progress is not None:
        progress.warn(f"{unmatched:,} labels name images that are not in these predictions: give their files as well")
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


def _read_labels(running: Monitor, path: Path, files: Sequence[PredictionFile], pattern: str | None) -> int:
    """Add new labels in the order of their file; return the number of labels without a prediction."""
    pending = {
        name: label
        for name, label in _labels(path, running.bundle.manifest.class_names).items()
        if not running.has_label(name)
    }
    found: dict[str, tuple[str | None, float, int]] = {}
    components, bundle = len(running.reference.scale), running.status.bundle
    for file in files if pending else []:
        end = running.state.files.get(file.key, BEGIN).offset
        for batch, _ in read_batches(file.path, BEGIN, components=components, bundle=bundle, end=end):
            named = _grouped(batch, pattern)
            for index, name in enumerate(named.names):
                if name in pending:
                    row = named.groups[index], float(named.margins[index]), int(named.decisions[index])
                    found.setdefault(name, row)
    for name, label in pending.items():
        if name in found:
            group, margin, decision = found[name]
            running.add_label(name, group, label, margin, decision)
    return len(pending.keys() - found.keys())


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
