"""Reads every listed image once: what can be decoded becomes a row, what cannot is named with its reason."""

import os
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from streetvision.contracts.errors import DataError
from streetvision.contracts.progress import Progress, Silent
from streetvision.contracts.split_contracts import Index, Row
from streetvision.data.decode import DEFAULT_LIMITS, DecodeLimits, UndecodableImage, decode_image, read_image_bytes
from streetvision.data.listing import BadFile, Listed, Listing
from streetvision.io.atomic import sha256_bytes

NAMED_IN_ERROR = 3
"""How many bad files an error names; the report holds them all."""


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

    @property
    def bad_share(self) -> float:
        """Share of the listed images that is unusable."""
        return len(self.bad) / max(1, len(self.bad) + len(self.index.rows))

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
    progress: Progress | None = None,
) -> Scan:
    """Decode every listed image in full, on as many threads as there are processors.

    One image a thread is in memory at a time. Rows keep the order of the listing. Rows with the same bytes get one
    group, joined with the groups they had; the same bytes under both labels are bad, all of them.
    """
    rows: list[Row] = []
    bad: list[BadFile] = []
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        results = pool.map(partial(_scan_one, root=listing.root, limits=limits), listing.images)
        for result in (progress or Silent()).track(results, total=len(listing.images), label="read images"):
            if isinstance(result, Row):
                rows.append(result)
            else:
                bad.append(result)
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt must not wait for the images that are still queued
    kept, contradicted = _leave_out_contradictions(rows)
    joined = _join_copies(kept)
    duplicates = len(joined) - len({row.sha256 for row in joined})
    # Absolute, so that a run goes on from any working directory.
    index = Index(listing.root.absolute(), class_names, joined)
    return Scan(index, (*bad, *contradicted), listing.left_out, duplicates)


def check_bad_share(scan: Scan, *, max_bad_share: float, report: Path) -> None:
    """Raise DataError when more than `max_bad_share` of the images are unusable; `report` is where all are named."""
    if scan.bad_share <= max_bad_share:
        return
    total = len(scan.bad) + len(scan.index.rows)
    first = "; ".join(f"{file.path} {file.reason}" for file in scan.bad[:NAMED_IN_ERROR])
    more = f"; and {len(scan.bad) - NAMED_IN_ERROR:,} more" if len(scan.bad) > NAMED_IN_ERROR else ""
    raise DataError(
        f"{len(scan.bad):,} of {total:,} images of data.root {str(scan.index.root)!r} cannot be used "
        f"({scan.bad_share:.1%}; the limit is {max_bad_share:.1%}): {first}{more}",
        f"all are named in {report}; mend or remove them, or raise data.max_bad_share",
    )


def _scan_one(listed: Listed, *, root: Path, limits: DecodeLimits) -> Row | BadFile:
    try:
        data = read_image_bytes(root / listed.path, limits=limits)
        image = decode_image(data, limits=limits)
    except UndecodableImage as error:
        return BadFile(listed.path, error.reason)
    _, height, width = image.shape
    return Row(sha256=sha256_bytes(data), width=width, height=height, brightness=mean_luminance(image), **vars(listed))


def mean_luminance(image: Tensor) -> float:
    """Brightness of uint8 (3, H, W), from 0 to 1 in steps of a ten-thousandth; luma weights of ITU-R BT.601."""
    red, green, blue = image.flatten(1).sum(dim=1, dtype=torch.int64).tolist()
    total: float = 0.299 * red + 0.587 * green + 0.114 * blue
    return round(total / (255 * image[0].numel()), 4)


def _leave_out_contradictions(rows: list[Row]) -> tuple[list[Row], list[BadFile]]:
    """The rows without those whose content stands there under both labels, and these as bad files."""
    labelled: dict[str, dict[int, str]] = defaultdict(dict)
    for row in rows:
        labelled[row.sha256].setdefault(row.label, row.path)
    bad = [
        BadFile(row.path, f"is the same image as {labelled[row.sha256][1 - row.label]}, which has the other label")
        for row in rows
        if len(labelled[row.sha256]) > 1
    ]
    return [row for row in rows if len(labelled[row.sha256]) == 1], bad


def _join_copies(rows: list[Row]) -> tuple[Row, ...]:
    """Rows of equal content in one group, whatever groups they were in; a path that is listed twice stands there once.

    Groups that share content become one, under the name that sorts first.
    """
    copies: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        copies[row.sha256].append(row)
    given = {content: sorted({row.group for row in same if row.group}) for content, same in copies.items()}
    merged_into = _merge(given.values())
    group_of: dict[str, str | None] = {}
    for content, same in copies.items():
        alone = len({row.path for row in same}) == 1
        made_up = None if alone else f"copies of {content[:12]}"
        group_of[content] = _last(given[content][0], merged_into) if given[content] else made_up
    return tuple({row.path: replace(row, group=group_of[row.sha256]) for row in rows}.values())


def _merge(sets: Iterable[list[str]]) -> dict[str, str]:
    """Group -> the group it is merged into, so that all names of one set end at the same name (union-find)."""
    merged_into: dict[str, str] = {}
    for names in sets:
        for name in names[1:]:
            kept, gone = sorted((_last(names[0], merged_into), _last(name, merged_into)))
            if kept != gone:
                merged_into[gone] = kept
    return merged_into


def _last(name: str, merged_into: dict[str, str]) -> str:
    """Where the chain of merges from `name` ends; it is shortened on the way."""
    end = name
    while end in merged_into:
        end = merged_into[end]
    while name != end:
        merged_into[name], name = end, merged_into[name]
    return end
