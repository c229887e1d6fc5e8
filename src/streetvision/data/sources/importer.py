"""Import images from any source into one index on disk. An interrupted import resumes."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from streetvision.contracts.errors import DataError
from streetvision.contracts.progress import Progress
from streetvision.data.config import DataConfig
from streetvision.data.file_search import LeftOut, search_folder
from streetvision.data.image_file import UndecodableImage, read_image_bytes
from streetvision.data.records import (
    ImageListing,
    RejectedFile,
    fold_name,
    group_count_warnings,
    image_suffix,
    parse_group,
    parse_label,
)
from streetvision.data.sources.csv_json import ColumnNames
from streetvision.data.sources.discovery import HUB_PREFIX, find_table, is_dataset, list_images
from streetvision.data.sources.exif import read_exif
from streetvision.data.sources.huggingface import stream_dataset
from streetvision.data.sources.parquet_index import INDEX, IndexParts
from streetvision.data.sources.webdataset import DamagedShard, find_shards, read_shard
from streetvision.io.atomic import read_json, sha256_bytes, sha256_json, write_bytes_atomic, write_json_atomic

PART_SIZE = 1000
"""Entries per part of the index. An interrupted import repeats at most this many."""
IMPORT_SETTINGS = {"class_names", "coco", "group_column", "hf_split", "max_invalid_fraction", "source_column"}
"""Settings of DataConfig that have an effect on an import."""
IMAGES = "images"
MAX_DAMAGED_NAMED = 3
"""Damaged archives that an error names; the others are counted."""


@dataclass(frozen=True)
class SourceEntry:
    """One image of a source, whose bytes were not read yet."""

    label: int
    read: Callable[[], bytes]
    path: str | None
    """Absolute path of the image file; None if the source does not consist of files."""
    suffix: str
    """Suffix, with its dot, of a file made of the image."""
    group: str | None = None
    source: str | None = None
    columns: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Consistency:
    """A filter: the text of images of class 1 has at least one of the words, that of class 0 has none."""

    column: str
    """Column of the source, in any case; it may be the one with the group or the source."""
    words: tuple[str, ...]

    def accepts(self, entry: SourceEntry, config: DataConfig) -> bool:
        """Whether text and label agree. An entry without text is accepted."""
        text = _texts(entry, config).get(fold_name(self.column), "").casefold()
        return not text or any(word.casefold() in text for word in self.words) == (entry.label == 1)


@dataclass(frozen=True)
class _Source:
    entries: Iterator[SourceEntry | RejectedFile]
    """Always in the same order."""
    total: int
    """Number of entries; 0 if it is not known."""
    identity: object
    """JSON value that changes when the entries change, if that is known before they are read."""
    skipped: tuple[RejectedFile, ...] = ()
    """Files at the same place that are not entries."""
    warnings: tuple[str, ...] = ()


def import_images(
    source: str,
    folder: Path,
    *,
    config: DataConfig,
    copy: bool = False,
    consistency: Consistency | None = None,
    progress: Progress,
) -> Counter[str]:
    """Write an index of `source` to `folder`: digest, size, EXIF time and position, and the metadata of the source.

    Image files stay at their place. The images of datasets and tars are written to images/, named by their digest.
    Memory holds one part of the index, and the list of names if the source is a folder or a table.

    Args:
        source: Anything that data.root accepts, or WebDataset tars.
        folder: Folder of the index.
        config: Class names, columns and the split of a dataset.
        copy: Also copy image files to images/.
        consistency: Skip entries whose text and label disagree.
        progress: Shows how many entries are read.

    Returns:
        The number of `rows`, and of the skipped entries that are `unreadable` or `inconsistent`.

    Raises:
        DataError: `folder` has an unfinished import of another source or with other settings; or no image can be read,
            or more than data.max_invalid_fraction cannot; or an archive cannot be read to its end; or no image has the
            column of `consistency`; or `source` is `folder` and would be read from its index.
    """
    if find_table(Path(source)) == Path(source) / INDEX and folder.is_dir() and folder.samefile(source):
        raise DataError(
            f"{source!r} has the index of an earlier import, which does not list newer images",
            f"remove {str(folder / INDEX)!r} to import the folder again, or import it to another folder",
        )
    parts, opened = IndexParts(folder), _open_source(source, config, consistency)
    done = parts.done()
    request = [
        opened.identity,
        config.model_dump(mode="json", include=IMPORT_SETTINGS),
        copy,
        consistency and vars(consistency),
    ]
    request_json, note = {"request_sha256": sha256_json(request), "source": source}, folder / "import.json"
    if done and (not note.is_file() or read_json(note) != request_json):
        raise DataError(
            f"{str(folder)!r} has an unfinished import of another source, or its source or settings have changed",
            f"choose another folder, or remove {str(folder / 'parts')!r} to start again",
        )
    write_json_atomic(note, request_json)

    unreadable, left_out = LeftOut(), LeftOut()
    groups = Counter[str | None]()
    total = max(0, opened.total - done)
    for file in opened.skipped:
        left_out.add(file)
    # The entries of an earlier, interrupted import are listed again, so their groups are counted too.
    entries = _count_groups(opened.entries, groups)
    if consistency is not None:
        entries = _check_column(entries, consistency, config, source)
    remaining = progress.track(islice(entries, done, None), total=total, label="import")
    while batch := list(islice(remaining, PART_SIZE)):
        done += len(batch)
        accepted = [
            entry
            for entry in batch
            if isinstance(entry, RejectedFile) or consistency is None or consistency.accepts(entry, config)
        ]
        rows = []
        for entry in accepted:
            row = entry if isinstance(entry, RejectedFile) else _index_row(entry, folder, copy=copy)
            if isinstance(row, RejectedFile):
                unreadable.add(row)
            else:
                rows.append(row)
        skipped = {"inconsistent": len(batch) - len(accepted), "unreadable": len(accepted) - len(rows)}
        shards = [entry for entry in batch if isinstance(entry, DamagedShard)]
        parts.append(rows, until=done, skipped=skipped, damaged=shards)
    for line in (*unreadable.lines(), *left_out.lines(), *group_count_warnings(groups), *opened.warnings):
        progress.warn(line.strip())
    counts, damaged = parts.finish()
    if damaged:
        raise DataError(
            "; ".join(f"{shard.path!r} {shard.reason}" for shard in damaged[:MAX_DAMAGED_NAMED])
            + f"; {len(damaged):,} archives are damaged, and the index has what could be read",
            "copy these archives again from their source, and repeat the import",
        )
    processed = counts["rows"] + counts["unreadable"]
    if not processed:
        raise DataError(
            f"{source!r} has no images to import ({counts['inconsistent']:,} are inconsistent)",
            "check the source, and the words of --consistent if it is given",
        )
    if counts["unreadable"] > config.max_invalid_fraction * processed or not counts["rows"]:
        raise DataError(
            f"{counts['unreadable']:,} of {processed:,} images of {source!r} cannot be read "
            f"(the limit is {config.max_invalid_fraction:.1%}); the index has the others",
            "fix or remove them, or raise data.max_invalid_fraction",
        )
    return counts


def _count_groups(
    entries: Iterable[SourceEntry | RejectedFile], groups: Counter[str | None]
) -> Iterator[SourceEntry | RejectedFile]:
    """Yield the entries, and count them by group."""
    for entry in entries:
        if isinstance(entry, SourceEntry):
            groups[entry.group] += 1
        yield entry


def _texts(entry: SourceEntry, config: DataConfig) -> dict[str, str]:
    """The text of each column of an entry, with that of its group and its source; the names are folded."""
    metadata = ((config.group_column or "group", entry.group), (config.source_column or "source", entry.source))
    columns = [*entry.columns.items(), *((name, text) for name, text in metadata if text is not None)]
    return {fold_name(name): text for name, text in columns}


def _check_column(
    entries: Iterable[SourceEntry | RejectedFile], consistency: Consistency, config: DataConfig, source: str
) -> Iterator[SourceEntry | RejectedFile]:
    """Yield the entries; raises DataError at the end if none of them has the column."""
    images, present = 0, dict[str, None]()
    for entry in entries:
        if isinstance(entry, SourceEntry):
            images += 1
            present |= dict.fromkeys(_texts(entry, config))
        yield entry
    if images and fold_name(consistency.column) not in present:
        raise DataError(
            f"{source!r} has no column {consistency.column!r}, which is set by --consistent "
            f"(columns: {', '.join(present) or 'none'})",
            "set --consistent to one of its columns, or leave it out",
        )


def _open_source(source: str, config: DataConfig, consistency: Consistency | None) -> _Source:
    path = Path(source)
    if shards := find_shards(path):
        if other := _other_listing(path, config.class_names):
            raise DataError(
                f"{source!r} has tars ({shards[0].name}) and other labeled images ({other})",
                "import the tars from a folder of their own",
            )
        _refuse_settings(source, config, coco="a JSON file of COCO", hf_split="a Hugging Face dataset")
        sizes = [[shard.name, shard.stat().st_size] for shard in shards]
        return _Source(_shard_entries(source, shards, config), 0, sizes)
    if is_dataset(source, config.class_names):
        _refuse_settings(source, config, coco="a JSON file of COCO")
        return _Source(_dataset_entries(source, config), 0, source)
    listing = list_images(
        source,
        class_names=config.class_names,
        import_to=path,  # not used: the source is not a dataset
        hf_split=config.hf_split,
        group_column=config.group_column,
        source_column=config.source_column,
        coco=config.coco,
    )
    if consistency is not None:  # before an image is read
        deque(_check_column(_file_entries(listing), consistency, config, source), maxlen=0)
    fields = [[r.path, r.label, r.group, r.source, dict(r.columns)] for r in listing.images]
    return _Source(_file_entries(listing), len(listing.images), sha256_json(fields), listing.skipped, listing.warnings)


def _refuse_settings(source: str, config: DataConfig, **kinds: str) -> None:
    """Raise DataError for a setting that is not the default and has an effect only on a source of its kind."""
    for name, kind in kinds.items():
        if getattr(config, name) != getattr(DataConfig(), name):
            raise DataError(f"data.{name} has no effect when {source!r} is not {kind}", f"leave data.{name} out")


def _other_listing(folder: Path, class_names: tuple[str, str]) -> str | None:
    """A table or a class folder with images in a folder of tars; None if there is neither.

    An index.parquet is none: it may be the result of this import.
    """
    for name in ("index.csv", "labels.json"):
        if (folder / name).is_file():
            return name
    names = {fold_name(name) for name in class_names}
    children = sorted(folder.iterdir()) if folder.is_dir() else []
    class_folders = (child for child in children if fold_name(child.name) in names and child.is_dir())
    return next((child.name for child in class_folders if any(not f.reason for f in search_folder(child))), None)


def _file_entries(listing: ImageListing) -> Iterator[SourceEntry]:
    for record in listing.images:
        path = (listing.root / record.path).absolute()
        yield SourceEntry(
            record.label,
            partial(read_image_bytes, path),
            str(path),
            path.suffix.lower(),
            record.group,
            record.source,
            dict(record.columns),
        )


def _shard_entries(source: str, shards: Iterable[Path], config: DataConfig) -> Iterator[SourceEntry | RejectedFile]:
    """The samples of the tars; raises DataError at the end if no sample has a requested column."""
    # The samples may differ in their fields: a column exists if any sample has it.
    present: dict[str, None] = {}
    for sample in (sample for shard in shards for sample in read_shard(shard)):
        if isinstance(sample, RejectedFile):
            yield sample
            continue
        fields = sample.fields
        present |= dict.fromkeys(fields)
        label = parse_label(fields["label"], class_names=config.class_names, where=sample.name)
        names = {fold_name(name): name for name in fields}
        chosen = [
            names.get(fold_name(name), name)
            for name in (config.group_column or "group", config.source_column or "source")
        ]
        group, origin = (parse_group(fields.get(name)) for name in chosen)
        columns = {name: text for name, text in fields.items() if name not in ("label", *chosen)}
        yield SourceEntry(label, partial(bytes, sample.image), None, sample.suffix, group, origin, columns)
    if present:
        ColumnNames(config.group_column, config.source_column).resolve(present, repr(source))


def _dataset_entries(source: str, config: DataConfig) -> Iterator[SourceEntry]:
    columns = ColumnNames(config.group_column, config.source_column)
    name = source.removeprefix(HUB_PREFIX)
    for data, original_name, record in stream_dataset(
        name, split=config.hf_split, class_names=config.class_names, columns=columns
    ):
        suffix, others = image_suffix(original_name), dict(record.columns)
        yield SourceEntry(record.label, partial(bytes, data), None, suffix, record.group, record.source, others)


def _index_row(entry: SourceEntry, folder: Path, *, copy: bool) -> dict[str, Any] | RejectedFile:
    """The row of an entry in the index, or the reason why its bytes cannot be read."""
    try:
        data = entry.read()
    except UndecodableImage as error:
        assert entry.path is not None, "only files are read here"
        return RejectedFile(entry.path, error.reason)
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
