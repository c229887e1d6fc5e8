"""The folder of a prediction at scale: a listing of images and their answers, both in shards that are whole or absent.

    manifest.json            which bundle answers which images; written when the listing is whole
    listing/00000000.jsonl   a line for every image: where its bytes are
    answers/00000000.jsonl   a line for each of the same images, in the same order: its answer, or an error
    failures.jsonl           the lines with an error, written when every shard is there

Whoever has the folder and the bundle can answer any shard, in any order, on any machine that sees the same paths.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from streetvision.bundle.batch.files import predict_images
from streetvision.bundle.predictor import Predictor
from streetvision.contracts.errors import ArtifactError, ConfigError
from streetvision.contracts.policies import Artifact, Digest
from streetvision.data.sources.image_stream import ImageRef, list_image_refs, read_image_refs
from streetvision.io.atomic import (
    TEMP_SUFFIX,
    cannot_write,
    open_atomic,
    read_bytes,
    remove_stray_temps,
    sha256_bytes,
    write_bytes_atomic,
    write_json_atomic,
)
from streetvision.io.lock import run_lock
from streetvision.io.validators import validate_json

SHARD_SIZE = 500
DIGITS = 8
MANIFEST, LISTING, LOCK = "manifest.json", "listing", ".lock"
ELSEWHERE = "give the answers a folder of their own: --out ..."


class ShardManifest(Artifact):
    """manifest.json: what the folder's answers belong to."""

    schema_version: Literal[1] = 1
    bundle: Digest
    """Seal of the bundle that answers."""
    sources: tuple[str, ...]
    """Absolute paths, as they were given."""
    images: int = Field(ge=1)
    images_sha256: Digest
    """Of the listing, whatever its order: the sum of the digests of its lines."""
    shard_size: int = Field(ge=1)
    """Images of a shard; the last may have fewer."""
    failures: int | None = None
    """Images without an answer; None until every image was looked at."""

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-self.images // self.shard_size)


@dataclass(frozen=True)
class Done:
    """A shard that is answered."""

    shard: int
    images: int
    failures: int


@dataclass(frozen=True)
class ShardFolder:
    """Paths and contents of such a folder."""

    root: Path

    @cached_property
    def manifest(self) -> ShardManifest:
        """What the folder's answers belong to, read once."""
        return validate_json(self.manifest_path, ShardManifest)

    @property
    def manifest_path(self) -> Path:
        """Written when the listing is whole, and again when the answers are."""
        return self.root / MANIFEST

    @property
    def failures_path(self) -> Path:
        """The images without an answer."""
        return self.root / "failures.jsonl"

    def listing(self, shard: int) -> Path:
        """The images of a shard."""
        return self.root / LISTING / f"{shard:0{DIGITS}d}.jsonl"

    def answers(self, shard: int) -> Path:
        """The answers of a shard."""
        return self.root / "answers" / f"{shard:0{DIGITS}d}.jsonl"

    def missing(self) -> Iterator[int]:
        """The shards that are still to be answered."""
        return (shard for shard in range(self.manifest.shards) if not self.answers(shard).is_file())


@contextmanager
def claim(root: Path) -> Iterator[None]:
    """Be the only one who answers into `root`; raises ConfigError for a folder of something else."""
    names = {path.name for path in root.iterdir()} if root.is_dir() else set()
    whole = {name for name in names if not name.endswith(TEMP_SUFFIX)}
    begun = MANIFEST in names or (LOCK in names and whole <= {LOCK, LISTING})
    if names and not begun:
        raise ConfigError(f"{str(root)!r} is not empty", ELSEWHERE)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(root, error) from error
    with run_lock(root / LOCK, option="--out ..."):
        remove_stray_temps(root)
        yield


def open_folder(root: Path, sources: Sequence[Path], *, bundle: str, shard_size: int | None) -> ShardFolder:
    """The folder at `root`, its listing whole: made now, or found to be of the same bundle and the same images.

    `bundle` is the seal of the bundle. Raises ArtifactError for a folder of another bundle or of other images,
    ConfigError for one with another shard size.
    """
    folder = ShardFolder(root)
    if not folder.manifest_path.is_file():
        _make(folder, sources, bundle=bundle, shard_size=shard_size or SHARD_SIZE)
        return folder
    manifest = folder.manifest
    if manifest.bundle != bundle:
        raise ArtifactError(
            f"{str(root)!r} has the answers of another bundle ({manifest.bundle[:12]}, this is {bundle[:12]})",
            ELSEWHERE,
        )
    if shard_size not in (None, manifest.shard_size):
        raise ConfigError(
            f"{str(root)!r} was begun with shards of {manifest.shard_size} images, not {shard_size}",
            "leave out --shard-size to go on",
        )
    census = _Census()
    for item in list_image_refs(sources):
        census.count(_line(asdict(item)))
    if (census.images, census.digest) != (manifest.images, manifest.images_sha256):
        raise ArtifactError(
            f"{str(root)!r} has the answers of other images: {manifest.images:,} then, {census.images:,} now, or their "
            "sizes changed",
            ELSEWHERE,
        )
    return folder


def predict_shard(predictor: Predictor, folder: ShardFolder, shard: int) -> Done:
    """Answer the images of a shard and write them down, whole or not at all; memory holds one batch of images."""
    items = [ImageRef(**fields) for fields in _read_lines(folder.listing(shard))]
    named = ((item.name, content) for item, content in read_image_refs(items, limits=predictor.limits))
    failures = 0
    with open_atomic(folder.answers(shard)) as handle:
        for answer in predict_images(predictor, named):
            failures += "error" in answer
            handle.write(_line(answer))
    return Done(shard, len(items), failures)


def finish(folder: ShardFolder) -> ShardManifest:
    """Gather the failures of all shards in one file, and note that the answers are whole."""
    failures, size = 0, folder.manifest.shard_size
    with open_atomic(folder.failures_path) as handle:
        for shard in range(folder.manifest.shards):
            answers = list(_read_lines(folder.answers(shard)))
            expected = min(size, folder.manifest.images - shard * size)
            if len(answers) != expected:
                raise ArtifactError(
                    f"{str(folder.answers(shard))!r} has {len(answers)} answers, and should have {expected}",
                    "remove it and run the same line again; with the same outcome, give another --out",
                )
            for answer in answers:
                if "error" in answer:
                    failures += 1
                    handle.write(_line(answer))
    manifest = folder.manifest.model_copy(update={"failures": failures})
    write_json_atomic(folder.manifest_path, manifest.model_dump(mode="json"))
    return manifest


class _Census:
    """Count and digest of the images of a listing, whatever their order."""

    def __init__(self) -> None:
        self.images, self._sum = 0, 0

    def count(self, line: bytes) -> None:
        self.images += 1
        self._sum += int(sha256_bytes(line), 16)

    @property
    def digest(self) -> str:
        return f"{self._sum % 2**256:064x}"


def _make(folder: ShardFolder, sources: Sequence[Path], *, bundle: str, shard_size: int) -> None:
    """List the sources, a shard in memory at a time; a listing that a killed run began is made anew."""
    if (folder.root / LISTING).is_dir():
        shutil.rmtree(folder.root / LISTING)
    census = _Census()
    for shard, lines in enumerate(_chunks((_line(asdict(item)) for item in list_image_refs(sources)), shard_size)):
        write_bytes_atomic(folder.listing(shard), b"".join(lines))
        for line in lines:
            census.count(line)
    manifest = ShardManifest(
        bundle=bundle,
        sources=tuple(str(source.expanduser().absolute()) for source in sources),
        images=census.images,
        images_sha256=census.digest,
        shard_size=shard_size,
    )
    write_json_atomic(folder.manifest_path, manifest.model_dump(mode="json"))


def _chunks(lines: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    remaining = iter(lines)
    while chunk := list(islice(remaining, size)):
        yield chunk


def _line(value: dict[str, object]) -> bytes:
    return json.dumps(value, allow_nan=False).encode() + b"\n"


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(read_bytes(path).splitlines(), start=1):
        try:
            value = json.loads(line)  # a path may hold bytes that are no letters
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"{str(path)!r} line {number} is not JSON: {error}", ELSEWHERE) from error
        if not isinstance(value, dict):
            raise ArtifactError(
                f"{str(path)!r} line {number} should be an object, and is {type(value).__name__}", ELSEWHERE
            )
        yield value
