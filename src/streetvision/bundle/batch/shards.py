"""The folder of a batch prediction: the list of images and their predictions in shards, each complete or absent.

    manifest.json               the bundle and the images; written when all images are listed
    listing/00000000.jsonl      a line per image: a reference to its bytes
    predictions/00000000.jsonl  a line per image of the same shard, in the same order: its prediction, or an error
    failures.jsonl              the lines with an error; written when all shards are done

Shards are independent: any process that sees the same paths can predict any of them, in any order.
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
from streetvision.data.config import DEFAULT_LIMITS
from streetvision.data.file_search import LeftOut
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
from streetvision.io.system_files import is_system_name
from streetvision.io.validators import validate_json

DEFAULT_SHARD_SIZE = 500
DIGITS = 8
"""Digits of a shard's number in file names."""
MANIFEST, LISTING, LOCK = "manifest.json", "listing", ".lock"
NEW_FOLDER_HINT = "set --out to a new folder"


class ShardManifest(Artifact):
    """manifest.json: the bundle and the images that the predictions belong to."""

    schema_version: Literal[1] = 1
    bundle: Digest
    """Digest of the bundle."""
    sources: tuple[str, ...]
    """Absolute paths of the sources."""
    images: int = Field(ge=1)
    """Number of images."""
    images_sha256: Digest
    """Digest of the listing that does not depend on its order: the sum of the digests of its lines."""
    shard_size: int = Field(ge=1)
    """Images per shard; the last shard may have fewer."""
    max_megapixels: float = Field(default=DEFAULT_LIMITS.max_megapixels, gt=0)
    """Limit of DecodeLimits."""
    signals: bool = False
    """Whether predictions have signals for `streetvision monitor`."""
    monitor_state: str | None = None
    """Absolute path of the state file of `streetvision monitor`, which may withdraw the certificate."""
    failures: int | None = None
    """Number of images that cannot be decoded; None until all shards are done."""

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.images // self.shard_size)


@dataclass(frozen=True)
class ShardResult:
    """The result of a finished shard."""

    shard: int
    images: int
    failures: int


@dataclass(frozen=True)
class ShardFolder:
    """Paths and contents of a folder of predictions."""

    root: Path

    @cached_property
    def manifest(self) -> ShardManifest:
        """The manifest, read once."""
        return validate_json(self.manifest_path, ShardManifest)

    @property
    def manifest_path(self) -> Path:
        """Written when all images are listed, and again when all shards are done."""
        return self.root / MANIFEST

    @property
    def failures_path(self) -> Path:
        """The images that cannot be decoded."""
        return self.root / "failures.jsonl"

    @property
    def predictions_dir(self) -> Path:
        """The predictions of all shards."""
        return self.root / "predictions"

    def listing(self, shard: int) -> Path:
        """Return the path of the references to a shard's images."""
        return self.root / LISTING / f"{shard:0{DIGITS}d}.jsonl"

    def predictions(self, shard: int) -> Path:
        """Return the path of a shard's predictions."""
        return self.predictions_dir / f"{shard:0{DIGITS}d}.jsonl"

    def missing(self) -> Iterator[int]:
        """Yield the shards without predictions."""
        return (shard for shard in range(self.manifest.shards) if not self.predictions(shard).is_file())


@contextmanager
def lock_folder(root: Path) -> Iterator[None]:
    """Create the folder `root` if it does not exist, and keep other processes from writing to it.

    Raises:
        ConfigError: The folder has other contents, is in use, or cannot be written.
    """
    paths = root.iterdir() if root.is_dir() else ()
    names = {path.name for path in paths if not is_system_name(path.name)}
    complete = {name for name in names if not name.endswith(TEMP_SUFFIX)}
    # A run that was interrupted before its manifest has left a lock, and a part of the listing.
    resumable = MANIFEST in names or (LOCK in names and complete <= {LOCK, LISTING})
    if names and not resumable:
        raise ConfigError(f"{str(root)!r} is not empty", NEW_FOLDER_HINT)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(root, error) from error
    with run_lock(root / LOCK, option="--out ..."):
        remove_stray_temps(root)
        yield


def open_folder(
    root: Path,
    sources: Sequence[Path],
    *,
    bundle: str,
    shard_size: int | None,
    max_megapixels: float = DEFAULT_LIMITS.max_megapixels,
    signals: bool = False,
    monitor_state: str | None = None,
    left_out: LeftOut | None = None,
) -> ShardFolder:
    """Open a folder of predictions; list the images of the sources if it is new, else check that they are the same.

    Args:
        root: The folder.
        sources: Image files, folders, tars and Parquet files.
        bundle: Digest of the bundle.
        shard_size: Images per shard; None: the shard size of the folder, or the default for a new one.
        max_megapixels: Limit of DecodeLimits.
        signals: Whether predictions have signals for `streetvision monitor`.
        monitor_state: Absolute path of a state file of `streetvision monitor`.
        left_out: Counts what else is in the folders of `sources`.

    Raises:
        ArtifactError: The folder has predictions of another bundle or of other images.
        ConfigError: The folder has another shard size or another limit.
    """
    folder = ShardFolder(root)
    if not folder.manifest_path.is_file():
        refs, size = list_image_refs(sources, left_out=left_out), shard_size or DEFAULT_SHARD_SIZE
        manifest = ShardManifest(
            bundle=bundle,
            sources=tuple(str(source.absolute()) for source in sources),
            images=1,
            images_sha256="0" * 64,
            shard_size=size,
            max_megapixels=max_megapixels,
            signals=signals,
            monitor_state=monitor_state,
        )
        _write_listing(folder, refs, manifest)
        return folder
    manifest = folder.manifest
    if manifest.bundle != bundle:
        raise ArtifactError(
            f"{str(root)!r} has predictions of another bundle: {manifest.bundle[:12]}, expected {bundle[:12]}",
            NEW_FOLDER_HINT,
        )
    if shard_size not in (None, manifest.shard_size):
        raise ConfigError(
            f"{str(root)!r} has shards of {manifest.shard_size} images, not {shard_size}",
            "leave out --shard-size to resume",
        )
    if max_megapixels != manifest.max_megapixels:
        raise ConfigError(
            f"{str(root)!r} has predictions with --max-megapixels {manifest.max_megapixels:g}, not {max_megapixels:g}",
            f"give --max-megapixels {manifest.max_megapixels:g} to resume, or set --out to a new folder",
        )
    if signals != manifest.signals:
        option = "without" if signals else "with"
        raise ConfigError(f"{str(root)!r} has predictions {option} --signals", "give the same option to resume")
    if monitor_state != manifest.monitor_state:
        raise ConfigError(
            f"{str(root)!r} has predictions with --monitor-state {manifest.monitor_state}, not {monitor_state}",
            "give the same option to resume",
        )
    listing = _ListingDigest()
    for ref in list_image_refs(sources, left_out=left_out):
        listing.add(_json_line(asdict(ref)))
    if (listing.images, listing.digest) != (manifest.images, manifest.images_sha256):
        raise ArtifactError(
            f"{str(root)!r} has predictions of other images: {manifest.images:,} before, {listing.images:,} now, or "
            "files of other sizes",
            NEW_FOLDER_HINT,
        )
    return folder


def predict_shard(predictor: Predictor, folder: ShardFolder, shard: int, *, decoders: int = 1) -> ShardResult:
    """Predict the images of a shard, and write its predictions all at once; memory holds one batch of images."""
    refs = [ImageRef(**fields) for fields in _read_json_lines(folder.listing(shard))]
    images = ((ref.name, content) for ref, content in read_image_refs(refs, limits=predictor.limits))
    failures = 0
    with open_atomic(folder.predictions(shard)) as handle:
        for row in predict_images(predictor, images, decoders=decoders):
            failures += "error" in row
            handle.write(_json_line(row))
    return ShardResult(shard, len(refs), failures)


def finish(folder: ShardFolder) -> ShardManifest:
    """Check that all shards are complete, and write their failures to one file and to the manifest.

    Raises:
        ArtifactError: A shard has another number of lines than images, or a line is damaged.
    """
    failures, size = 0, folder.manifest.shard_size
    with open_atomic(folder.failures_path) as handle:
        for shard in range(folder.manifest.shards):
            path = folder.predictions(shard)
            rows = list(_read_json_lines(path))
            expected = min(size, folder.manifest.images - shard * size)
            if len(rows) != expected:
                raise ArtifactError(
                    f"{str(path)!r} has {len(rows)} predictions, expected {expected}",
                    "delete this file and run the same command again",
                )
            for row in rows:
                if "error" in row:
                    failures += 1
                    handle.write(_json_line(row))
    manifest = folder.manifest.model_copy(update={"failures": failures})
    write_json_atomic(folder.manifest_path, manifest.model_dump(mode="json"))
    return manifest


class _ListingDigest:
    """Count and digest of the lines of a listing. The order has no effect, because file systems do not keep one."""

    def __init__(self) -> None:
        self.images, self._sum = 0, 0

    def add(self, line: bytes) -> None:
        self.images += 1
        self._sum += int(sha256_bytes(line), 16)

    @property
    def digest(self) -> str:
        return f"{self._sum % 2**256:064x}"


def _write_listing(folder: ShardFolder, refs: Iterable[ImageRef], manifest: ShardManifest) -> None:
    """Write the images, and the manifest with their number last; memory holds the references of one shard."""
    if (folder.root / LISTING).is_dir():
        shutil.rmtree(folder.root / LISTING)  # of an interrupted run
    digest = _ListingDigest()
    lines = (_json_line(asdict(ref)) for ref in refs)
    for shard, shard_lines in enumerate(_chunks(lines, manifest.shard_size)):
        write_bytes_atomic(folder.listing(shard), b"".join(shard_lines))
        for line in shard_lines:
            digest.add(line)
    manifest = manifest.model_copy(update={"images": digest.images, "images_sha256": digest.digest})
    write_json_atomic(folder.manifest_path, manifest.model_dump(mode="json"))


def _chunks(lines: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    remaining = iter(lines)
    while chunk := list(islice(remaining, size)):
        yield chunk


def _json_line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, allow_nan=False).encode() + b"\n"


def _read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(read_bytes(path).splitlines(), start=1):
        try:
            value = json.loads(line)  # from bytes: a path may have bytes that are not valid UTF-8
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"{str(path)!r} line {number} is not JSON: {error}", NEW_FOLDER_HINT) from error
        if not isinstance(value, dict):
            raise ArtifactError(
                f"{str(path)!r} line {number} must be an object, not {type(value).__name__}", NEW_FOLDER_HINT
            )
        yield value
