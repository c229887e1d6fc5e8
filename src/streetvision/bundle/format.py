"""Write and read a bundle: a folder of files, and bundle.json with their digests."""

import gzip
import shlex
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from pydantic import ValidationError

from streetvision.bundle.reference import NO_REFERENCE_HINT, REFERENCE, Reference, read_reference
from streetvision.contracts.errors import ArtifactError, ConfigError
from streetvision.contracts.policies import BundleManifest, RuntimeRef, ScrcPolicy, ThresholdPolicy
from streetvision.io.atomic import open_atomic, write_json_atomic
from streetvision.io.manifests import file_digest, versions
from streetvision.io.system_files import is_system_name
from streetvision.io.validators import BundleValidator, bundle_digest, validate_json
from streetvision.models.config import ClassifierDescription, FusionDescription

BUNDLE_JSON = "bundle.json"
MODEL_CHECKPOINT = "model.pth"
MODEL_DESCRIPTION = "model_config.json"
FUSION_DESCRIPTION = "cvfm_config.json"
FUSION_WEIGHTS = "cvfm_weights.pth"
FUSION_ARRAYS = "cvfm_weights.safetensors"
"""The weights of a trained fusion for runtimes without PyTorch."""
RUNTIME_FILES = ("model.onnx", "model.xml", "model.bin", "dense.onnx", "dense.xml", "dense.bin", FUSION_ARRAYS)
BUNDLE_NAMES = (
    BUNDLE_JSON,
    MODEL_CHECKPOINT,
    MODEL_DESCRIPTION,
    FUSION_DESCRIPTION,
    FUSION_WEIGHTS,
    "scrc_params.json",
    "scrc_params.pkl",
    "thresholds.json",
    "seen_images.bin",
    REFERENCE,
    *RUNTIME_FILES,
)
"""All file names that a bundle may have, bundle.json first."""


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose digests have been checked."""

    folder: Path
    manifest: BundleManifest


def write_bundle(
    folder: Path,
    files: Mapping[str, Path],
    *,
    policy: ThresholdPolicy | ScrcPolicy,
    class_names: tuple[str, str],
    data_fingerprint: str,
    split_sha256: str | None = None,
    runtime: RuntimeRef | None = None,
    extra_versions: Mapping[str, str] = MappingProxyType({}),
) -> Bundle:
    """Copy files into a folder and write bundle.json with their digests last.

    The files of an earlier bundle in the folder are removed first.

    Args:
        folder: Destination.
        files: Name in the bundle -> source.
        policy: The decision policy.
        class_names: Names of class 0 and class 1.
        data_fingerprint: Fingerprint of the data set that the model was trained on.
        split_sha256: Digest of its split.
        runtime: The exported graph; None: PyTorch.
        extra_versions: Package -> version, in addition to those that every bundle records.

    Raises:
        ArtifactError: The policy does not belong to the model among the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in BUNDLE_NAMES:  # bundle.json first, so an interrupted export leaves no valid bundle
        (folder / name).unlink(missing_ok=True)
    for name, source in files.items():
        with source.open("rb") as original, open_atomic(folder / name) as copy:
            shutil.copyfileobj(original, copy)
    try:
        manifest = BundleManifest(
            schema_version=2 if runtime is None else 3,
            policy_type=policy.policy_type,
            policy=policy,
            class_names=class_names,
            model_checkpoint=MODEL_CHECKPOINT,
            model_description=MODEL_DESCRIPTION,
            fusion_description=FUSION_DESCRIPTION if FUSION_DESCRIPTION in files else None,
            fusion_weights=FUSION_WEIGHTS if FUSION_WEIGHTS in files else None,
            runtime=runtime,
            files={name: file_digest(folder / name) for name in sorted(files)},
            data_fingerprint=data_fingerprint,
            split_sha256=split_sha256,
            versions={**versions(), **extra_versions},
            digest="0" * 64,
        )
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise ArtifactError(f"these artifacts do not belong together: {reason}", "run all phases again") from error
    manifest = manifest.model_copy(update={"digest": bundle_digest(manifest)})
    write_json_atomic(folder / BUNDLE_JSON, manifest.model_dump(mode="json"))
    return Bundle(folder, manifest)


def bundle_folder(path: Path) -> Path:
    """Return the folder of a bundle that is given by its folder or its bundle.json.

    Paths without a name, such as `..`, and links are resolved, so the parent is the folder that contains the bundle.
    """
    folder = path.parent if path.name == BUNDLE_JSON else path
    return folder.resolve() if folder.name in {"", ".."} or folder.is_symlink() else folder


def check_export_folder(out: Path, bundle: Path) -> None:
    """Check that an export may be written.

    Args:
        out: Its folder.
        bundle: Folder of the bundle.

    Raises:
        ConfigError: `out` is not a new or empty folder (files of the system do not count), or is in the bundle, which
            would then have unknown files.
    """
    if out.exists() and (not out.is_dir() or not all(is_system_name(path.name) for path in out.iterdir())):
        raise ConfigError(f"--out {str(out)!r} is not an empty folder", "set --out to a new folder")
    if bundle.resolve() in (out.resolve(), *out.resolve().parents):
        raise ConfigError(f"--out {str(out)!r} must be outside the bundle", "set --out to a folder next to the bundle")


def read_bundle(path: Path) -> Bundle:
    """Read the bundle at `path`, a folder or its bundle.json, and check all digests.

    Raises:
        ArtifactError: There is no bundle, or a file of it is missing, changed or invalid.
    """
    folder = bundle_folder(path)
    if not (folder / BUNDLE_JSON).is_file() and (folder / "export" / BUNDLE_JSON).is_file():
        raise ArtifactError(
            f"{str(path)!r} is a run folder, not a bundle", f"use {shlex.quote(str(folder / 'export'))}"
        )
    if not (folder / BUNDLE_JSON).is_file():
        raise ArtifactError(
            f"there is no bundle at {str(path)!r} (expected a folder with {BUNDLE_JSON})",
            "make one with: streetvision train data.root=...",
        )
    return Bundle(folder, BundleValidator().validate(folder))


def read_classifier_description(bundle: Bundle) -> ClassifierDescription:
    """Return the description of the classifier of a bundle."""
    return validate_json(bundle.folder / bundle.manifest.model_description, ClassifierDescription)


def read_fusion_description(bundle: Bundle) -> FusionDescription | None:
    """Return the description of the fusion of a bundle; None: each image is one view."""
    name = bundle.manifest.fusion_description
    return None if name is None else validate_json(bundle.folder / name, FusionDescription)


def read_bundle_reference(bundle: Bundle) -> Reference:
    """Return the monitoring reference of a bundle; raises ArtifactError if it has none."""
    if REFERENCE not in bundle.manifest.files:
        raise ArtifactError(f"bundle {str(bundle.folder)!r} has no monitoring reference", NO_REFERENCE_HINT)
    reference = read_reference(bundle.folder / REFERENCE)
    if reference.header.scores_sha256 != bundle.manifest.policy.scores.sha256:
        raise ArtifactError(f"the monitoring reference of bundle {str(bundle.folder)!r} belongs to another policy")
    return reference


def write_archive(bundle: Bundle, path: Path) -> None:
    """Write the bundle as a reproducible tar.gz: sorted names, no times, no owners."""
    names = sorted([BUNDLE_JSON, *bundle.manifest.files])
    with (
        open_atomic(path) as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name in names:
            source = bundle.folder / name
            info = tarfile.TarInfo(f"export/{name}")
            info.size, info.mode = source.stat().st_size, 0o644
            with source.open("rb") as handle:
                archive.addfile(info, handle)
