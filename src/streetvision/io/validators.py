"""Checks at the border between disk and code: each names the file and the field that is wrong."""

from pathlib import Path, PurePosixPath
from typing import TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from streetvision.contracts.errors import ArtifactError
from streetvision.contracts.policies import BundleManifest, Policy, ScrcPolicy, ThresholdPolicy
from streetvision.io.atomic import json_text, read_bytes, read_json, sha256_file, sha256_json

Model = TypeVar("Model", bound=BaseModel)

BUNDLE_VERSIONS = (2, 3)
MAX_MANIFEST_BYTES = 16 * 2**20
MAX_BUNDLE_FILES = 64
MAX_BUNDLE_BYTES = 16 * 2**30


def validate_json(path: Path, kind: type[Model]) -> Model:
    """The JSON in `path` as a `kind`; raises ArtifactError that names the first wrong field."""
    return _validate(path, TypeAdapter(kind))


def _validate(path: Path, adapter: TypeAdapter[Model]) -> Model:
    try:
        return adapter.validate_python(read_json(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the document"
        raise ArtifactError(f"{str(path)!r}: {field}: {first['msg']}") from error


class PolicyValidator:
    """Reads thresholds.json or scrc_params.json."""

    _adapter: TypeAdapter[ThresholdPolicy | ScrcPolicy] = TypeAdapter(Policy)

    def validate(self, path: Path) -> ThresholdPolicy | ScrcPolicy:
        """The policy in `path`; raises ArtifactError that names file and field."""
        return _validate(path, self._adapter)


class BundleValidator:
    """Reads a bundle folder: its table of contents, then every seal in it, its own first."""

    def validate(self, folder: Path) -> BundleManifest:
        """The manifest of the bundle in `folder`; raises ArtifactError that names what is wrong."""
        path = folder / "bundle.json"
        self._check_readable(path)
        manifest = validate_json(path, BundleManifest)
        n, size = len(manifest.files), sum(entry.bytes for entry in manifest.files.values())
        if n > MAX_BUNDLE_FILES or size > MAX_BUNDLE_BYTES:
            limits = f"at most {MAX_BUNDLE_FILES} files of {MAX_BUNDLE_BYTES} bytes in all are read"
            raise ArtifactError(f"bundle {str(folder)!r} lists {n} files of {size} bytes in all; {limits}")
        for name in manifest.files:
            _check_plain(name, folder)
        self._check_own_seal(path, manifest)
        self._check_seals(folder, manifest)
        self._check_strangers(folder, manifest)
        return manifest

    def _check_readable(self, path: Path) -> None:
        """Raise unless `path` is a file of its own, of sensible size and of the version that is read here."""
        if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ArtifactError(f"{str(path)!r} is no file of at most {MAX_MANIFEST_BYTES} bytes")
        content = read_json(path)
        version = content.get("schema_version") if isinstance(content, dict) else None
        if isinstance(version, int) and version not in BUNDLE_VERSIONS:
            known = " and ".join(map(str, BUNDLE_VERSIONS))
            raise ArtifactError(
                f"{str(path)!r} has schema_version {version}, and this streetvision reads {known}",
                "export the bundle again with this version, or read it with the version in its versions",
            )

    def _check_own_seal(self, path: Path, manifest: BundleManifest) -> None:
        written = json_text(manifest.model_dump(mode="json")).encode()
        if manifest.digest != bundle_digest(manifest) or read_bytes(path) != written:
            raise ArtifactError(
                f"{str(path)!r} is not what was sealed: it was changed since",
                "export the bundle again, or copy it again from where it came",
            )

    def _check_seals(self, folder: Path, manifest: BundleManifest) -> None:
        for name, entry in manifest.files.items():
            path = folder / name
            if path.is_symlink() or not path.is_file():
                raise ArtifactError(f"bundle {str(folder)!r} names {name!r}, and there is no such file in it")
            if path.stat().st_size != entry.bytes or sha256_file(path) != entry.sha256:
                raise ArtifactError(
                    f"{name!r} in bundle {str(folder)!r} is not the file that was sealed (sha256 differs)",
                    "export the bundle again, or copy it again from where it came",
                )

    def _check_strangers(self, folder: Path, manifest: BundleManifest) -> None:
        known = {*manifest.files, "bundle.json", "manifest.json"}
        strangers = sorted(path.name for path in folder.iterdir() if path.name not in known)
        if strangers:
            raise ArtifactError(f"bundle {str(folder)!r} holds files it does not name: {', '.join(strangers[:5])}")


def bundle_digest(manifest: BundleManifest) -> str:
    """The digest that `manifest.digest` must be."""
    return sha256_json(manifest.model_dump(mode="json", exclude={"digest"}))


def _check_plain(name: str, folder: Path) -> None:
    if PurePosixPath(name).parts != (name,) or name == ".." or "\\" in name or "\0" in name:
        raise ArtifactError(f"bundle {str(folder)!r} names {name!r}; only plain file names are allowed")
