"""Step manifests: inputs, outputs, settings and code version of one phase. Written after all other files."""

import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from pydantic import Field, JsonValue, ValidationError

import streetvision
from streetvision.contracts.errors import ArtifactError
from streetvision.contracts.policies import Artifact, Digest, FileDigest
from streetvision.io.atomic import read_json, sha256_bytes, sha256_file, sha256_json

RECORDED_PACKAGES = (
    "streetvision",
    "torch",
    "torchvision",
    "lightning",
    "transformers",
    "timm",
    "onnxruntime",
    "openvino",
    "numpy",
    "pillow",
)


class StepManifest(Artifact):
    """Content of manifest.json of one phase."""

    phase: str
    created: str
    """UTC, ISO 8601."""
    duration_seconds: float = Field(ge=0)
    git_sha: str | None
    """Commit of the code; None outside a git checkout."""
    code_sha256: Digest
    """Digest of the source files of the package."""
    config: dict[str, JsonValue]
    """The configuration sections that the phase reads."""
    config_sha256: Digest
    """Digest of the settings that affect the result."""
    external_sha256: Digest | None
    """Digest of inputs outside the run folder; None without such inputs."""
    inputs: dict[str, FileDigest]
    """By path relative to the run folder."""
    outputs: dict[str, FileDigest]
    """By path relative to the run folder."""
    metrics: dict[str, float | int | str | None]
    summary: str
    """The line printed by the phase."""
    versions: dict[str, str]


def create_step_manifest(
    phase: str,
    *,
    root: Path,
    config: Mapping[str, JsonValue],
    config_sha256: str,
    inputs: Mapping[str, FileDigest],
    outputs: Iterable[Path],
    summary: str,
    metrics: Mapping[str, float | int | str | None],
    external_sha256: str | None = None,
    duration_seconds: float = 0.0,
) -> StepManifest:
    """Return the manifest of a phase, with the digests of its outputs.

    Args:
        phase: id of the phase.
        root: the run folder.
        config: the configuration sections that the phase reads.
        config_sha256: digest of the settings that affect the result.
        inputs: digests of the inputs, taken before the phase ran, by path relative to `root`.
        outputs: paths of the written files.
        summary: the line printed by the phase.
        metrics: metrics of the phase.
        external_sha256: digest of inputs outside the run folder.
        duration_seconds: run time of the phase.

    Raises:
        ArtifactError: one of the outputs does not exist.
    """
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
        summary=summary,
        metrics=dict(metrics),
        versions=dict(versions()),
    )


def read_manifest(path: Path) -> StepManifest:
    """Return the manifest in `path`; raises ArtifactError if it is missing or invalid."""
    try:
        return StepManifest.model_validate(read_json(path))
    except ValidationError as error:
        raise ArtifactError(f"{str(path)!r} is not a manifest: {error.errors()[0]['loc']}") from error


def file_digest(path: Path) -> FileDigest:
    """Return the digest and the size of the file at `path`; raises ArtifactError if it does not exist."""
    if not path.is_file():
        raise ArtifactError(f"{str(path)!r} should exist but does not")
    return FileDigest(sha256=sha256_file(path), bytes=path.stat().st_size)


def relative(path: Path, root: Path) -> str:
    """Return `path` relative to `root`, with forward slashes."""
    return path.relative_to(root).as_posix()


@cache
def versions() -> Mapping[str, str]:
    """Return the versions of Python and of the installed packages that affect the results."""
    packages = {}
    for name in RECORDED_PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    return {"python": platform.python_version(), **packages}


@cache
def code_sha256() -> str:
    """Return the digest of the paths and contents of the package's source files."""
    root = Path(streetvision.__file__).parent
    sources = sorted(path for path in root.rglob("*") if path.suffix in {".py", ".html", ".j2", ".css"})
    return sha256_json([[relative(path, root), sha256_bytes(path.read_bytes())] for path in sources])


@cache
def git_sha(*folders: str) -> str | None:
    """Return the commit of the code, followed by `+` if tracked files are modified; None outside a checkout.

    Args:
        folders: Folders of the checkout whose modified files count; none: all.
    """
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    paths = [f":/{folder}" for folder in folders]
    return f"{commit}+" if _git("status", "--porcelain", "--untracked-files=no", "--", *paths) else commit


def _git(*arguments: str) -> str | None:
    command, folder = ["git", *arguments], Path(streetvision.__file__).parent
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
