"""Any source of images into one index on disk, a thousand entries at a time: a killed import goes on where it was."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

from streetvision.contracts.errors import DataError
from streetvision.contracts.progress import Progress
from streetvision.data.config import DataConfig
from streetvision.data.decode import UndecodableImage, read_image_bytes
from streetvision.data.exif import read_exif
from streetvision.data.records import Listed, image_suffix, label_of, naming_hint
from streetvision.data.sources.csv_json import Columns
from streetvision.data.sources.data_root import HUB_PREFIX, list_images
from streetvision.data.sources.huggingface import is_local_dataset, stream_dataset
from streetvision.data.sources.parquet_index import IndexParts, Record
from streetvision.data.sources.webdataset import find_shards, read_shard
from streetvision.io.atomic import read_json, sha256_bytes, sha256_json, write_bytes_atomic, write_json_atomic

PART = 1000
"""Entries between two parts that a killed import need not read again."""
IMAGES = "images"


@dataclass(frozen=True)
class Entry:
    """One image of a source, its bytes not read yet."""

    label: int
    read: Callable[[], bytes]
    path: str | None
    """Where its file lies, absolute; None where the source is no folder of files."""
    suffix: str
    """Of a file made of it, with its dot."""
    group: str | None = None
    source: str | None = None
    columns: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Consistency:
    """A text that must agree with the label: class 1 has one of the words in it, class 0 none."""

    column: str
    words: tuple[str, ...]

    def holds(self, entry: Entry) -> bool:
        """Whether text and label agree; an entry without text is not doubted."""
        text = entry.columns.get(self.column, "").casefold()
        return not text or any(word.casefold() in text for word in self.words) == (entry.label == 1)


def import_images(
    source: str,
    folder: Path,
    *,
    config: DataConfig,
    copy: bool = False,
    consistency: Consistency | None = None,
    progress: Progress,
) -> Counter[str]:
    """Index `source` in `folder`: digest, size, EXIF time and place of every image, and what the source says of it.

    A source is whatever data.root may be, or WebDataset tars. Images that are files stay where they are, unless `copy`;
    those of datasets and tars are written to images/ under their digest. Memory holds one part at a time, and the list
    of names where the source is a folder or a table. Returns the number of `rows`, and of the entries that were left
    out as `unreadable` or `inconsistent`. Raises DataError when `folder` has an import of something else.
    """
    parts, entries = IndexParts(folder), _entries(source, config)
    request = [entries.identity, config.model_dump(mode="json"), copy, consistency and vars(consistency)]
    done = parts.done()
    _check_same(folder, source, request, begun=done > 0)
    remaining = progress.track(islice(entries.each, done, None), total=max(0, entries.total - done), label="import")
    while batch := list(islice(remaining, PART)):
        done += len(batch)
        agreeing = [entry for entry in batch if consistency is None or consistency.holds(entry)]
        records = [record for entry in agreeing if (record := _record(entry, folder, copy=copy)) is not None]
        left_out = {"inconsistent": len(batch) - len(agreeing), "unreadable": len(agreeing) - len(records)}
        parts.append(records, until=done, left_out=left_out)
    return parts.finish()


def _check_same(folder: Path, source: str, request: list[object], *, begun: bool) -> None:
    """Note what is imported into `folder`, or raise DataError when the parts that lie there are of something else."""
    note, asked = folder / "import.json", {"request_sha256": sha256_json(request), "source": source}
    if begun and (not note.is_file() or read_json(note) != asked):
        raise DataError(
            f"{str(folder)!r} holds the beginning of another import, or its source has changed since",
            f"choose another folder, or remove {str(folder / 'parts')!r} to begin anew",
        )
    write_json_atomic(note, asked)


@dataclass(frozen=True)
class _Entries:
    """What a source holds."""

    each: Iterator[Entry]
    """Always in the same order."""
    total: int
    """0 where it is not known."""
    identity: object
    """What changes when the entries do, as far as it is known before they are read."""


def _entries(source: str, config: DataConfig) -> _Entries:
    path = Path(source).expanduser()
    if shards := find_shards(path):
        identity = [[shard.name, shard.stat().st_size] for shard in shards]
        return _Entries(_shard_entries(shards, config), 0, identity)
    if source.startswith(HUB_PREFIX) or is_local_dataset(path):
        return _Entries(_dataset_entries(source, config), 0, source)
    # Nothing is written to import_to, since this is no dataset.
    listing = list_images(
        source,
        class_names=config.class_names,
        import_to=path,
        group_column=config.group_column,
        source_column=config.source_column,
    )
    each = (_file_entry(listed, listing.root) for listed in listing.images)
    names = sha256_json([[listed.path, listed.label] for listed in listing.images])
    return _Entries(each, len(listing.images), names)


def _file_entry(listed: Listed, root: Path) -> Entry:
    path = (root / listed.path).absolute()
    suffix, columns = path.suffix.lower(), dict(listed.columns)
    return Entry(listed.label, partial(read_image_bytes, path), str(path), suffix, listed.group, listed.source, columns)


def _shard_entries(shards: Iterable[Path], config: DataConfig) -> Iterator[Entry]:
    for sample in (sample for shard in shards for sample in read_shard(shard)):
        columns = dict(sample.fields)
        text = columns.pop("label")
        label = label_of(text, config.class_names)
        if label is None:
            expected = f"is not 0, 1, {config.class_names[0]!r} or {config.class_names[1]!r}"
            raise DataError(f"{sample.name}: label {text!r} {expected}", naming_hint(config.class_names))
        group = columns.pop(config.group_column or "group", None)
        source = columns.pop(config.source_column or "source", None)
        yield Entry(label, partial(bytes, sample.picture), None, sample.suffix, group, source, columns)


def _dataset_entries(source: str, config: DataConfig) -> Iterator[Entry]:
    columns = Columns(config.group_column, config.source_column)
    name = source.removeprefix(HUB_PREFIX)
    for data, original, listed in stream_dataset(
        name, split=config.hf_split, class_names=config.class_names, columns=columns
    ):
        suffix, further = image_suffix(original), dict(listed.columns)
        yield Entry(listed.label, partial(bytes, data), None, suffix, listed.group, listed.source, further)


def _record(entry: Entry, folder: Path, *, copy: bool) -> Record | None:
    """The row of an entry; None when its bytes cannot be read."""
    try:
        data = entry.read()
    except UndecodableImage:
        return None
    digest = sha256_bytes(data)
    path = entry.path
    if copy or path is None:
        path = f"{IMAGES}/{digest}{entry.suffix}"
        if not (folder / path).exists():
            write_bytes_atomic(folder / path, data)
    return {
        "path": path,
        "label": entry.label,
        "sha256": digest,
        "bytes": len(data),
        "group": entry.group,
        "source": entry.source,
        "columns": list((read_exif(data) | entry.columns).items()),
    }
