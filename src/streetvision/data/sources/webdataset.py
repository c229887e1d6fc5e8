"""Samples of WebDataset tars: files of one name and several suffixes, read in order and never unpacked by name."""

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from streetvision.contracts.errors import DataError
from streetvision.data.config import DEFAULT_LIMITS
from streetvision.io.atomic import parse_json

PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
MOST_BYTES_OF_TEXT = 2**20
DAMAGED_TAR = (tarfile.TarError, OSError, EOFError, ValueError, RecursionError)
"""What tarfile raises for headers that are damaged, or made to hurt."""


@dataclass(frozen=True)
class Sample:
    """One image of a shard and what lies beside it."""

    name: str
    """shard.tar/key"""
    picture: bytes
    suffix: str
    """Of the picture, with its dot."""
    fields: Mapping[str, str]
    """`label` from .cls, .txt or .json, and every further plain value of the .json."""


def find_shards(root: Path) -> list[Path]:
    """The tars that `root` is or holds, in the order of their names."""
    if root.is_file():
        return [root] if root.suffix == ".tar" else []
    return sorted(root.glob("*.tar")) if root.is_dir() else []


def read_shard(shard: Path) -> Iterator[Sample]:
    """The samples of one tar, one in memory at a time; raises DataError for a damaged tar or a sample without label."""
    try:
        with tarfile.open(shard, "r|*") as archive:
            yield from _samples(shard, archive)
    except DAMAGED_TAR as error:
        raise DataError(f"{str(shard)!r} cannot be read as a tar: {error}") from error


def _samples(shard: Path, archive: tarfile.TarFile) -> Iterator[Sample]:
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
        limit = DEFAULT_LIMITS.max_megabytes * 1e6 if suffix.lower() in PICTURES else MOST_BYTES_OF_TEXT
        if member.size > limit:
            raise DataError(f"{shard.name}/{member.name} is {member.size:,} bytes; the limit is {limit:,.0f}")
        content = archive.extractfile(member)
        assert content is not None, "a regular file has content"
        parts[suffix.lower()] = content.read()
    yield from _sample(shard, key, parts)


def _sample(shard: Path, key: str, parts: dict[str, bytes]) -> Iterator[Sample]:
    suffix = next((suffix for suffix in PICTURES if suffix in parts), None)
    if suffix is None:
        return
    where = f"{shard.name}/{key}"
    fields = _json_fields(parts.get("json", b"{}"), where)
    for told in ("cls", "txt"):
        if told in parts:
            fields.setdefault("label", parts[told].decode("utf-8", "replace").strip())
    if "label" not in fields:
        raise DataError(f"{where} has no label", "a sample has .cls or .txt with it, or .json with a field label")
    yield Sample(where, parts[suffix], f".{suffix}", fields)


def _json_fields(text: bytes, where: str) -> dict[str, str]:
    try:
        fields = parse_json(text)
    except ValueError as error:
        raise DataError(f"{where}.json is not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise DataError(f"{where}.json holds a {type(fields).__name__}, not an object")
    return {name: str(value) for name, value in fields.items() if isinstance(value, str | int | float)}
