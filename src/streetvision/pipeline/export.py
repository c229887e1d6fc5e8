"""Exports of a bundle for other programs and runtimes, and the check of a miner folder."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from streetvision.bundle.batch.files import list_files, print_left_out
from streetvision.bundle.format import BUNDLE_JSON, read_bundle, read_classifier_description
from streetvision.bundle.predictor import load_bundle
from streetvision.bundle.runtimes.registry import RUNTIMES
from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ConfigError, DataError
from streetvision.contracts.policies import Precision
from streetvision.data.file_search import LeftOut, printable
from streetvision.export.hub import BUNDLE_FOLDER, Card, EvaluatedBundle, EvaluationSummary, write_hub
from streetvision.io.atomic import sha256_file
from streetvision.io.resize import MAX_STRETCH
from streetvision.io.validators import validate_json
from streetvision.pipeline.console import Console
from streetvision.pipeline.runtime_export import RuntimeRequest, export_runtime
from streetvision.subnet.hf_head import PINNED
from streetvision.subnet.miner import Submission, check_miner, write_miner

DEFAULT_NAME = "streetvision"
EXACT = 1e-6
"""Largest difference of a probability that counts as exact."""
MAX_SECONDS = 3.0
"""Budget of the subnet's reference miner for an image, at the 95th percentile."""


@dataclass(frozen=True)
class ExportRequest:
    """The options of an export; None for those that were not given."""

    bundle: Path
    out: Path
    runtime: str | None = None
    precision: Precision | None = None
    name: str | None = None
    hotkey: str | None = None
    version: str | None = None
    license: str | None = None


@dataclass(frozen=True)
class ExportFormat:
    """A format, and the options that it uses."""

    write: Callable[[ExportRequest, Console], None]
    options: frozenset[str]


def export_bundle(form: str | None, request: ExportRequest, overrides: Sequence[str], console: Console) -> None:
    """Write a bundle in a format of EXPORTS, or for a runtime.

    Raises:
        ConfigError: Both or neither of format and runtime are given, or an option has no effect.
    """
    if (form is None) == (request.runtime is None):
        raise ConfigError(
            "export needs either --format or --runtime",
            f"add --format {'|'.join(EXPORTS)}, or --runtime {'|'.join(RUNTIMES)}",
        )
    target = f"--runtime {request.runtime}" if form is None else f"--format {form}"
    used = frozenset({"precision"}) if form is None else EXPORTS[form].options
    options = ("precision", "name", "hotkey", "version", "license")
    if ignored := [name for name in options if getattr(request, name) is not None and name not in used]:
        raise ConfigError(f"--{ignored[0]} has no effect with {target}", "leave it out")
    if form is None:
        assert request.runtime is not None
        runtime_request = RuntimeRequest(request.bundle, request.out, request.runtime, request.precision or "fp32")
        export_runtime(runtime_request, overrides, console)
        return
    if overrides:
        raise ConfigError(f"{overrides[0]} has no effect with {target}, which uses no settings", "leave it out")
    EXPORTS[form].write(request, console)


def export_miner(request: ExportRequest, console: Console) -> None:
    """Write the folder for the subnet's reference miner, and report what it can represent of the bundle."""
    version = request.version or "1.0.0"
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise ConfigError(f"version {version!r} is not X.Y.Z", "for example --version 1.0.0")
    predictor = load_bundle(request.bundle)
    negative, positive = predictor.manifest.class_names
    submission = Submission(
        request.name or DEFAULT_NAME, f"{positive} or {negative} in street images", version, request.hotkey or ""
    )
    miner = write_miner(predictor, request.out, submission)
    needs = f"transformers {miner.transformers} or later" + (
        f", {miner.also_needs} or later" if miner.also_needs else ""
    )
    console.line("miner", f"{request.out}  (needs {needs})")
    threshold = predictor.manifest.policy.balanced_threshold
    console.line("threshold", f"{threshold:.3f} for balanced labels, mapped to probability 0.5 in the miner folder")
    console.line(
        "differences",
        f"the miner stretches images whose aspect ratio is more than {MAX_STRETCH:g} times that of the input, or less "
        f"than 1/{MAX_STRETCH:g} (the bundle pads them), drops transparency (the bundle puts it over white) "
        "and clips gray of 16 bits (the bundle scales it)",
    )
    if miner.transformers != PINNED:
        console.warn(
            f"the subnet pins transformers {PINNED}, which cannot load this folder; train model=dinov2_small, vit_base "
            "or dinov3_convnext_tiny (this one with model.image_size=224) with model.pooling=cls model.layers=1"
        )
    if read_classifier_description(predictor.bundle).reduces:
        console.warn(
            "the miner decodes images at full size, so probabilities of JPEGs that are much larger than the input "
            "differ; train with model.preprocessing=1 for the same pixels"
        )
    if miner.calibration.error > EXACT:
        console.warn(
            "a linear head cannot represent this calibration: probabilities differ by up to "
            f"{miner.calibration.error:.3f}, ranking and decisions do not differ; "
            "phase5.method=platt and temperature are exact"
        )
    if not request.hotkey:
        console.warn("model_card.json has no submitted_by: set --hotkey before submission")
    console.next_command(
        "streetvision", "subnet", "check-export", request.out, "street.jpg", "--bundle", request.bundle
    )


def export_hub(request: ExportRequest, console: Console) -> None:
    """Write the folder for the Hugging Face hub, with the metrics of this bundle if its run has them."""
    bundle, report = read_bundle(request.bundle), None
    path = ArtifactSchema(bundle.folder.parent).evaluation_report_json
    if path.is_file():
        evaluated = validate_json(path, EvaluatedBundle).provenance.bundle
        if evaluated == sha256_file(bundle.folder / BUNDLE_JSON):  # the run may have evaluated an earlier bundle
            report = validate_json(path, EvaluationSummary)
    write_hub(bundle, request.out, Card(request.name or DEFAULT_NAME, request.license or "other"), report)
    console.line("hub", f"{request.out}  (README.md and {BUNDLE_FOLDER}/)")
    if report is None:
        console.warn("the model card has no metrics: run streetvision evaluate on the bundle in its run folder first")
    if request.license is None:
        console.warn(
            "the model card has license: other; set --license, and check the license of the backbone's weights"
        )
    console.next_command("hf", "upload", "OWNER/NAME", request.out)


EXPORTS: Mapping[str, ExportFormat] = {
    "miner": ExportFormat(export_miner, frozenset({"name", "hotkey", "version"})),
    "hub": ExportFormat(export_hub, frozenset({"name", "license"})),
}
"""--format -> the export."""


def check_miner_folder(
    folder: Path, images: Sequence[Path], bundle: Path, *, python: Path | None, console: Console
) -> bool:
    """Compare a miner folder with its bundle on images; return whether all decisions agree."""
    left_out, files = LeftOut(), []
    for name, image in list_files(images, left_out):
        if not isinstance(image, Path):
            raise DataError(f"{name!r} cannot be read", "give read permission, or name the images")
        files.append(image)
    print_left_out(left_out)
    check = check_miner(load_bundle(bundle), folder, files, python=python, progress=console)
    for file in check.skipped:
        console.warn(f"{printable(file.path)} is skipped: it {file.reason}")
    for file in check.failures:
        console.warn(f"the reference miner fails on {printable(file.path)}: {file.reason}")
    console.line("loaded", f"as in the reference miner, with transformers {check.transformers}; {check.images} images")
    console.line("predictions", f"probabilities differ by at most {check.difference:.1e}")
    console.line(
        "decisions",
        f"{check.disagreements} differ; {check.invalid} predictions are missing, 0.5, or outside [0, 1]",
    )
    console.line("time", f"{check.p95_seconds:.2f} s per image at the 95th percentile, with decoding")
    if check.p95_seconds > MAX_SECONDS:
        console.warn(
            f"slower than {MAX_SECONDS:g} s: the subnet's timeout is 9 s with the network; use a smaller model"
        )
    return check.disagreements == 0 and check.invalid == 0
