"""The folder that the subnet's reference miner loads, and the check that it predicts what the bundle predicts."""

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import JsonValue
from safetensors.torch import save
from scipy.special import expit, logit

from streetvision.bundle.batch.files import predict_images
from streetvision.bundle.format import check_export_folder
from streetvision.bundle.predictor import Predictor
from streetvision.bundle.torch_model import load_classifier
from streetvision.contracts.errors import ArtifactError, ConfigError, DataError
from streetvision.contracts.progress import Progress, Silent
from streetvision.data.records import RejectedFile
from streetvision.eval.counts import FloatArray
from streetvision.eval.thresholds import decide
from streetvision.io.atomic import write_bytes_atomic, write_json_atomic
from streetvision.io.process_pool import usable_cores
from streetvision.models.backbone_spec import one_line
from streetvision.models.module import Classifier
from streetvision.subnet import reference_miner
from streetvision.subnet.hf_classifiers import hf_classifier
from streetvision.subnet.hf_head import LABELS

MARGIN_LIMIT = 40.0
"""Margins beyond this have probability 0 or 1 under every calibrator."""
PARITY = 1e-3
"""Largest allowed difference of logits on noise, as a fraction of 1 + |logit|."""
BILINEAR = 2
"""Pillow's number of the bilinear filter."""


@dataclass(frozen=True)
class LinearCalibration:
    """Calibration that a linear head can represent: probability = sigmoid(slope * (margin - cut))."""

    slope: float
    cut: float
    """The margin at which the decision changes."""
    error: float
    """Largest difference from the calibrated probability."""


@dataclass(frozen=True)
class Submission:
    """model_card.json."""

    name: str
    description: str
    version: str
    """X.Y.Z."""
    hotkey: str
    """Hotkey of the submitting miner."""

    def card(self) -> dict[str, JsonValue]:
        """Content of the file; the time is now, in seconds since 1970."""
        return {
            "model_name": self.name,
            "description": self.description,
            "version": self.version,
            "submitted_by": self.hotkey,
            "submission_time": int(time.time()),
        }


@dataclass(frozen=True)
class MinerExport:
    """Properties of a written miner folder."""

    calibration: LinearCalibration
    transformers: str
    """The first version of transformers that loads it."""
    also_needs: str
    """Another package that it needs there; empty when none."""


def write_miner(predictor: Predictor, folder: Path, submission: Submission) -> MinerExport:
    """Write the folder, load it with transformers and compare its logits with the bundle's.

    Its probability is 0.5 at the bundle's threshold for balanced labels.

    Raises:
        ArtifactError: the classifier cannot be exported, or its logits differ.
        ConfigError: the folder is not empty or is in the bundle, or the bundle is fused or exported to another runtime.
    """
    check_export_folder(folder, predictor.bundle.folder)
    if predictor.manifest.fusion_description is not None:
        raise ConfigError(
            f"this bundle fuses views (phase4c.mode={predictor.inference}), and the reference miner uses one view",
            "export a bundle of single views: train again with phase4c=single_view",
        )
    if predictor.manifest.runtime is not None:
        raise ConfigError(
            "the reference miner runs PyTorch, and this bundle another runtime", "give the PyTorch bundle"
        )
    classifier = load_classifier(predictor.bundle)
    calibration = fit_linear_calibration(predictor)
    spec, (height, width) = classifier.backbone.spec, classifier.description.image_size
    labels: dict[str, JsonValue] = {
        "id2label": dict(LABELS),
        "label2id": {n: int(label) for label, n in LABELS.items()},
    }
    converted = hf_classifier(classifier, slope=calibration.slope, cut=calibration.cut)
    processor: dict[str, JsonValue] = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
    }
    try:
        write_bytes_atomic(folder / "model.safetensors", save(converted.ready(), metadata={"format": "pt"}))
        write_json_atomic(folder / "preprocessor_config.json", processor)
        write_json_atomic(folder / "model_card.json", submission.card())
        write_json_atomic(folder / "config.json", converted.config | labels)
        _check_parity(predictor, classifier, folder, calibration)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # an incomplete folder must not be submitted
        raise
    return MinerExport(calibration, converted.transformers, converted.also_needs)


def fit_linear_calibration(predictor: Predictor) -> LinearCalibration:
    """Fit slope * (margin - cut) to the calibrator, with the same decisions; exact for temperature and Platt.

    Other calibrators keep ranking and decisions, because calibrators are monotone. Raises ArtifactError when the bundle
    decides the same for every margin.
    """
    threshold = predictor.manifest.policy.balanced_threshold
    low, high = -MARGIN_LIMIT, MARGIN_LIMIT
    if not 0 < threshold < 1 or not _is_positive(predictor, high, threshold) or _is_positive(predictor, low, threshold):
        raise ArtifactError(f"at its threshold for balanced labels, {threshold:g}, this bundle predicts one class only")
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (low, middle) if _is_positive(predictor, middle, threshold) else (middle, high)
    cut = (low + high) / 2
    margins = np.linspace(-MARGIN_LIMIT, MARGIN_LIMIT, 8001)
    p = _probabilities(predictor, margins)
    inside = (p > 1e-9) & (p < 1 - 1e-9)
    steps, rise = margins[inside] - cut, logit(p[inside]) - logit(threshold)
    weights = p[inside] * (1 - p[inside])
    slope = float((weights * steps * rise).sum() / (weights * steps**2).sum()) if inside.any() else 1.0
    if not np.isfinite(slope) or slope <= 0:
        raise ArtifactError("the bundle's probabilities do not increase with its scores and cannot be exported")
    error = np.abs(expit(slope * (margins - cut) + logit(threshold)) - p).max()
    return LinearCalibration(slope, cut, float(error))


def _probabilities(predictor: Predictor, margins: FloatArray) -> FloatArray:
    logits = np.stack([np.zeros_like(margins), margins], axis=1)
    return np.asarray(predictor.probabilities(logits), dtype=np.float64)


def _is_positive(predictor: Predictor, margin: float, threshold: float) -> bool:
    return bool(decide(_probabilities(predictor, np.array([margin])), threshold)[0])


def _check_parity(predictor: Predictor, classifier: Classifier, folder: Path, calibration: LinearCalibration) -> None:
    """Raise ArtifactError unless the classifier in `folder` has the expected logits on noise."""
    from transformers import AutoModelForImageClassification

    size, generator = classifier.description.image_size, torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (4, 3, *size), dtype=torch.uint8, generator=generator)
    ours = torch.from_numpy(np.concatenate(list(predictor.stream_logits(noise.unbind()))))
    spec = classifier.backbone.spec
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    exported = AutoModelForImageClassification.from_pretrained(folder, local_files_only=True).eval()
    with torch.inference_mode():
        theirs = exported((noise / 255 - mean) / std).logits
    expected = calibration.slope * (ours[:, 1] - ours[:, 0] - calibration.cut)
    worst = float(((theirs[:, 1] - theirs[:, 0] - expected).abs() / (1 + expected.abs())).max())
    if worst > PARITY:
        raise ArtifactError(f"the exported classifier differs from the bundle: logits by {worst:.1e} on noise")


@dataclass(frozen=True)
class MinerCheck:
    """Predictions of the reference miner compared with the bundle's."""

    transformers: str
    """Version in the miner's environment."""
    images: int
    """Images that are compared."""
    skipped: tuple[RejectedFile, ...]
    """Images that the bundle cannot decode; they are not compared."""
    failures: tuple[RejectedFile, ...]
    """Images on which the miner alone fails."""
    difference: float
    """Largest difference from the bundle's probability, shifted so that its threshold is at 0.5; without failures."""
    disagreements: int
    """Images whose decision differs, without failures."""
    invalid: int
    """Predictions that are exactly 0.5, outside [0, 1] or missing."""
    p95_seconds: float
    """95th percentile of the time for an image."""


def check_miner(
    predictor: Predictor,
    folder: Path,
    images: Sequence[Path],
    *,
    python: Path | None = None,
    progress: Progress | None = None,
) -> MinerCheck:
    """Run the reference miner, in the environment of `python` or in this one, and compare with the bundle.

    Raises:
        ArtifactError: It cannot load the folder, or predicts no image.
        DataError: The bundle can decode none of the images.
    """
    progress = progress or Silent()
    if not (folder / "config.json").is_file():
        raise ArtifactError(
            f"there is no miner folder at {str(folder)!r} (expected one with config.json)",
            "make one with: streetvision export --format miner",
        )
    predicted = predict_images(predictor, [(str(path), path) for path in images], decoders=usable_cores())
    ours = list(progress.track(predicted, total=len(images), label="bundle"))
    skipped = tuple(RejectedFile(row["image"], row["error"]) for row in ours if "error" in row)
    if len(skipped) == len(images):
        raise DataError(
            "the bundle can decode none of the images"
            + (f": {skipped[0].path} {skipped[0].reason}" if skipped else ""),
            "give other images",
        )
    ours = [row for row in ours if "error" not in row]
    paths = [str(Path(row["image"]).resolve()) for row in ours]
    predictions = _predict_here(folder, paths) if python is None else _predict_with(folder, paths, python)
    rows = list(progress.track(predictions, total=len(paths), label="miner"))
    failures = tuple(
        RejectedFile(our["image"], row["error"]) for our, row in zip(ours, rows, strict=True) if "error" in row
    )
    if len(failures) == len(rows):
        raise _loading_error(folder, f"{failures[0].path}: {failures[0].reason}")
    p = np.array([row["probability"] for row in ours])
    theirs = np.array([row["probability"] for row in rows], dtype=np.float64)
    compared = np.array(["error" not in row for row in rows])
    threshold = predictor.manifest.policy.balanced_threshold
    return MinerCheck(
        transformers=str(rows[0]["transformers"]),
        images=len(rows),
        skipped=skipped,
        failures=failures,
        difference=float(np.abs(theirs - expit(logit(p) - logit(threshold)))[compared].max()),
        disagreements=int(((np.round(theirs) == 1) != decide(p, threshold))[compared].sum()),
        invalid=int((~((theirs >= 0) & (theirs <= 1)) | (theirs == 0.5)).sum()),
        p95_seconds=float(np.percentile([row["seconds"] for row in rows], 95)),
    )


def _predict_here(folder: Path, paths: list[str]) -> Iterator[dict[str, Any]]:
    try:
        yield from reference_miner.predictions(str(folder), paths)
    except Exception as error:  # transformers raises many types for an invalid folder
        raise _loading_error(folder, one_line(error)) from error


def _predict_with(folder: Path, paths: list[str], python: Path) -> Iterator[dict[str, Any]]:
    command = [str(python), str(Path(reference_miner.__file__)), str(folder.resolve())]
    # Files, because a full pipe would stop the miner.
    with tempfile.TemporaryFile() as names, tempfile.TemporaryFile("w+", errors="replace") as messages:
        names.write(os.fsencode("\n".join(paths)))
        names.seek(0)
        try:
            miner = subprocess.Popen(command, stdin=names, stdout=subprocess.PIPE, stderr=messages)  # noqa: S603
        except OSError as error:
            raise ConfigError(
                f"{str(python)!r} cannot be run: {error.strerror}", "give --python the path of a Python interpreter"
            ) from error
        printed = 0
        with miner:
            assert miner.stdout is not None
            for line in miner.stdout:
                yield _parse_row(folder, line)
                printed += 1
        if miner.returncode:
            messages.seek(0)
            raise _loading_error(folder, (messages.read().strip().splitlines() or ["no message"])[-1])
    if printed != len(paths):
        raise _loading_error(folder, f"it printed {printed} predictions, expected {len(paths)}")


def _parse_row(folder: Path, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
        numbers = {name: float(row[name]) for name in ("probability", "seconds")}
        failure = {"error": str(row["error"])} if "error" in row else {}
        return {**numbers, **failure, "transformers": row["transformers"]}
    except (ValueError, KeyError, TypeError) as error:
        raise _loading_error(folder, f"it printed {line[:80]!r} in place of a prediction") from error


def _loading_error(folder: Path, reason: str) -> ArtifactError:
    return ArtifactError(f"the reference miner fails on {str(folder)!r}: {reason}")
