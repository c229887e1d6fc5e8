"""The folder that the subnet's stock miner loads, and the check that it answers as the bundle does."""

import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import JsonValue
from safetensors.torch import save
from scipy.special import expit, logit

from streetvision.bundle.predictor import Predictor
from streetvision.contracts.errors import ArtifactError, ConfigError
from streetvision.eval.counts import FloatArray
from streetvision.eval.thresholds import decide
from streetvision.io.atomic import write_bytes_atomic, write_json_atomic
from streetvision.models.backbone_spec import one_line
from streetvision.models.module import Classifier
from streetvision.subnet import reference_miner as stock_miner
from streetvision.subnet.hf_classifiers import stock_classifier
from streetvision.subnet.hf_head import LABELS

FARTHEST = 40.0
"""Margins beyond this are certain for every calibrator."""
PARITY = 1e-3
"""Logits of the folder may differ from the bundle's by this share of 1 + their size, on noise, before it is refused."""
BILINEAR = 2


@dataclass(frozen=True)
class LinearCalibration:
    """Calibration as a linear head carries it: the answer is sigmoid(slope * (margin - cut))."""

    slope: float
    cut: float
    """The margin at which the decision turns."""
    error: float
    """Largest difference between the probability that this stands for and the calibrated one."""


@dataclass(frozen=True)
class Submission:
    """model_card.json."""

    name: str
    description: str
    version: str
    """X.Y.Z."""
    hotkey: str
    """Of the miner that submits it."""

    def card(self) -> dict[str, JsonValue]:
        """What the file holds; the time is now, in seconds since 1970."""
        return {
            "model_name": self.name,
            "description": self.description,
            "version": self.version,
            "submitted_by": self.hotkey,
            "submission_time": int(time.time()),
        }


@dataclass(frozen=True)
class Written:
    """What a miner folder is."""

    line: LinearCalibration
    transformers: str
    """The version of transformers that first loads it."""
    also: str
    """What else it needs there; empty where nothing."""


def write_miner(predictor: Predictor, folder: Path, submission: Submission) -> Written:
    """Write the folder, load it as a stock classifier and compare; returns what it carries and needs.

    The answer is 0.5 where the bundle's probability is at its threshold for balanced labels. Raises ArtifactError for
    what no stock classifier carries, ConfigError for a folder that holds something.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{str(folder)!r} is not empty", "give a folder of its own: --out ...")
    if predictor.manifest.fusion_description is not None:
        raise ConfigError(
            "this bundle fuses many views of an image, and the stock miner looks at one",
            "export a bundle of single views: run again without phase4c_cvfm",
        )
    classifier = predictor.classifier
    if not isinstance(classifier, Classifier):
        raise ConfigError("the stock miner runs PyTorch, and this bundle another runtime", "give the one it came from")
    line = straight_line(predictor)
    description, spec = classifier.description, classifier.backbone.spec
    labels: dict[str, JsonValue] = {
        "id2label": dict(LABELS),
        "label2id": {n: int(label) for label, n in LABELS.items()},
    }
    stock = stock_classifier(classifier.cpu(), slope=line.slope, cut=line.cut)
    processor: dict[str, JsonValue] = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": description.image_size, "width": description.image_size},
        "resample": BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
    }
    try:
        write_bytes_atomic(folder / "model.safetensors", save(stock.ready(), metadata={"format": "pt"}))
        write_json_atomic(folder / "preprocessor_config.json", processor)
        write_json_atomic(folder / "model_card.json", submission.card())
        write_json_atomic(folder / "config.json", stock.config | labels)
        _check_parity(predictor, classifier, folder, line)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # half a folder must not be submitted
        raise
    finally:
        classifier.to(predictor.device)
    return Written(line, stock.transformers, stock.also)


def straight_line(predictor: Predictor) -> LinearCalibration:
    """The line through the calibrator that turns where its decision turns; exact for temperature and Platt.

    Ranking and decisions are kept for any other, since calibrators never fall. Raises ArtifactError when the bundle
    gives every margin the same decision.
    """
    threshold = predictor.manifest.policy.balanced_threshold
    low, high = -FARTHEST, FARTHEST
    if not 0 < threshold < 1 or not _called(predictor, high, threshold) or _called(predictor, low, threshold):
        raise ArtifactError(f"at its threshold for balanced labels, {threshold:g}, this bundle answers one class only")
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (low, middle) if _called(predictor, middle, threshold) else (middle, high)
    cut = (low + high) / 2
    margins = np.linspace(-FARTHEST, FARTHEST, 8001)
    p = _calibrated(predictor, margins)
    inside = (p > 1e-9) & (p < 1 - 1e-9)
    steps, rise = margins[inside] - cut, logit(p[inside]) - logit(threshold)
    weights = p[inside] * (1 - p[inside])
    slope = float((weights * steps * rise).sum() / (weights * steps**2).sum()) if inside.any() else 1.0
    if not np.isfinite(slope) or slope <= 0:
        raise ArtifactError("the bundle's probabilities do not rise with its scores: no linear head carries them")
    error = np.abs(expit(slope * (margins - cut) + logit(threshold)) - p).max()
    return LinearCalibration(slope, cut, float(error))


def _calibrated(predictor: Predictor, margins: FloatArray) -> FloatArray:
    logits = np.stack([np.zeros_like(margins), margins], axis=1)
    return np.asarray(predictor.probabilities(torch.from_numpy(logits)), dtype=np.float64)


def _called(predictor: Predictor, margin: float, threshold: float) -> bool:
    return bool(decide(_calibrated(predictor, np.array([margin])), threshold)[0])


def _check_parity(predictor: Predictor, classifier: Classifier, folder: Path, line: LinearCalibration) -> None:
    """Raise unless the stock classifier in `folder` gives noise the logits that it should."""
    from transformers import AutoModelForImageClassification

    side = classifier.description.image_size
    noise = torch.randint(0, 256, (4, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ours = torch.cat(list(predictor.stream_logits(noise.unbind())))
    spec = classifier.backbone.spec
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    stock = AutoModelForImageClassification.from_pretrained(folder, local_files_only=True).eval()
    with torch.inference_mode():
        theirs = stock((noise / 255 - mean) / std).logits
    expected = line.slope * (ours[:, 1] - ours[:, 0] - line.cut)
    worst = float(((theirs[:, 1] - theirs[:, 0] - expected).abs() / (1 + expected.abs())).max())
    if worst > PARITY:
        raise ArtifactError(f"the stock classifier does not answer as the bundle does: logits differ by {worst:.1e}")


@dataclass(frozen=True)
class Check:
    """What the stock miner answered, beside the bundle."""

    transformers: str
    """Version that the miner ran with."""
    images: int
    difference: float
    """Largest difference of an answer from the bundle's probability, moved so that the threshold lies at 0.5."""
    disagreements: int
    """Images whose decision is another."""
    invalid: int
    """Answers that are exactly 0.5, outside [0, 1] or missing."""
    p95_seconds: float
    """95th percentile of the time for an image."""


def check_miner(predictor: Predictor, folder: Path, images: Sequence[Path], *, python: Path | None = None) -> Check:
    """Ask the stock miner's own loader, in the environment of `python` or in this one, and compare with the bundle.

    Raises ArtifactError when it cannot load the folder or answer an image.
    """
    if not (folder / "config.json").is_file():
        raise ArtifactError(
            f"there is no miner folder at {str(folder)!r} (expected one with config.json)",
            "make one with: streetvision export --format miner",
        )
    paths = [str(path.resolve()) for path in images]
    told = _told_here(folder, paths) if python is None else _told_elsewhere(folder, paths, python)
    answers = np.array([row["answer"] for row in told], dtype=np.float64)
    p = np.array([answer.probability for answer in predictor.predict(images)])
    threshold = predictor.manifest.policy.balanced_threshold
    return Check(
        transformers=str(told[0]["transformers"]),
        images=len(told),
        difference=float(np.abs(answers - expit(logit(p) - logit(threshold))).max()),
        disagreements=int(((np.round(answers) == 1) != decide(p, threshold)).sum()),
        invalid=int(((answers == 0.5) | (answers < 0) | (answers > 1)).sum()),
        p95_seconds=float(np.percentile([row["seconds"] for row in told], 95)),
    )


def _told_here(folder: Path, paths: list[str]) -> list[dict[str, Any]]:
    try:
        return list(stock_miner.answers(str(folder), paths))
    except Exception as error:  # transformers answers a bad folder with whatever it runs into
        raise _does_not_load(folder, one_line(error)) from error


def _told_elsewhere(folder: Path, paths: list[str], python: Path) -> list[dict[str, Any]]:
    command = [str(python), str(Path(stock_miner.__file__)), str(folder.resolve())]
    done = subprocess.run(command, input="\n".join(paths), capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise _does_not_load(folder, (done.stderr.strip().splitlines() or ["no message"])[-1])
    return [json.loads(line) for line in done.stdout.splitlines()]


def _does_not_load(folder: Path, why: str) -> ArtifactError:
    return ArtifactError(f"the stock miner fails on {str(folder)!r}: {why}")
