"""Read every listed image once. Readable images become rows of the index; the others are reported with a reason.

A large JPEG is reduced while it is decoded. All its data is read, so that damage is found.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from streetvision.contracts.errors import DataError
from streetvision.contracts.progress import Progress, Silent
from streetvision.contracts.split_contracts import RANDOM_QUEUE, Index, Row
from streetvision.data.config import DEFAULT_LIMITS, DecodeLimits
from streetvision.data.decode import as_tensor
from streetvision.data.file_search import missing_reason
from streetvision.data.grouping.connected_components import join_groups
from streetvision.data.grouping.perceptual_hash import (
    WORKING_SIZE,
    PerceptualHash,
    PerceptualHashes,
    compute_hash,
    stack_hashes,
)
from streetvision.data.image_file import MISSING_FILE, UndecodableImage, check_decoders, decode_file, read_image_bytes
from streetvision.data.records import ImageListing, ImageRecord, RejectedFile, group_warnings
from streetvision.io.atomic import sha256_bytes
from streetvision.io.process_pool import usable_cores
from streetvision.io.resize import ImageSize

SCAN_SIDE = 2 * WORKING_SIZE
"""Pixels per side that a large JPEG keeps at least."""
CHANGED = "has changed since it was labelled"
"""Reason of an image of data.labels with other bytes than those that were labeled."""
MAX_EXPLAINED = 20
"""Number of missing files for which a similar name is searched."""
MAX_FILES_IN_ERROR = 3
"""Number of files that an error message names; data_report.json names all."""


@dataclass(frozen=True)
class Scan:
    """The usable images of a data set, and the files that are not used."""

    index: Index
    invalid: tuple[RejectedFile, ...]
    """Images that are not used: not decodable, left out because they are damaged, or the same with both labels."""
    skipped: tuple[RejectedFile, ...]
    """Files and folders that are not listed images."""
    duplicates: int
    """Number of rows with the same bytes as an earlier row; they share its group."""
    damaged: tuple[RejectedFile, ...] = ()
    """Images that are decoded with errors in their data, whether they are used or not."""
    hashes: PerceptualHashes | None = None
    """Perceptual hashes of the rows, in their order; None if they were not requested."""
    joined: tuple[tuple[str, str], ...] = ()
    """sha256 and listed group of each image whose group has the name of another one that equal bytes join it with."""

    @property
    def invalid_fraction(self) -> float:
        """Fraction of the listed images that cannot be used."""
        return len(self.invalid) / max(1, len(self.invalid) + len(self.index.rows))

    def without(self, reasons: Mapping[str, str]) -> "Scan":
        """Return a scan in which the rows of some paths are invalid, for the given reasons."""
        rows = self.index.rows
        usable = [row.path not in reasons for row in rows]
        return replace(
            self,
            index=replace(self.index, rows=tuple(compress(rows, usable))),
            invalid=(*self.invalid, *(RejectedFile(path, reason) for path, reason in reasons.items())),
            hashes=self.hashes and self.hashes.where(usable),
        )

    def report(self) -> dict[str, object]:
        """Content of data_report.json."""
        return {
            "root": str(self.index.root),
            "rows": len(self.index.rows),
            "invalid_fraction": self.invalid_fraction,
            "duplicates": self.duplicates,
            "invalid": [asdict(file) for file in self.invalid],
            "damaged": [asdict(file) for file in self.damaged],
            "skipped": [asdict(file) for file in self.skipped],
        }


def scan_images(
    listing: ImageListing,
    *,
    class_names: tuple[str, str],
    limits: DecodeLimits = DEFAULT_LIMITS,
    damaged_images: Literal["leave_out", "use"] = "leave_out",
    with_hashes: bool = False,
    labels: Mapping[str, tuple[int, str]] | None = None,
    progress: Progress | None = None,
) -> Scan:
    """Decode every listed image, on one thread per CPU core.

    Rows keep the order of the listing; a path that is listed twice becomes one row. Rows with the same bytes share a
    group, which is joined with the groups that they had. If the same bytes have both labels, all of these rows are
    invalid. Each thread holds one image in memory.

    Args:
        listing: The images to read.
        class_names: Names of class 0 and class 1.
        limits: Limits above which an image is rejected.
        damaged_images: Whether to leave out or use images that are decoded with errors in their data.
        with_hashes: Whether to compute perceptual hashes, which take 4 KB per image.
        labels: sha256 -> label that a person gave, which replaces the listed one, and the queue that chose the image.
        progress: Shows how many images are read.

    Raises:
        MachineError: A decoder does not work on this machine.
    """
    check_decoders()
    decoded: list[tuple[Row, PerceptualHash | None]] = []
    damaged: list[RejectedFile] = []
    invalid: list[RejectedFile] = []
    pool = ThreadPoolExecutor(usable_cores())
    try:
        results = pool.map(partial(_scan_one, root=listing.root, limits=limits, with_hash=with_hashes), listing.images)
        for result in (progress or Silent()).track(results, total=len(listing.images), label="read images"):
            if isinstance(result, RejectedFile):
                invalid.append(result)
                continue
            row, damage, image_hash = result
            given = (labels or {}).get(row.sha256)
            if given is not None:
                label, queue = given
                # A label of the data set that a person confirmed is still that of the data set.
                if row.queue is not None or label != row.label or queue == RANDOM_QUEUE:
                    row = replace(row, label=label, queue=queue)
            elif row.queue is not None:
                invalid.append(RejectedFile(row.path, CHANGED))
                continue
            if damage is not None:
                damaged.append(RejectedFile(row.path, damage))
                if damaged_images == "leave_out":
                    invalid.append(damaged[-1])
                    continue
            decoded.append((row, image_hash))
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt must not wait for the images that are still queued
    invalid = _explain_missing(invalid, listing.root)
    for warning in (*group_warnings(listing.images), *listing.warnings):
        (progress or Silent()).warn(warning)

    joined = join_groups([row for row, _ in decoded])
    conflicts = _label_conflicts(joined)
    # The dict keeps one row per path.
    by_path = {row.path: (row, image_hash) for row, (_, image_hash) in zip(joined, decoded, strict=True)}
    usable = [pair for path, pair in by_path.items() if path not in conflicts]
    rows = tuple(row for row, _ in usable)
    return Scan(
        # The root is absolute, so that a run can be resumed from any working directory.
        Index(listing.root.absolute(), class_names, rows),
        (*invalid, *conflicts.values()),
        listing.skipped,
        duplicates=len(rows) - len({row.sha256 for row in rows}),
        damaged=tuple(damaged),
        joined=tuple(
            (row.sha256, row.group)
            for (row, _), after in zip(decoded, joined, strict=True)
            if row.group is not None and row.group != after.group
        ),
        hashes=stack_hashes(image_hash for _, image_hash in usable if image_hash is not None) if with_hashes else None,
    )


def check_invalid_fraction(scan: Scan, *, max_invalid_fraction: float, report: Path) -> None:
    """Raise DataError if no image is usable, or more than `max_invalid_fraction` are invalid; `report` lists them."""
    if scan.index.rows and scan.invalid_fraction <= max_invalid_fraction:
        return
    total = len(scan.invalid) + len(scan.index.rows)
    first = "; ".join(f"{file.path} {file.reason}" for file in scan.invalid[:MAX_FILES_IN_ERROR])
    more = len(scan.invalid) - MAX_FILES_IN_ERROR
    # The damaged images are among the invalid ones unless they are used.
    keep = (
        ", set data.damaged_images=use to use those with damaged data" if set(scan.damaged) & set(scan.invalid) else ""
    )
    raise DataError(
        f"{len(scan.invalid):,} of {total:,} images of data.root {str(scan.index.root)!r} cannot be used "
        f"({scan.invalid_fraction:.1%}; the limit is {max_invalid_fraction:.1%}): {first}"
        + (f"; and {more:,} more" if more > 0 else ""),
        f"fix or remove the files listed in {report}{keep}, or raise data.max_invalid_fraction",
    )


def mean_luminance(image: Tensor) -> float:
    """Mean luminance of uint8 (3, H, W), from 0 to 1, rounded to 4 digits; luma weights of ITU-R BT.601."""
    red, green, blue = image.flatten(1).sum(dim=1, dtype=torch.int64).tolist()
    total: float = 0.299 * red + 0.587 * green + 0.114 * blue
    return round(total / (255 * image[0].numel()), 4)


def scan_size(_: ImageSize) -> ImageSize:
    """The least size to which a JPEG is reduced when it is scanned: its hash and brightness change by rounding only."""
    return SCAN_SIDE, SCAN_SIDE


def _scan_one(
    record: ImageRecord, *, root: Path, limits: DecodeLimits, with_hash: bool
) -> tuple[Row, str | None, PerceptualHash | None] | RejectedFile:
    """The row of an image, what is wrong with its data, and its hash; or why it cannot be decoded."""
    try:
        data = read_image_bytes(root / record.path, limits=limits)
        decoded = decode_file(data, limits=limits, decode_size=scan_size)
    except UndecodableImage as error:
        return RejectedFile(record.path, error.reason)
    image = as_tensor(decoded.pixels)
    height, width = decoded.size
    row = Row(sha256=sha256_bytes(data), width=width, height=height, brightness=mean_luminance(image), **vars(record))
    return row, decoded.damage, compute_hash(image) if with_hash else None


def _explain_missing(files: Sequence[RejectedFile], root: Path) -> list[RejectedFile]:
    """Add to the first missing files which file of a similar name exists; each needs a listing of its folder."""
    missing = [number for number, file in enumerate(files) if file.reason == MISSING_FILE][:MAX_EXPLAINED]
    explained = list(files)
    for number in missing:
        explained[number] = replace(files[number], reason=missing_reason(root, files[number].path))
    return explained


def _label_conflicts(rows: Sequence[Row]) -> dict[str, RejectedFile]:
    """Path -> reason, of the rows whose bytes occur with both labels."""
    path_of: dict[str, dict[int, str]] = defaultdict(dict)  # sha256 -> label -> first path
    for row in rows:
        path_of[row.sha256].setdefault(row.label, row.path)
    return {
        row.path: RejectedFile(
            row.path, f"is the same image as {path_of[row.sha256][1 - row.label]}, which has the other label"
        )
        for row in rows
        if len(path_of[row.sha256]) > 1
    }
