"""Reads every listed image once: what can be decoded becomes a row, what cannot is named with its reason."""

import os
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress
from pathlib import Path

import torch
from torch import Tensor

from streetvision.contracts.errors import DataError
from streetvision.contracts.progress import Progress, Silent
from streetvision.contracts.split_contracts import Index, Row
from streetvision.data.config import DEFAULT_LIMITS, DecodeLimits
from streetvision.data.connected_components import join_groups
from streetvision.data.decode import UndecodableImage, decode_image, read_image_bytes
from streetvision.data.perceptual_hash import PerceptualHash, PerceptualHashes, compute_hash, stack_hashes
from streetvision.data.records import BadFile, Listed, Listing
from streetvision.io.atomic import sha256_bytes

NAMED_IN_ERROR = 3
"""How many bad files an error names; the report holds them all."""

Seen = tuple[Row, PerceptualHash | None]


@dataclass(frozen=True)
class Scan:
    """The usable images of a listing, and what became of the others."""

    index: Index
    bad: tuple[BadFile, ...]
    """Listed images that cannot be used: not decodable, or the same image under both labels."""
    left_out: tuple[BadFile, ...]
    """Files beside the images that were never listed."""
    duplicates: int
    """Usable rows that repeat the content of another row; they share its group."""
    looks: PerceptualHashes | None = None
    """What each row of the index looks like, in its order; None where that was not asked for."""

    @property
    def bad_share(self) -> float:
        """Share of the listed images that is unusable."""
        return len(self.bad) / max(1, len(self.bad) + len(self.index.rows))

    def without(self, unusable: Mapping[str, str]) -> "Scan":
        """The scan with the rows of some paths moved to the bad ones, each with its reason."""
        rows = self.index.rows
        stays = [row.path not in unusable for row in rows]
        return replace(
            self,
            index=replace(self.index, rows=tuple(compress(rows, stays))),
            bad=(*self.bad, *(BadFile(path, reason) for path, reason in unusable.items())),
            looks=self.looks and self.looks.where(stays),
        )

    def report(self) -> dict[str, object]:
        """What was left out and why, for data_report.json."""
        return {
            "root": str(self.index.root),
            "rows": len(self.index.rows),
            "bad_share": self.bad_share,
            "duplicates": self.duplicates,
            "bad": [{"path": file.path, "reason": file.reason} for file in self.bad],
            "left_out": [{"path": file.path, "reason": file.reason} for file in self.left_out],
        }


def scan_images(
    listing: Listing,
    *,
    class_names: tuple[str, str],
    limits: DecodeLimits = DEFAULT_LIMITS,
    looking: bool = False,
    progress: Progress | None = None,
) -> Scan:
    """Decode every listed image in full, on as many threads as there are processors.

    One image a thread is in memory at a time; `looking` keeps 4 KB of what each looks like. Rows keep the order of the
    listing, and a path that is listed twice stands there once. Rows with the same bytes get one group, joined with the
    groups they had; the same bytes under both labels are bad, all of them.
    """
    seen: list[Seen] = []
    bad: list[BadFile] = []
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        results = pool.map(partial(_scan_one, root=listing.root, limits=limits, looking=looking), listing.images)
        for result in (progress or Silent()).track(results, total=len(listing.images), label="read images"):
            if isinstance(result, BadFile):
                bad.append(result)
            else:
                seen.append(result)
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt must not wait for the images that are still queued
    joined = join_groups([row for row, _ in seen])
    rows = {row.path: (row, look) for row, (_, look) in zip(joined, seen, strict=True)}
    contradicted = _contradictions(joined)
    kept = [(row, look) for row, look in rows.values() if row.path not in contradicted]
    # Absolute, so that a run goes on from any working directory.
    index = Index(listing.root.absolute(), class_names, tuple(row for row, _ in kept))
    return Scan(
        index,
        (*bad, *contradicted.values()),
        listing.left_out,
        duplicates=len(kept) - len({row.sha256 for row, _ in kept}),
        looks=stack_hashes(look for _, look in kept if look is not None) if looking else None,
    )


def check_bad_share(scan: Scan, *, max_invalid_fraction: float, report: Path) -> None:
    """Raise DataError when more than `max_invalid_fraction` of the images are unusable; `report` lists them."""
    if scan.bad_share <= max_invalid_fraction:
        return
    total = len(scan.bad) + len(scan.index.rows)
    first = "; ".join(f"{file.path} {file.reason}" for file in scan.bad[:NAMED_IN_ERROR])
    more = f"; and {len(scan.bad) - NAMED_IN_ERROR:,} more" if len(scan.bad) > NAMED_IN_ERROR else ""
    raise DataError(
        f"{len(scan.bad):,} of {total:,} images of data.root {str(scan.index.root)!r} cannot be used "
        f"({scan.bad_share:.1%}; the limit is {max_invalid_fraction:.1%}): {first}{more}",
        f"all are named in {report}; mend or remove them, or raise data.max_invalid_fraction",
    )


def _scan_one(listed: Listed, *, root: Path, limits: DecodeLimits, looking: bool) -> Seen | BadFile:
    try:
        data = read_image_bytes(root / listed.path, limits=limits)
        image = decode_image(data, limits=limits)
    except UndecodableImage as error:
        return BadFile(listed.path, error.reason)
    _, height, width = image.shape
    row = Row(sha256=sha256_bytes(data), width=width, height=height, brightness=mean_luminance(image), **vars(listed))
    return row, compute_hash(image) if looking else None


def mean_luminance(image: Tensor) -> float:
    """Brightness of uint8 (3, H, W), from 0 to 1 in steps of a ten-thousandth; luma weights of ITU-R BT.601."""
    red, green, blue = image.flatten(1).sum(dim=1, dtype=torch.int64).tolist()
    total: float = 0.299 * red + 0.587 * green + 0.114 * blue
    return round(total / (255 * image[0].numel()), 4)


def _contradictions(rows: tuple[Row, ...]) -> dict[str, BadFile]:
    """Path -> why it is unusable, of the rows whose content stands there under both labels."""
    labelled: dict[str, dict[int, str]] = defaultdict(dict)
    for row in rows:
        labelled[row.sha256].setdefault(row.label, row.path)
    return {
        row.path: BadFile(
            row.path, f"is the same image as {labelled[row.sha256][1 - row.label]}, which has the other label"
        )
        for row in rows
        if len(labelled[row.sha256]) > 1
    }
