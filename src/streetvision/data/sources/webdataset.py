"""Samples of WebDataset tars: files with the same name and different suffixes. Nothing is unpacked to disk.

Only images, .json, .cls and .txt are read. A file such as 1.depth.png or 1.caption.txt belongs to the sample 1, and is
neither its image nor its label.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath

from streetvision.contracts.errors import DataError, MachineError
from streetvision.data.config import DEFAULT_LIMITS
from streetvision.data.file_search import is_ignored
from streetvision.data.image_file import UndecodableImage
from streetvision.data.records import IMAGE_SUFFIXES, RejectedFile
from streetvision.data.sources.tar_reader import open_tar
from streetvision.io.atomic import parse_json

PREFERRED = (".jpg", ".jpeg", ".png")
IMAGE_PARTS = (*PREFERRED, *sorted(IMAGE_SUFFIXES.difference(PREFERRED)))
"""Suffixes of images. Of several images with the same name, the one with the first of these is the image."""
LABEL_PARTS = (".cls", ".txt")
TEXT_PARTS = (*LABEL_PARTS, ".json")
"""Suffixes of the label and the metadata of a sample."""
MAX_TEXT_BYTES = 2**20
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
UNREADABLE = "/"
"""Mark of a sample of which a file cannot be read; no suffix has this character."""


@dataclass(frozen=True)
class TarSample:
    """One image of a tar, and its metadata."""

    name: str
    """shard.tar/key"""
    image: bytes
    suffix: str
    """Suffix of the image, with its dot."""
    fields: Mapping[str, str]
    """`label` from .cls, .txt or .json, and the other single values of the .json."""


@dataclass(frozen=True)
class DamagedShard(RejectedFile):
    """A tar that cannot be read to its end."""


def find_shards(root: Path) -> list[Path]:
    """Return the tar that `root` is, or the tars in the folder `root`, sorted by name; they may be compressed."""
    if root.is_file():
        return [root] if root.name.lower().endswith(TAR_SUFFIXES) else []
    entries = root.iterdir() if root.is_dir() else ()
    return sorted(path for path in entries if path.name.lower().endswith(TAR_SUFFIXES) and not is_ignored(path.name))


def read_shard(shard: Path) -> Iterator[TarSample | RejectedFile]:
    """Yield the samples of one tar, with one sample in memory at a time, and what of it cannot be read.

    Raises:
        DataError: A sample has no label, or there is no permission to read the tar.
        MachineError: The operating system cannot read the tar.
    """
    # The files of one sample follow each other, so a new key ends the sample. Those before its first own file, such as
    # 1.caption.txt before 1.jpg, are undecided until then: the name of a sample may have dots too.
    key, parts = "", dict[str, bytes]()
    undecided: dict[str, list[RejectedFile | DataError]] = {}  # key without its last part -> what is wrong
    try:
        with open_tar(shard) as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                suffix = path.suffix.lower()
                if is_ignored(path.name) or suffix not in (*IMAGE_PARTS, *TEXT_PARTS):
                    continue
                name = str(path.with_suffix(""))
                if key and name.startswith(f"{key}."):
                    continue
                if name != key:
                    stem = _up_to_first_dot(name)
                    if stem != _up_to_first_dot(key):
                        yield from _settle(undecided)
                        yield from _sample(shard, key, parts)
                    elif parts.keys() & IMAGE_PARTS and parts.keys() & TEXT_PARTS:
                        yield from _sample(shard, key, parts)
                    elif fault := _fault(shard, key, parts):
                        undecided.setdefault(key.rpartition(".")[0], []).append(fault)
                    undecided.pop(name, None)
                    if name == stem:
                        undecided.clear()
                    key, parts = name, {}
                limit = DEFAULT_LIMITS.max_megabytes * 1e6 if suffix in IMAGE_PARTS else MAX_TEXT_BYTES
                try:
                    if member.reason:
                        raise UndecodableImage(member.reason)
                    if member.size > limit:
                        raise UndecodableImage(f"is {member.size:,} bytes; the limit is {limit:,.0f}")
                    parts[suffix] = archive.read(member)
                except UndecodableImage as error:
                    yield RejectedFile(f"{shard.name}/{member.name}", error.reason)
                    parts[UNREADABLE] = b""
            yield from _settle(undecided)
            yield from _sample(shard, key, parts)
            if archive.fault:
                yield DamagedShard(str(shard), f"cannot be read as a tar to its end: it {archive.fault}")
    except (OSError, ValueError) as error:
        if isinstance(error, PermissionError):
            raise DataError(f"{str(shard)!r} cannot be read: {error.strerror}", "give read permission") from error
        if isinstance(error, OSError) and error.errno is not None:
            raise MachineError(f"cannot read {str(shard)!r}: {error.strerror}") from error
        yield DamagedShard(str(shard), f"cannot be read as a tar: {error}")


def _up_to_first_dot(name: str) -> str:
    """The key by the rule of WebDataset: the path up to the first dot of the file name."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _settle(undecided: dict[str, list[RejectedFile | DataError]]) -> Iterator[RejectedFile]:
    """Yield or raise what is wrong with files that belong to no other sample."""
    for fault in chain.from_iterable(undecided.values()):
        if isinstance(fault, DataError):
            raise fault
        yield fault
    undecided.clear()


def _fault(shard: Path, key: str, parts: Mapping[str, bytes]) -> RejectedFile | DataError | None:
    """What is wrong with the files of one key, which are not a whole sample."""
    try:
        return next((found for found in _sample(shard, key, parts) if isinstance(found, RejectedFile)), None)
    except DataError as error:
        return error


def _sample(shard: Path, key: str, parts: Mapping[str, bytes]) -> Iterator[TarSample | RejectedFile]:
    """The sample of the files of one key; none if they have neither image nor label, or one of them cannot be read."""
    if UNREADABLE in parts:
        return
    where = f"{shard.name}/{key}"
    suffix = next((suffix for suffix in IMAGE_PARTS if suffix in parts), None)
    try:
        values = parse_json(parts.get(".json", b"{}"))
    except ValueError as error:
        raise DataError(f"{where}.json is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{where}.json holds a {type(values).__name__}, not an object")
    fields = {name: str(value) for name, value in values.items() if isinstance(value, str | int | float)}
    for label_part in LABEL_PARTS:
        if label_part in parts:
            fields.setdefault("label", parts[label_part].decode("utf-8", "replace").strip())
    if suffix is None:
        if "label" in fields:
            yield RejectedFile(where, "has no image of a supported format")
        return
    if "label" not in fields:
        raise DataError(f"{where} has no label", "add a .cls or .txt with the label, or a field label to the .json")
    yield TarSample(where, parts[suffix], suffix, fields)
