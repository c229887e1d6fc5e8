"""Validation of files that enter the program. Each error names the file and the invalid field."""

from pathlib import Path, PurePosixPath
from typing import TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from streetvision.contracts.errors import ArtifactError
from streetvision.contracts.policies import BundleManifest, Policy, ScrcPolicy, ThresholdPolicy
from streetvision.io.atomic import json_text, read_bytes, read_json, sha256_file, sha256_json
from streetvision.io.system_files import is_system_name

Model = TypeVar("Model", bound=BaseModel)

BUNDLE_VERSIONS = (2, 3)
# Bundles may come from an untrusted source: limits keep a hostile one from filling memory or time.
MAX_MANIFEST_BYTES = 16 * 2**20
MAX_BUNDLE_FILES = 64
MAX_BUNDLE_BYTES = 16 * 2**30
MAX_LISTED_FILES = 5
PUBLISHED_NAMES = {"readme", "readme.md", "readme.txt", "license", "license.md", "license.txt"}
"""Names, in lower case, that publishing adds to a folder."""
RESTORE_BUNDLE = "export the bundle again, or copy it again from its source"


def validate_json(path: Path, kind: type[Model]) -> Model:
    """Return the JSON in `path` as a `kind`; raises ArtifactError that names the first invalid field."""
    return _validate(path, TypeAdapter(kind))


def _validate(path: Path, adapter: TypeAdapter[Model]) -> Model:
    try:
        return adapter.validate_python(read_json(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the document"
        raise ArtifactError(f"{str(path)!r}: {field}: {first['msg']}") from error


class PolicyValidator:
    """Validates thresholds.json and scrc_params.json."""

    _adapter: TypeAdapter[ThresholdPolicy | ScrcPolicy] = TypeAdapter(Policy)

    def validate(self, path: Path) -> ThresholdPolicy | ScrcPolicy:
        """Return the policy in `path`; raises ArtifactError that names the file and the first invalid field."""
        if path.suffix == ".pkl":
            raise ArtifactError(
                f"{str(path)!r} is a pickle, which can run code and is never read here",
                f"use {str(path.with_suffix('.json'))!r}, which has the same content",
            )
        return _validate(path, self._adapter)


class BundleValidator:
    """Validates a bundle folder: bundle.json, then the digest of every file."""

    def validate(self, bundle: Path) -> BundleManifest:
        """Return the manifest of a bundle, given its folder or its bundle.json.

        Raises:
            ArtifactError: bundle.json is invalid or modified; a file is missing, modified or not listed; or the bundle
                exceeds the limits of size.
        """
        folder = bundle.parent if bundle.name == "bundle.json" else bundle
        path = folder / "bundle.json"
        self._check_readable(path)
        manifest = validate_json(path, BundleManifest)
        self._check_limits(folder, manifest)
        # The canonical text is compared too, so that a bundle has exactly one representation.
        canonical = json_text(manifest.model_dump(mode="json")).encode()
        if manifest.digest != bundle_digest(manifest) or read_bytes(path) != canonical:
            raise ArtifactError(f"{str(path)!r} was modified: it does not match its own digest", RESTORE_BUNDLE)
        self._check_files(folder, manifest)
        return manifest

    def _check_readable(self, path: Path) -> None:
        if not path.is_file() or path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ArtifactError(f"{str(path)!r} is not a regular file of at most {MAX_MANIFEST_BYTES} bytes")
        content = read_json(path)
        version = content.get("schema_version") if isinstance(content, dict) else None
        # Checked before the model, whose error would list every field that another version has.
        if isinstance(version, int) and version not in BUNDLE_VERSIONS:
            supported = " and ".join(map(str, BUNDLE_VERSIONS))
            raise ArtifactError(
                f"{str(path)!r} has schema_version {version}; this streetvision supports {supported}",
                "export the bundle again with this version of streetvision",
            )

    def _check_limits(self, folder: Path, manifest: BundleManifest) -> None:
        n_files, n_bytes = len(manifest.files), sum(entry.bytes for entry in manifest.files.values())
        if n_files > MAX_BUNDLE_FILES or n_bytes > MAX_BUNDLE_BYTES:
            raise ArtifactError(
                f"bundle {str(folder)!r} lists {n_files} files with {n_bytes} bytes in total; "
                f"at most {MAX_BUNDLE_FILES} files of {MAX_BUNDLE_BYTES} bytes in total are allowed"
            )
        # A name must not lead outside the folder.
        for name in manifest.files:
            if PurePosixPath(name).parts != (name,) or name == ".." or "\\" in name or "\0" in name:
                raise ArtifactError(f"bundle {str(folder)!r} lists {name!r}; only plain file names are allowed")

    def _check_files(self, folder: Path, manifest: BundleManifest) -> None:
        for name, entry in manifest.files.items():
            path = folder / name
            if not path.is_file():  # a link to a regular file is one: its digest is checked
                raise ArtifactError(f"bundle {str(folder)!r} lists {name!r}, but has no such file", RESTORE_BUNDLE)
            if path.stat().st_size != entry.bytes or sha256_file(path) != entry.sha256:
                raise ArtifactError(
                    f"{name!r} in bundle {str(folder)!r} does not match its digest in bundle.json", RESTORE_BUNDLE
                )
        expected = {*manifest.files, "bundle.json", "manifest.json"}
        unexpected = sorted(p.name for p in folder.iterdir() if p.name not in expected and not _is_harmless(p.name))
        if unexpected:
            names = ", ".join(unexpected[:MAX_LISTED_FILES])
            raise ArtifactError(
                f"bundle {str(folder)!r} contains files that bundle.json does not list: {names}",
                f"move {unexpected[0]!r} to another folder",
            )


def _is_harmless(name: str) -> bool:
    """Whether a file of a bundle's folder, which is never read, may be there: hidden, of the system, or a README."""
    return name.startswith(".") or is_system_name(name) or name.casefold() in PUBLISHED_NAMES


def bundle_digest(manifest: BundleManifest) -> str:
    """Return the correct value of `manifest.digest`."""
    return sha256_json(manifest.model_dump(mode="json", exclude={"digest"}))
