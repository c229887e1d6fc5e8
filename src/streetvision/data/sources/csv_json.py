"""Images listed by a table: a CSV file, or a labels.json next to a folder `images/`."""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from streetvision.contracts.errors import ArtifactError, DataError
from streetvision.data.file_search import existing_name, folder_of_names
from streetvision.data.records import (
    ImageListing,
    ImageRecord,
    check_both_classes,
    class_names_hint,
    count_classes,
    fold_name,
    missing_label_warnings,
    parse_group,
    parse_label,
)
from streetvision.io.atomic import parse_json, read_bytes

PATH = "path"
PATH_NAMES = ("filename", "file_name")
"""Other names of the field `path`, as labels.json and the metadata.csv of Hugging Face have it."""
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
CSV_HINT = "the first line names the columns: path,label and optionally group,source"
JSON_HINT = 'labels.json is a list: [{"filename": "a.jpg", "label": 0}, ...], with optional "group" and "source"'
TYPED_FIELDS = {PATH, "label", "group", "source"}
"""Fields of a labels.json that must be a single value. Other fields are ignored if they are lists or objects."""


@dataclass(frozen=True)
class ColumnNames:
    """Names of the optional columns. None: the default name, if the column exists. A given name must exist."""

    group: str | None = None
    source: str | None = None

    def resolve(self, present: Iterable[str], where: str) -> dict[str, str]:
        """Map 'group' and 'source' to the columns that hold them, in any case; a missing one is left out.

        Raises:
            DataError: A given column does not exist.
        """
        by_name = {fold_name(name): name for name in present}
        columns = {}
        for field, requested in (("group", self.group), ("source", self.source)):
            column = by_name.get(fold_name(requested or field))
            if column is None and requested is not None:
                names = ", ".join(by_name.values()) or "none"
                raise DataError(
                    f"{where} has no column {requested!r}, which is set by data.{field}_column (columns: {names})",
                    f"set data.{field}_column to one of its columns, or leave it out",
                )
            if column is not None:
                columns[field] = column
        return columns


@dataclass(frozen=True)
class TableRow:
    """One entry of a table as text, not validated."""

    where: str
    """File and line, for messages."""
    fields: Mapping[str, str]
    """Lower-case column -> text."""


def list_csv(
    path: Path, *, class_names: tuple[str, str], columns: ColumnNames, one_class: bool = False
) -> ImageListing:
    """List the images of a CSV with the columns path, label and optionally group and source; others are kept as text.

    Columns are separated by commas, or by semicolons or tabs if the first line has no comma. Columns without a name are
    ignored. Paths are absolute, or relative to the folder of the CSV.

    Raises:
        DataError: A line is not valid; the message names line and field.
    """
    return _list(path, list(_read_csv(path)), class_names=class_names, columns=columns, one_class=one_class)


def list_labels_json(
    path: Path, *, class_names: tuple[str, str], columns: ColumnNames, one_class: bool = False
) -> ImageListing:
    """List the images of a labels.json: a list of {filename, label} and optionally group and source; others are kept.

    File names are relative to the folder `images/` next to the file, or to its own folder: to the one that has them.

    Raises:
        DataError: An entry is not valid; the message names entry and field.
    """
    rows = list(_read_labels_json(path))
    found = folder_of_names((path.parent / "images", path.parent), map(_image_name, rows))
    folder = found.relative_to(path.parent).as_posix()
    return _list(path, rows, folder=folder, class_names=class_names, columns=columns, one_class=one_class)


def list_paths(path: Path) -> list[tuple[str, str | None]]:
    """Return absolute path and group of the images of a CSV without labels; the column group is optional.

    Raises:
        DataError: A line is not valid; the message names line and field.
    """
    paths: list[tuple[str, str | None]] = []
    for row in _read_csv(path, required=("path",)):
        name = existing_name(path.parent, _image_name(row))
        paths.append((str(path.parent / name), parse_group(row.fields.get("group"))))
    return paths


def _read_csv(path: Path, required: Sequence[str] = ("path", "label")) -> Iterator[TableRow]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            first = handle.readline()
            handle.seek(0)
            # Excel separates by semicolons where the comma is the decimal mark.
            delimiter = next((mark for mark in ",;\t" if mark in first), ",")
            reader = csv.reader(handle, delimiter=delimiter, strict=True)
            header = [_field_name(name) for name in next(reader, [])]
            names = [name for name in header if name]  # pandas gives the column of its index no name
            found = ", ".join(names) or "nothing"
            for name in required:
                if name not in names:
                    raise DataError(f"{path.name} line 1: there is no column {name!r} (found: {found})", CSV_HINT)
            if len(set(names)) < len(names):
                raise DataError(f"{path.name} line 1: a column occurs twice (found: {found})", CSV_HINT)
            for values in reader:
                where = f"{path.name} line {reader.line_num}"
                if not any(values):  # a blank line, or one of commas alone, as Excel writes it
                    continue
                if len(values) != len(header):
                    raise DataError(f"{where}: {len(values)} fields, but the header has {len(header)}", CSV_HINT)
                yield TableRow(where, {name: text for name, text in zip(header, values, strict=True) if name})
    except csv.Error as error:
        raise DataError(f"{path.name} line {reader.line_num}: {error}", CSV_HINT) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{str(path)!r} cannot be read as UTF-8 text: {error}", 'save it as UTF-8 ("CSV UTF-8" in Excel)'
        ) from error
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror or error}") from error


def read_json_table(path: Path) -> object:
    """Return the content of a JSON file; raises DataError if it cannot be read."""
    try:
        return parse_json(read_bytes(path))
    except (ArtifactError, ValueError) as error:
        raise DataError(f"{str(path)!r} cannot be read as JSON: {error}", JSON_HINT) from error


def _read_labels_json(path: Path) -> Iterator[TableRow]:
    entries = read_json_table(path)
    if not isinstance(entries, list):
        raise DataError(f"{path.name} holds one {type(entries).__name__}, not a list", JSON_HINT)
    for number, entry in enumerate(entries, start=1):
        where = f"{path.name} entry {number}"
        if not isinstance(entry, dict):
            raise DataError(f"{where}: {entry!r} is not an object", JSON_HINT)
        names = [_field_name(name) for name in entry]
        if len(set(names)) < len(names):
            raise DataError(f"{where}: a field occurs twice (found: {', '.join(entry)})", JSON_HINT)
        fields = {}
        for name, value in zip(names, entry.values(), strict=True):
            if name in TYPED_FIELDS and not isinstance(value, str | int | float | None):
                raise DataError(f"{where}: {name!r} is {value!r}, neither text nor a number", JSON_HINT)
            if not isinstance(value, list | dict):
                fields[name] = "" if value is None else str(value)
        yield TableRow(where, fields)


def _field_name(name: str) -> str:
    """The name of a column in the form in which it is compared; PATH_NAMES become PATH."""
    folded = fold_name(name)
    return PATH if folded in PATH_NAMES else folded


def _image_name(row: TableRow) -> str:
    name = row.fields.get(PATH, "").strip()
    if not name:
        raise DataError(f"{row.where}: the file name is empty")
    if URL.match(name):
        raise DataError(f"{row.where}: {name!r} is a URL, and nothing is downloaded", "list files of this machine")
    return name


def _list(
    path: Path,
    rows: list[TableRow],
    *,
    class_names: tuple[str, str],
    columns: ColumnNames,
    one_class: bool,
    folder: str = "",
) -> ImageListing:
    # Entries of a JSON file may differ in their fields: a column exists if any entry has it.
    present = dict.fromkeys(name for row in rows for name in row.fields)
    optional = columns.resolve(present, path.name) if rows else {}
    reserved = {PATH, "label", *optional.values()}
    images: dict[str, ImageRecord] = {}
    for row in rows:
        name = _image_name(row)
        # PurePosixPath makes "./a.png" and "a.png" the same path.
        image_path = existing_name(path.parent, PurePosixPath(folder, name).as_posix())
        if image_path in images:
            raise DataError(f"{row.where}: {name!r} is already listed above", "list every image once")
        label = parse_label(
            row.fields.get("label", ""),
            class_names=class_names,
            where=row.where,
            found=(other.fields.get("label", "") for other in rows),
        )
        metadata = {field: parse_group(row.fields.get(column)) for field, column in optional.items()}
        others = {name: text.strip() for name, text in row.fields.items() if name not in reserved and text.strip()}
        images[image_path] = ImageRecord(image_path, label, **metadata, columns=others)
    counts = count_classes(images.values(), class_names)
    hint = f"list images of both classes; {class_names_hint(class_names)}"
    check_both_classes(path, counts, class_names=class_names, hint=hint, one_class=one_class)
    warnings = missing_label_warnings((row.fields.get("label", "") for row in rows), class_names)
    names = {fold_name(name) for name in class_names}
    texts = {(image.label, row.fields["label"].strip()) for image, row in zip(images.values(), rows, strict=True)}
    named = any(fold_name(text) in names for _, text in texts)
    unnamed_labels = () if named else tuple(text for _, text in sorted(texts))
    return ImageListing(path.parent, tuple(images.values()), warnings=warnings, unnamed_labels=unnamed_labels)
