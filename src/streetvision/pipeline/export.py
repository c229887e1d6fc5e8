"""From a command line to a folder for another program, and to its check."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from streetvision.bundle.batch.files import expand
from streetvision.bundle.format import BUNDLE_JSON, Bundle, read_bundle
from streetvision.bundle.predictor import load_bundle
from streetvision.bundle.runtimes.registry import RUNTIMES
from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ConfigError
from streetvision.contracts.policies import Precision
from streetvision.export.hub import BUNDLE_FOLDER, Card, Judgement, ShownEvaluation, write_hub
from streetvision.io.atomic import sha256_file
from streetvision.io.validators import validate_json
from streetvision.pipeline.console import Console
from streetvision.pipeline.runtime_export import RuntimeRequest, export_runtime
from streetvision.subnet.hf_head import PINNED
from streetvision.subnet.miner import Submission, check_miner, write_miner

NAME = "streetvision"
"""Of a model that nobody named."""
CARRIED = 1e-6
"""A probability that differs by less is carried exactly."""
SLOW_SECONDS = 3.0
"""Budget of the subnet's stock miner for an image, at the 95th percentile."""


@dataclass(frozen=True)
class Request:
    """What a person asked to be exported; None where nothing was said."""

    bundle: Path
    out: Path
    runtime: str | None = None
    precision: Precision | None = None
    name: str | None = None
    hotkey: str | None = None
    version: str | None = None
    license: str | None = None


@dataclass(frozen=True)
class Export:
    """A format, and the options of a request that only some formats read."""

    write: Callable[[Request, Console], None]
    reads: frozenset[str]


def export_bundle(form: str | None, request: Request, overrides: Sequence[str], console: Console) -> None:
    """Write a bundle in a format of EXPORTS, or for a runtime; an option that is not read there is a ConfigError."""
    if (form is None) == (request.runtime is None):
        raise ConfigError(
            "export takes one of --format and --runtime",
            f"--format {'|'.join(EXPORTS)}, or --runtime {'|'.join(RUNTIMES)}",
        )
    what = f"--runtime {request.runtime}" if form is None else f"--format {form}"
    reads = frozenset({"precision"}) if form is None else EXPORTS[form].reads
    options = ("precision", "name", "hotkey", "version", "license")
    if ignored := [name for name in options if getattr(request, name) is not None and name not in reads]:
        raise ConfigError(f"{what} does not read --{ignored[0]}", "leave it out")
    if form is None:
        assert request.runtime is not None
        wanted = RuntimeRequest(request.bundle, request.out, request.runtime, request.precision or "fp32")
        export_runtime(wanted, overrides, console)
        return
    if overrides:
        raise ConfigError(f"{what} reads no settings, and {overrides[0]!r} is one", "leave it out")
    EXPORTS[form].write(request, console)


def export_miner(request: Request, console: Console) -> None:
    """Write the folder for the subnet's stock miner, and say what it carries and what not."""
    version = request.version or "1.0.0"
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise ConfigError(f"version {version!r} is not X.Y.Z", "for example --version 1.0.0")
    predictor = load_bundle(request.bundle)
    first, second = predictor.manifest.class_names
    card = Submission(request.name or NAME, f"{second} or {first} in street images", version, request.hotkey or "")
    written = write_miner(predictor, request.out, card)
    line = written.calibration
    needs = f"transformers {written.transformers} and later" + (
        f", {written.also_needs} and later" if written.also_needs else ""
    )
    console.line("miner", f"{request.out}  ({needs})")
    console.line(
        "threshold", f"{predictor.manifest.policy.balanced_threshold:.3f}, for balanced labels, is at 0.5 there"
    )
    if written.transformers != PINNED:
        console.warn(
            f"the subnet pins transformers {PINNED}, which does not load this folder: it needs {needs}; "
            "model=dinov2_small, vit_base and dinov3_convnext_tiny, with model.pooling=cls, are loaded by both"
        )
    if line.error > CARRIED:
        console.warn(
            f"a linear head cannot carry this calibration: ranking and decisions are kept, probabilities are off by up "
            f"to {line.error:.3f}; phase5.method=platt or temperature is carried exactly"
        )
    if not request.hotkey:
        console.warn("model_card.json has no submitted_by: give --hotkey before you submit it")
    console.line("next", f"streetvision subnet check-export {request.out} IMAGES... --bundle {request.bundle}")


def export_hub(request: Request, console: Console) -> None:
    """Write the folder for the Hugging Face hub, with the evaluation of the bundle's run if it is of this bundle."""
    bundle = read_bundle(request.bundle)
    report = _own_evaluation(bundle)
    write_hub(bundle, request.out, Card(request.name or NAME, request.license or "other"), report)
    console.line("hub", f"{request.out}  (README.md and {BUNDLE_FOLDER}/)")
    if report is None:
        console.warn("the card has no figures: run streetvision evaluate first, and export beside the run")
    if request.license is None:
        console.warn("the card says license: other; name yours with --license, and mind that of the backbone's weights")
    console.line("next", f"hf upload OWNER/NAME {request.out}")


def _own_evaluation(bundle: Bundle) -> ShownEvaluation | None:
    """evaluation_report.json of the run around the bundle, if it judged these very bytes."""
    path = ArtifactSchema(bundle.folder.parent).evaluation_report_json
    if not path.is_file():
        return None
    judged = validate_json(path, Judgement).provenance.bundle
    return validate_json(path, ShownEvaluation) if judged == sha256_file(bundle.folder / BUNDLE_JSON) else None


EXPORTS: Mapping[str, Export] = {
    "miner": Export(export_miner, frozenset({"name", "hotkey", "version"})),
    "hub": Export(export_hub, frozenset({"name", "license"})),
}
"""--format -> what writes it."""


def check_folder(folder: Path, images: Sequence[Path], bundle: Path, *, python: Path | None, console: Console) -> bool:
    """Compare a miner folder with its bundle on images, and say how they agree; True when no decision differs."""
    found = check_miner(load_bundle(bundle), folder, list(expand(images)), python=python)
    console.line("loaded", f"as the stock miner does, by transformers {found.transformers}; {found.images} images")
    console.line("answers", f"differ from the bundle's probability by at most {found.difference:.1e}")
    console.line(
        "decisions", f"{found.disagreements} differ; {found.invalid} answers are 0.5, outside [0, 1] or missing"
    )
    console.line("time", f"{found.p95_seconds:.2f} s an image at the 95th percentile, decoding included")
    if found.p95_seconds > SLOW_SECONDS:
        console.warn(f"slower than {SLOW_SECONDS:g} s: the subnet waits 9 s, network included; take a smaller model")
    return found.disagreements == 0 and found.invalid == 0
