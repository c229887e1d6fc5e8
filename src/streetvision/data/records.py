"""The images that a data set lists, before any file is opened, and the labels as text."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from streetvision.contracts.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@dataclass(frozen=True)
class ImageRecord:
    """One image as its data set lists it."""

    path: str
    """Posix path relative to the root of the listing, or absolute if the index gives an absolute path."""
    label: int
    """0 or 1: the index of its class in `class_names`."""
    group: str | None = None
    """Group id. Images of one group share a split."""
    source: str | None = None
    """Origin of the image."""
    columns: Mapping[str, str] = field(default_factory=dict, hash=False)
    """All other columns or features, as text."""


@dataclass(frozen=True)
class RejectedFile:
    """A file that is not used, and the reason."""

    path: str
    """As in ImageRecord."""
    reason: str
    """Completes the sentence "this file ..."."""


@dataclass(frozen=True)
class ImageListing:
    """The images that a data set lists."""

    root: Path
    """Folder that relative paths start from."""
    images: tuple[ImageRecord, ...]
    skipped: tuple[RejectedFile, ...] = ()
    """Files and folders at the same place that are not listed images."""


def parse_label(text: str, *, class_names: tuple[str, str], where: str, found: Iterable[str] = ()) -> int:
    """Return 0 or 1 for a digit or for a class name in any case.

    Args:
        text: The label as the data set writes it.
        class_names: Names of class 0 and class 1.
        where: Position of the label, for the error message.
        found: All labels of the file, for the hint; consumed only on an error.

    Raises:
        DataError: The text is neither.
    """
    labels = {"0": 0, "1": 1} | {name.casefold(): label for label, name in enumerate(class_names)}
    label = labels.get(text.strip().casefold())
    if label is None:
        listed = ", ".join(sorted(set(found))[:8])
        raise DataError(
            f"{where}: label {text!r} is not 0, 1, {class_names[0]!r} or {class_names[1]!r}",
            class_names_hint(class_names) + (f"; labels in this file: {listed}" if listed else ""),
        )
    return label


def class_names_hint(class_names: tuple[str, str]) -> str:
    """Hint that names the setting of the class names."""
    return f"names are set by data.class_names=[{','.join(class_names)}]"


def check_both_classes(root: object, counts: Mapping[str, int], *, class_names: tuple[str, str], hint: str) -> None:
    """Raise DataError unless both classes have images; `counts` is the number of images of each name found."""
    present = {name.casefold() for name, count in counts.items() if count}
    for name in class_names:
        if name.casefold() not in present:
            found = ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "nothing"
            raise DataError(f"data.root {str(root)!r} has no images of class {name!r} (found: {found})", hint)


def count_classes(images: Iterable[ImageRecord], class_names: tuple[str, str]) -> dict[str, int]:
    """Number of images by class name, for the classes that have any."""
    return dict(Counter(class_names[image.label] for image in images))


def image_suffix(name: str | None) -> str:
    """Lower-case suffix of a file name with its dot if it is that of an image, else an empty string."""
    suffix = Path(name or "").suffix.lower()
    return suffix if suffix in IMAGE_SUFFIXES else ""
