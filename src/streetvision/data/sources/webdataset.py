"""Samples of WebDataset tars: files with the same name and different suffixes. Nothing is unpacked to disk."""

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from streetvision.contracts.errors import DataError
from streetvision.data.config import DEFAULT_LIMITS
from streetvision.io.atomic import parse_json

IMAGE_PARTS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
MAX_TEXT_BYTES = 2**20
DAMAGED_TAR = (tarfile.TarError, OSError, EOFError, ValueError, RecursionError)
"""Errors that tarfile raises for damaged or malicious headers."""


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


def find_shards(root: Path) -> list[Path]:
    """Return the tar that `root` is, or the tars in the folder `root`, sorted by name."""
    if root.is_file():
        return [root] if root.suffix == ".tar" else []
    return sorted(root.glob("*.tar")) if root.is_dir() else []


def read_shard(shard: Path) -> Iterator[TarSample]:
    """Yield the samples of one tar, with one sample in memory at a time.

    Raises:
        DataError: The tar is damaged, or a sample has no label.
    """
    try:
        with tarfile.open(shard, "r|*") as archive:
            yield from _samples(shard, archive)
    except DAMAGED_TAR as error:
        raise DataError(f"{str(shard)!r} cannot be read as a tar: {error}") from error


def _samples(shard: Path, archive: tarfile.TarFile) -> Iterator[TarSample]:
    # The files of one sample follow each other, so a new key ends the sample.
    key, parts = "", dict[str, bytes]()
    for member in archive:
        path = PurePosixPath(member.name)
        if not member.isfile() or path.name.startswith("."):
            continue
        stem, _, suffix = path.name.partition(".")
        name = str(path.with_name(stem))
        if name != key:
            yield from _sample(shard, key, parts)
            key, parts = name, {}
        limit = DEFAULT_LIMITS.max_megabytes * 1e6 if suffix.lower() in IMAGE_PARTS else MAX_TEXT_BYTES
        if member.size > limit:
            raise DataError(f"{shard.name}/{member.name} is {member.size:,} bytes; the limit is {limit:,.0f}")
        content = archive.extractfile(member)
        assert content is not None, "a regular file has content"
        parts[suffix.lower()] = content.read()
    yield from _sample(shard, key, parts)


def _sample(shard: Path, key: str, parts: Mapping[str, bytes]) -> Iterator[TarSample]:
    """The sample of the files of one key; none if they have no image."""
    suffix = next((suffix for suffix in IMAGE_PARTS if suffix in parts), None)
    if suffix is None:
        return
    where = f"{shard.name}/{key}"
    try:
        values = parse_json(parts.get("json", b"{}"))
    except ValueError as error:
        raise DataError(f"{where}.json is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{where}.json holds a {type(values).__name__}, not an object")
    fields = {name: str(value) for name, value in values.items() if isinstance(value, str | int | float)}
    for label_part in ("cls", "txt"):
        if label_part in parts:
            fields.setdefault("label", parts[label_part].decode("utf-8", "replace").strip())
    if "label" not in fields:
        raise DataError(f"{where} has no label", "add a .cls or .txt with the label, or a field label to the .json")
    yield TarSample(where, parts[suffix], f".{suffix}", fields)
