"""The record of one phase: what it read, what it wrote, with which code and settings. Written last."""

import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from pydantic import Field, JsonValue, ValidationError

import streetvision
from streetvision.contracts.errors import ArtifactError
from streetvision.contracts.policies import Artifact, Digest, FileDigest
from streetvision.io.atomic import read_json, sha256_bytes, sha256_file, sha256_json

RECORDED_PACKAGES = ("streetvision", "torch", "torchvision", "lightning", "transformers", "timm", "numpy", "pillow")


class StepManifest(Artifact):
    """manifest.json of one phase."""

    phase: str
    created: str
    """UTC, ISO 8601."""
    duration_seconds: float = Field(ge=0)
    git_sha: str | None
    """Commit of the code, when it runs from a checkout."""
    code_sha256: Digest
    """Digest of the package's source files."""
    config: dict[str, JsonValue]
    """The sections that the phase reads."""
    config_sha256: Digest
    """Digest of the settings that decide the result."""
    external_sha256: Digest | None
    """Digest of inputs outside the run folder."""
    inputs: dict[str, FileDigest]
    """By path relative to the run folder."""
    outputs: dict[str, FileDigest]
    """By path relative to the run folder."""
    metrics: dict[str, float | int | str | None]
    summary: str
    """The line that the phase printed."""
    versions: dict[str, str]


def create_step_manifest(
    phase: str,
    *,
    root: Path,
    config: Mapping[str, JsonValue],
    config_sha256: str,
    files: tuple[Mapping[str, FileDigest], Iterable[Path]],
    outcome: tuple[str, Mapping[str, float | int | str | None]],
    external_sha256: str | None = None,
    duration_seconds: float = 0.0,
) -> StepManifest:
    """Seal the outputs of a phase under `root`, beside the seals that its inputs had when it began.

    `files` are (inputs by relative path, paths of outputs), `outcome` is (summary, metrics).
    Raises ArtifactError when one of the files does not exist: a manifest never drops an output in silence.
    """
    inputs, outputs = files
    return StepManifest(
        phase=phase,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        duration_seconds=round(duration_seconds, 3),
        git_sha=git_sha(),
        code_sha256=code_sha256(),
        config=dict(config),
        config_sha256=config_sha256,
        external_sha256=external_sha256,
        inputs=dict(inputs),
        outputs={relative(path, root): file_digest(path) for path in outputs},
        summary=outcome[0],
        metrics=dict(outcome[1]),
        versions=versions(),
    )


def read_manifest(path: Path) -> StepManifest:
    """The manifest in `path`; raises ArtifactError when it is missing, damaged or of another shape."""
    try:
        return StepManifest.model_validate(read_json(path))
    except ValidationError as error:
        raise ArtifactError(f"{str(path)!r} is not a manifest: {error.errors()[0]['loc']}") from error


def file_digest(path: Path) -> FileDigest:
    """Digest and size of the file at `path`."""
    if not path.is_file():
        raise ArtifactError(f"{str(path)!r} should exist and does not")
    return FileDigest(sha256=sha256_file(path), bytes=path.stat().st_size)


def relative(path: Path, root: Path) -> str:
    """`path` relative to `root`, with forward slashes."""
    return path.relative_to(root).as_posix()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what the numbers are."""
    found = {name: importlib.metadata.version(name) for name in RECORDED_PACKAGES}
    return {"python": platform.python_version(), **found}


@cache
def code_sha256() -> str:
    """Digest over the package's own source files, by relative path and content."""
    root = Path(streetvision.__file__).parent
    sources = sorted(path for path in root.rglob("*") if path.suffix in {".py", ".html", ".j2", ".css"})
    return sha256_json([[relative(path, root), sha256_bytes(path.read_bytes())] for path in sources])


@cache
def git_sha() -> str | None:
    """The commit that the code runs from, with `+` when it has local changes; None outside a checkout."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    return f"{commit}+" if _git("status", "--porcelain", "--untracked-files=no") else commit


def _git(*arguments: str) -> str | None:
    folder = Path(streetvision.__file__).parent
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603, S607
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
