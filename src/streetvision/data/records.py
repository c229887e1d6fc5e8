"""The images that a data set lists, before any file is opened, and the labels as text."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from streetvision.contracts.errors import DataError
from streetvision.contracts.settings import list_setting

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
)
SPELLINGS = {"0": 0, "false": 0, "no": 0, "1": 1, "true": 1, "yes": 1}
"""Labels other than the class names, in any case. Numbers may have decimals: 1.0."""
MISSING = frozenset({"", "nan", "na", "n/a", "#n/a", "<na>", "nat", "none", "null"})
"""Texts, in lower case, that programs write for a missing value."""
DECIMAL = re.compile(r"[01]\.0*")
LARGE_GROUP = 0.25
"""Share of the images above which a group is reported, because it cannot be divided."""


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
    queue: str | None = None
    """As in Row."""


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
    warnings: tuple[str, ...] = ()
    """What is doubtful in the labels."""
    unnamed_labels: tuple[str, ...] = ()
    """The labels as text, such as 0 and 1, if none of them is the name of a class."""


def parse_label(text: str, *, class_names: tuple[str, str], where: str, found: Iterable[str] = ()) -> int:
    """Return 0 or 1 for a class name in any case, or for one of SPELLINGS. A class name takes precedence.

    Args:
        text: The label as the data set writes it.
        class_names: Names of class 0 and class 1.
        where: Position of the label, for the error message.
        found: All labels of the file, for the hint; consumed only on an error.

    Raises:
        DataError: The text is neither.
    """
    labels = SPELLINGS | {fold_name(name): label for label, name in enumerate(class_names)}
    folded = fold_name(text)
    label = labels.get(folded)
    if label is None and DECIMAL.fullmatch(folded):
        label = labels.get(str(int(float(folded))))
    if label is None:
        texts = {fold_name(other): other.strip() for other in found if fold_name(other) not in MISSING}
        listed = sorted(texts.values())[:8]
        if len(texts) == 2 and not texts.keys() & labels.keys():
            setting, swapped = (list_setting("data.class_names", names) for names in (listed, listed[::-1]))
            hint = f"set {setting} to find {listed[1]!r}, or {swapped} to find {listed[0]!r}"
        else:
            hint = class_names_hint(class_names) + (f"; labels in this file: {', '.join(listed)}" if listed else "")
        if folded in MISSING:
            given = f"the label is empty ({text})" if folded else "the label is empty"
            raise DataError(f"{where}: {given}", f"give it 0, 1 or a class name, or remove it; {hint}")
        raise DataError(f"{where}: label {text!r} is not 0, 1, {class_names[0]!r} or {class_names[1]!r}", hint)
    return label


def fold_name(name: str) -> str:
    """Return a name in the form in which names of classes and columns are compared: any case, composed or not."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).strip().casefold())


def parse_group(text: object) -> str | None:
    """Return a group or source as text; None for an empty one or a text that stands for a missing value."""
    group = "" if text is None else str(text).strip()
    return None if group.casefold() in MISSING else group


def group_cell(group: object) -> str:
    """Return a group for a cell of a table; empty for None, NaN and an empty text.

    The text is quoted, so that `parse_group` takes no name, such as NA, for a missing value.
    """
    name = group if isinstance(group, str) else parse_group(group)
    return repr(str(name)) if name else ""


def repeated_images(images: Sequence["ImageRecord"]) -> tuple[RejectedFile, ...]:
    """Return the rows, counted from 0, that have path and label of an earlier row: one row is made of them."""
    first: dict[str, tuple[int, int]] = {}  # path -> row and label
    repeated = []
    for number, image in enumerate(images):
        earlier, label = first.setdefault(image.path, (number, image.label))
        if earlier != number and label == image.label:
            repeated.append(RejectedFile(f"row {number}", f"is the same image as row {earlier}"))
    return tuple(repeated)


def group_warnings(images: Sequence["ImageRecord"]) -> list[str]:
    """Return what is unusual in the groups of a data set: images without a group among others, and large groups."""
    return group_count_warnings(Counter(image.group for image in images))


def group_count_warnings(images_of: Mapping[str | None, int]) -> list[str]:
    """As `group_warnings`, from the number of images of each group."""
    counts = Counter(images_of)
    total, without = counts.total(), counts.pop(None, 0)
    warnings = []
    if counts and without:
        warnings.append(
            f"{without:,} of {total:,} images have no group (empty or nan): each of them is divided on its own"
        )
    for group, count in counts.most_common(1):
        if count > LARGE_GROUP * total:
            warnings.append(
                f"group {group!r} has {count / total:.0%} of the images, and a group is never divided: the "
                "splits will differ from data.fractions; check data.group_column"
            )
    return warnings


def missing_label_warnings(labels: Iterable[str], class_names: tuple[str, str]) -> tuple[str, ...]:
    """Return a warning if labels of a table have the text that pandas makes of a missing value, and a class that name.

    Args:
        labels: The labels as text.
        class_names: Names of class 0 and class 1.
    """
    ambiguous = {name.casefold() for name in class_names} & {"none", "nan", "null"}
    count = sum(label.strip().casefold() in ambiguous for label in labels)
    if not count:
        return ()
    return (
        f"{count:,} labels are the text {'/'.join(sorted(ambiguous))!r}, which is the name of a class and also what "
        "pandas writes for a missing label: check that they are labels, or write 0 and 1",
    )


def class_names_hint(class_names: tuple[str, str]) -> str:
    """Hint that names the setting of the class names, quoted for a shell."""
    return f"names are set by {list_setting('data.class_names', class_names)}"


def check_both_classes(
    root: object,
    counts: Mapping[str, int],
    *,
    class_names: tuple[str, str],
    hint: str | Callable[[], str],
    one_class: bool = False,
) -> None:
    """Raise DataError unless both classes have images, or one of them if `one_class` allows it.

    Args:
        root: The data set, for the message.
        counts: Number of images of each name found.
        class_names: Names of class 0 and class 1.
        hint: The hint of the error, or a function that finds it.
        one_class: Whether images of one class alone are accepted.
    """
    present = {fold_name(name) for name, count in counts.items() if count}
    missing = [name for name in class_names if fold_name(name) not in present]
    if one_class and len(missing) < len(class_names):
        return
    if missing:
        text = hint if isinstance(hint, str) else hint()
        found = ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "nothing"
        raise DataError(f"data.root {str(root)!r} has no images of class {missing[0]!r} (found: {found})", text)


def count_classes(images: Iterable[ImageRecord], class_names: tuple[str, str]) -> dict[str, int]:
    """Number of images by class name, for the classes that have any."""
    return dict(Counter(class_names[image.label] for image in images))


def image_suffix(name: str | None) -> str:
    """Lower-case suffix of a file name with its dot if it is that of an image, else an empty string."""
    suffix = Path(name or "").suffix.lower()
    return suffix if suffix in IMAGE_SUFFIXES else ""
