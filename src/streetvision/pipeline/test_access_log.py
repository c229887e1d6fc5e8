"""The access log of VAL_TEST: when it was used, and by which bundle."""

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from streetvision.contracts.errors import ArtifactError
from streetvision.contracts.policies import Artifact, Digest
from streetvision.eval.report.contents import EarlierTestAccesses
from streetvision.io.atomic import read_json, write_json_atomic


class _LogEntry(Artifact):
    at: str
    """UTC, ISO 8601."""
    bundle_sha256: Digest


_LOG = TypeAdapter(list[_LogEntry])


@dataclass(frozen=True)
class TestAccess:
    """One access to VAL_TEST and the accesses before it."""

    number: int
    """1 for the first access."""
    earlier: list[EarlierTestAccesses]
    """One entry per bundle, the latest first."""


def record_test_access(path: Path, bundle_sha256: str) -> TestAccess:
    """Append an access to the log at `path`. Call it before VAL_TEST is read.

    Raises:
        ArtifactError: The log is damaged. It is never replaced, so that no access is lost.
    """
    entries = _read(path)
    now = _LogEntry(at=datetime.now(UTC).isoformat(timespec="seconds"), bundle_sha256=bundle_sha256)
    write_json_atomic(path, [entry.model_dump() for entry in [*entries, now]])
    last = {entry.bundle_sha256: entry.at for entry in entries}
    counts = Counter(entry.bundle_sha256 for entry in entries)
    earlier = [EarlierTestAccesses(bundle_sha256=bundle, count=counts[bundle], last=last[bundle]) for bundle in last]
    return TestAccess(len(entries) + 1, sorted(earlier, key=lambda access: access["last"], reverse=True))


def count_test_accesses(path: Path) -> int:
    """The number of accesses in the log at `path`; raises ArtifactError when the log is damaged."""
    return len(_read(path))


def _read(path: Path) -> list[_LogEntry]:
    try:
        return _LOG.validate_python(read_json(path)) if path.is_file() else []
    except ValidationError as error:
        raise ArtifactError(
            f"{str(path)!r} is not a valid log of VAL_TEST accesses: {error.errors()[0]['msg']}",
            "restore it from a backup",
        ) from error
