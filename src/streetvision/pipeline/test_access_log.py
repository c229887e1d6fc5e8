"""The ledger of a run: every look at its VAL_TEST, when and through which bundle."""

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from streetvision.contracts.errors import ArtifactError
from streetvision.contracts.policies import Artifact, Digest
from streetvision.eval.report.contents import EarlierLooks
from streetvision.io.atomic import read_json, write_json_atomic


class _TestAccess(Artifact):
    at: str
    """UTC."""
    bundle_sha256: Digest


_ACCESSES = TypeAdapter(list[_TestAccess])


@dataclass(frozen=True)
class TestAccesses:
    """A look at VAL_TEST and those before it."""

    number: int
    """1 for the first."""
    earlier: list[EarlierLooks]
    """By bundle, the latest first."""


def record_test_access(path: Path, bundle_sha256: str) -> TestAccesses:
    """Note in the ledger at `path` that VAL_TEST is opened; to be called before it is.

    Raises ArtifactError when the ledger is damaged: a look must not be forgotten.
    """
    looks = _read(path)
    now = _TestAccess(at=datetime.now(UTC).isoformat(timespec="seconds"), bundle_sha256=bundle_sha256)
    write_json_atomic(path, [look.model_dump() for look in [*looks, now]])
    last = {look.bundle_sha256: look.at for look in looks}
    times = Counter(look.bundle_sha256 for look in looks)
    earlier = [EarlierLooks(bundle_sha256=bundle, times=times[bundle], last=last[bundle]) for bundle in last]
    return TestAccesses(len(looks) + 1, sorted(earlier, key=lambda looks: looks["last"], reverse=True))


def read_test_accesses(path: Path) -> int:
    """How many looks the ledger at `path` has; raises ArtifactError when it is damaged."""
    return len(_read(path))


def _read(path: Path) -> list[_TestAccess]:
    try:
        return _ACCESSES.validate_python(read_json(path)) if path.is_file() else []
    except ValidationError as error:
        raise ArtifactError(
            f"{str(path)!r} should hold the looks at VAL_TEST so far, and does not: {error.errors()[0]['msg']}",
            "restore it from a backup",
        ) from error
