"""What a data set says about its images before any of them is read."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from streetvision.contracts.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@dataclass(frozen=True)
class Listed:
    """One image as its data set lists it."""

    path: str
    """Posix path relative to the listing's root; absolute where the index said so."""
    label: int
    """0 or 1: the position of its class in `class_names`."""
    group: str | None = None
    """Images of one group never stand in two splits."""
    source: str | None = None
    """Where the image came from."""
    columns: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Every further column or feature that says something of the image, as text."""


@dataclass(frozen=True)
class BadFile:
    """A file that is left out, and why."""

    path: str
    """As in Listed."""
    reason: str
    """Completes the sentence "this file ..."."""


@dataclass(frozen=True)
class Listing:
    """Every image a data set names, and the files beside them that it left out."""

    root: Path
    """Folder that relative paths start from."""
    images: tuple[Listed, ...]
    left_out: tuple[BadFile, ...] = ()


def label_of(text: str, class_names: tuple[str, str]) -> int | None:
    """0 or 1 for a class name (in any case) or for the digit itself; None for anything else."""
    names = {"0": 0, "1": 1} | {name.casefold(): label for label, name in enumerate(class_names)}
    return names.get(text.strip().casefold())


def naming_hint(class_names: tuple[str, str]) -> str:
    """Where the class names of the current run are set."""
    return f"names are set by data.class_names=[{','.join(class_names)}]"


def check_classes(root: object, found: Mapping[str, int], *, class_names: tuple[str, str], hint: str) -> None:
    """Raise DataError unless both classes have images; `found` holds the number of images under each name met."""
    present = {name.casefold() for name, count in found.items() if count}
    for name in class_names:
        if name.casefold() not in present:
            counts = ", ".join(f"{met} {count:,}" for met, count in found.items()) or "nothing"
            raise DataError(f"data.root {str(root)!r} has no images of class {name!r} (found: {counts})", hint)


def count_classes(images: Iterable[Listed], class_names: tuple[str, str]) -> dict[str, int]:
    """Class name -> number of images, for the classes that have any."""
    return dict(Counter(class_names[image.label] for image in images))


def image_suffix(name: str | None) -> str:
    """The suffix of an image's file name, or none."""
    suffix = Path(name or "").suffix.lower()
    return suffix if suffix in IMAGE_SUFFIXES else ""
