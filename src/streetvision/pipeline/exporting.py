"""From a command line to a folder for another program, and to its check."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from streetvision.bundle.predictor import load_bundle
from streetvision.contracts.errors import ConfigError
from streetvision.pipeline.console import Console
from streetvision.pipeline.prediction import expand
from streetvision.serving.miner import Submission, check_miner, write_miner

CARRIED = 1e-6
"""A probability that differs by less is carried exactly."""
SLOW_SECONDS = 3.0
"""Budget of the subnet's stock miner for an image, at the 95th percentile."""


@dataclass(frozen=True)
class Request:
    """What a person asked to be exported."""

    bundle: Path
    out: Path
    hotkey: str
    name: str
    version: str


def export_miner(request: Request, console: Console) -> None:
    """Write the folder for the subnet's stock miner, and say what it carries and what not."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", request.version):
        raise ConfigError(f"version {request.version!r} is not X.Y.Z", "for example --version 1.0.0")
    predictor = load_bundle(request.bundle)
    first, second = predictor.manifest.class_names
    described = f"{second} or {first} in street images"
    card = Submission(request.name, described, request.version, request.hotkey)
    line = write_miner(predictor, request.out, card)
    console.line("miner", f"{request.out}  (transformers 4.45.2 and later)")
    console.line(
        "threshold", f"{predictor.manifest.policy.balanced_threshold:.3f}, for balanced labels, is at 0.5 there"
    )
    if line.error > CARRIED:
        console.warn(
            f"a linear head cannot carry this calibration: ranking and decisions are kept, probabilities are off by up "
            f"to {line.error:.3f}; phase5.method=platt or temperature is carried exactly"
        )
    if not request.hotkey:
        console.warn("model_card.json has no submitted_by: give --hotkey before you submit it")
    console.line("next", f"streetvision check-export {request.out} IMAGES... --bundle {request.bundle}")


EXPORTS: Mapping[str, Callable[[Request, Console], None]] = {"miner": export_miner}
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
