"""Images listed by a file: a CSV, or `images/` with a labels.json."""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from streetvision.contracts.errors import DataError
from streetvision.data.records import Listed, Listing, check_classes, count_classes, label_of, naming_hint
from streetvision.io.atomic import parse_json

CSV_HINT = "the first line names the columns: path,label and, where known, group,source"
STRICT = {"filename", "label", "group", "source"}
"""Fields of a labels.json that must be text or whole numbers; of the others, lists and objects are passed over."""
JSON_HINT = 'labels.json is a list: [{"filename": "a.jpg", "label": 0}, ...] and, where known, "group", "source"'


@dataclass(frozen=True)
class Columns:
    """Which optional columns to read. None takes the usual name where it is there; a name given must be there."""

    group: str | None = None
    source: str | None = None

    def resolve(self, present: Iterable[str], where: str) -> dict[str, str]:
        """'group' and 'source' -> the column to read, in any case, for those there are.

        Raises DataError for a column that was asked for and is not there.
        """
        columns = {}
        by_name = {name.casefold(): name for name in present}
        for usual, asked in (("group", self.group), ("source", self.source)):
            column = by_name.get((asked or usual).casefold())
            if column is None and asked is not None:
                found = ", ".join(by_name.values()) or "none"
                raise DataError(
                    f"{where} has no column {asked!r}, which data.{usual}_column asks for (columns: {found})",
                    f"name one of its columns or leave data.{usual}_column out",
                )
            if column is not None:
                columns[usual] = column
        return columns


@dataclass(frozen=True)
class Record:
    """One entry of a table as text, not yet checked."""

    where: str
    """File and line, for messages."""
    fields: Mapping[str, str]
    """Lower-case column -> text."""


def list_csv(path: Path, *, class_names: tuple[str, str], columns: Columns) -> Listing:
    """The images of a CSV with the columns `path,label` and optionally group and source; others are kept as they are.

    Paths are relative to the CSV's folder, or absolute. Raises DataError, which names line and field.
    """
    return _list(path, list(_csv_records(path)), name_field="path", class_names=class_names, columns=columns)


def list_labels_json(path: Path, *, class_names: tuple[str, str], columns: Columns) -> Listing:
    """The images of a labels.json, a list of {filename, label} and optionally group and source; others are kept.

    File names are relative to `images/` beside it, or to its own folder where there is no `images/`.
    Raises DataError, which names entry and field.
    """
    return _list(path, list(_json_records(path)), name_field="filename", class_names=class_names, columns=columns)


def list_paths(path: Path) -> list[tuple[str, str | None]]:
    """Absolute path and group, where there is a column group, of the images of a CSV that need no label.

    Raises DataError, which names line and field.
    """
    named: list[tuple[str, str | None]] = []
    for record in _csv_records(path, needed=("path",)):
        if not (name := record.fields["path"].strip()):
            raise DataError(f"{record.where}: 'path' is empty")
        named.append((str(path.parent / name), record.fields.get("group", "").strip() or None))
    return named


def _csv_records(path: Path, needed: Sequence[str] = ("path", "label")) -> Iterator[Record]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.reader(handle, strict=True)
            header = [name.strip().casefold() for name in next(reader, [])]
            _check_header(path, header, needed)
            for values in reader:
                where = f"{path.name} line {reader.line_num}"
                if values and len(values) != len(header):
                    raise DataError(f"{where}: {len(values)} fields, and the header has {len(header)}", CSV_HINT)
                if values:
                    yield Record(where, dict(zip(header, values, strict=True)))
    except csv.Error as error:
        raise DataError(f"{path.name} line {reader.line_num}: {error}", CSV_HINT) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{str(path)!r} cannot be read as UTF-8 text: {error}") from error


def _check_header(path: Path, header: list[str], needed: Sequence[str]) -> None:
    found = ", ".join(header) or "nothing"
    for name in needed:
        if name not in header:
            raise DataError(f"{path.name} line 1: there is no column {name!r} (found: {found})", CSV_HINT)
    if len(set(header)) < len(header):
        raise DataError(f"{path.name} line 1: a column stands there twice (found: {found})", CSV_HINT)


def _json_records(path: Path) -> Iterator[Record]:
    try:
        entries = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{str(path)!r} cannot be read as JSON: {error}", JSON_HINT) from error
    if not isinstance(entries, list):
        raise DataError(f"{path.name} holds one {type(entries).__name__}, not a list", JSON_HINT)
    for number, entry in enumerate(entries, start=1):
        where = f"{path.name} entry {number}"
        if not isinstance(entry, dict):
            raise DataError(f"{where}: {entry!r} is not an object", JSON_HINT)
        yield Record(where, dict(_texts({name.casefold(): value for name, value in entry.items()}, where)))


def _texts(fields: Mapping[str, object], where: str) -> Iterator[tuple[str, str]]:
    for name, value in fields.items():
        if name in STRICT and (isinstance(value, bool) or not isinstance(value, str | int | None)):
            raise DataError(f"{where}: {name!r} is {value!r}, neither text nor a whole number", JSON_HINT)
        if not isinstance(value, list | dict):
            yield name, "" if value is None else str(value)


def _list(
    path: Path, records: list[Record], *, name_field: str, class_names: tuple[str, str], columns: Columns
) -> Listing:
    """Records to images; raises DataError for an empty or repeated name and for a label that is no class."""
    folder = "images" if name_field == "filename" and (path.parent / "images").is_dir() else ""
    present = dict.fromkeys(name for record in records for name in record.fields)
    optional = columns.resolve(present, path.name) if records else {}
    taken = {name_field, "label", *optional.values()}
    images: dict[str, Listed] = {}
    for record in records:
        name = record.fields.get(name_field, "").strip()
        if not name:
            raise DataError(f"{record.where}: {name_field!r} is empty")
        image = PurePosixPath(folder, name).as_posix()
        if image in images:
            raise DataError(f"{record.where}: {name!r} is listed already, further up", "list every image once")
        extras = {usual: record.fields.get(column, "").strip() or None for usual, column in optional.items()}
        further = {name: text.strip() for name, text in record.fields.items() if name not in taken and text.strip()}
        images[image] = Listed(image, _label(record, records, class_names), **extras, columns=further)
    found = count_classes(images.values(), class_names)
    check_classes(path, found, class_names=class_names, hint=f"list both classes; {naming_hint(class_names)}")
    return Listing(path.parent, tuple(images.values()))


def _label(record: Record, records: list[Record], class_names: tuple[str, str]) -> int:
    text = record.fields.get("label", "")
    label = label_of(text, class_names)
    if label is None:
        met = ", ".join(sorted({other.fields.get("label", "") for other in records})[:8])
        raise DataError(
            f"{record.where}: label {text!r} is not 0, 1, {class_names[0]!r} or {class_names[1]!r}",
            f"{naming_hint(class_names)}; labels in this file: {met}",
        )
    return label
