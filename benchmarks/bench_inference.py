"""`streetvision dev bench inference`: images/s of each runtime that passes the gate, compared with transformers.

All run a ViT-S/16 at 224 pixels with the same number of threads. Our head is fitted on drawn scenes, and the gate
evaluates each runtime on other scenes; a runtime that passes is printed with its MCC. The peer is the ViT of that size
in transformers, which computes neither registers nor rotary positions; its weights are random.
"""

import csv
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from benchmarks.bench_data import photographs
from benchmarks.figures import Figure, interleaved_median
from benchmarks.net2net_vit import DEPTH, HEADS, HIDDEN, SIDE, WIDTH, net2net_vit_s
from streetvision.bundle.format import MODEL_CHECKPOINT, MODEL_DESCRIPTION, Bundle, write_bundle
from streetvision.bundle.graph_model import open_graph_model
from streetvision.bundle.predictor import Predictor
from streetvision.bundle.runtimes.capture import capture
from streetvision.bundle.runtimes.parity import check_parity, compute_logits, measure_parity
from streetvision.bundle.runtimes.registry import RUNTIMES
from streetvision.bundle.torch_model import load_classifier
from streetvision.contracts.errors import StreetVisionError
from streetvision.contracts.policies import (
    OperatingPoint,
    Precision,
    RuntimeRef,
    ScoresRef,
    ThresholdInterval,
    ThresholdPolicy,
)
from streetvision.contracts.progress import Progress
from streetvision.contracts.split_contracts import Split
from streetvision.data.decode import read_image
from streetvision.eval.thresholds import select_threshold_max_mcc
from streetvision.io.atomic import sha256_bytes, sha256_file, write_json_atomic
from streetvision.io.tensors import save_tensors
from streetvision.models.config import LinearHeadConfig
from streetvision.models.module import Classifier
from streetvision.synthetic.scenes import SceneConfig, write_scenes

PHOTOGRAPHS, BATCH, REPEATS = 32, 16, 3
FITTED, EVALUATED = 200, 500
"""Scenes that fit the head, and scenes for the gate: among 500 one decision is about 0.004 of MCC."""
STEPS, RATE = 300, 0.01
"""Steps and learning rate of the head's fit."""
PEER = 'transformers.pipeline("image-classification")'


def bench_inference(progress: Progress) -> list[Figure]:
    """Images/s from files to predictions: PyTorch, then every runtime and precision that passes the gate."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = photographs(folder / "photos", progress, count=PHOTOGRAPHS)
        classifier = Classifier(net2net_vit_s(), pooling="cls", head=LinearHeadConfig()).eval()
        bundle, images, labels = scene_bundle(classifier, folder, progress)
        predictor = Predictor(bundle)
        peer = _pipeline(folder / "vit")
        figures = []
        for label, candidate in _candidates(bundle, predictor, images, labels, folder, progress):
            ours, theirs = interleaved_median(
                _walk(candidate, photos), lambda: peer([str(path) for path in photos]), repeats=REPEATS
            )
            figures.append(Figure(label, len(photos) / ours, PEER, len(photos) / theirs, "images/s"))
    return figures


def _candidates(
    bundle: Bundle, predictor: Predictor, paths: list[Path], labels: list[int], folder: Path, progress: Progress
) -> Iterator[tuple[str, Predictor]]:
    """PyTorch, and every runtime that passes the gate; for the others a warning states the reason."""
    yield "PyTorch fp32", predictor
    expected = compute_logits(predictor, paths, progress)
    classifier = load_classifier(bundle)
    program = capture(classifier)
    calibration = [_single_view(predictor, path) for path in _scenes(folder, slice(FITTED))[0]]
    for name, graph in RUNTIMES.items():
        for precision in graph.precisions:
            label, home = f"{name} {precision}", folder / f"{name}-{precision}"
            home.mkdir()
            try:
                graph.write(program, home, precision, calibration)
                model = open_graph_model(
                    home,
                    classifier.description,
                    None,
                    runtime=name,
                    precision=precision,
                    feature_dim=classifier.width,
                )
                exported = predictor.with_model(model)
                parity = measure_parity(predictor, expected, compute_logits(exported, paths, progress), labels)
                check_parity(parity, name=label)
            except StreetVisionError as error:
                progress.warn(f"{label} is left out: {error.message}")
                continue
            quality = f"MCC {parity.mcc:.3f}, in PyTorch {parity.pytorch_mcc:.3f}"
            yield f"{label} ({quality}; logits within {parity.max_logit_difference:.1e})", exported


def _single_view(predictor: Predictor, path: Path) -> NDArray[np.uint8]:
    prepared = predictor.prepare(path)
    assert isinstance(prepared, np.ndarray)
    return prepared[None]


def _pipeline(folder: Path) -> Any:
    """The peer, from a folder that it loads by its defaults."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, pipeline
    from transformers.utils import logging as library_logging

    logging: Any = library_logging
    logging.disable_progress_bar()
    sizes: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "intermediate_size": HIDDEN,
        "image_size": SIDE,
    }
    ViTForImageClassification(ViTConfig(**sizes)).save_pretrained(folder)
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return pipeline("image-classification", model=str(folder), device="cpu")


def scene_bundle(
    classifier: Classifier, folder: Path, progress: Progress, *, fitted: int = FITTED, evaluated: int = EVALUATED
) -> tuple[Bundle, list[Path], list[int]]:
    """A bundle of a classifier whose head is fitted here, with the images of the gate and their labels."""
    write_scenes(folder / "scenes", SceneConfig(count=fitted + evaluated), progress)
    paths, labels = _scenes(folder, slice(fitted))
    logits = _fit(classifier, paths, torch.tensor(labels), progress)
    save_tensors(folder / MODEL_CHECKPOINT, classifier.state_dict())
    write_json_atomic(folder / MODEL_DESCRIPTION, classifier.description.model_dump(mode="json"))
    files = {name: folder / name for name in (MODEL_CHECKPOINT, MODEL_DESCRIPTION)}
    policy = _policy(logits, torch.tensor(labels), sha256_file(folder / MODEL_CHECKPOINT))
    made = write_bundle(
        folder / "bundle", files, policy=policy, class_names=("None", "Roadwork"), data_fingerprint=policy.scores.sha256
    )
    return made, *_scenes(folder, slice(fitted, None))


def export_to(
    name: str,
    precision: Precision,
    bundle: Bundle,
    images: Sequence[Path],
    labels: Sequence[int],
    folder: Path,
    progress: Progress,
) -> Bundle:
    """The bundle in a runtime; raises StreetVisionError if the runtime does not pass the gate on the images."""
    graph, predictor, classifier = RUNTIMES[name], Predictor(bundle), load_classifier(bundle)
    home = folder / "graph"
    home.mkdir(parents=True)
    graph.write(capture(classifier), home, precision, [])
    model = open_graph_model(
        home, classifier.description, None, runtime=name, precision=precision, feature_dim=classifier.width
    )
    expected, actual = (compute_logits(each, images, progress) for each in (predictor, predictor.with_model(model)))
    parity = measure_parity(predictor, expected, actual, labels)
    check_parity(parity, name=f"{name} {precision}")
    runtime = RuntimeRef.model_validate(
        {
            "name": name,
            "precision": precision,
            "files": graph.files,
            "feature_dim": classifier.width,
            "calibration_images": 0,
            "parity": parity,
        }
    )
    files = {name: bundle.folder / name for name in bundle.manifest.files}
    return copy_bundle(bundle, folder / "bundle", files | {name: home / name for name in graph.files}, runtime)


def copy_bundle(bundle: Bundle, folder: Path, files: Mapping[str, Path], runtime: RuntimeRef | None = None) -> Bundle:
    """A bundle of other files with the same policy."""
    manifest = bundle.manifest
    return write_bundle(
        folder,
        files,
        policy=manifest.policy,
        class_names=manifest.class_names,
        data_fingerprint=manifest.data_fingerprint,
        runtime=runtime,
    )


def _scenes(folder: Path, part: slice) -> tuple[list[Path], list[int]]:
    with (folder / "scenes" / "index.csv").open() as index:
        rows = list(csv.DictReader(index))[part]
    return [folder / "scenes" / row["path"] for row in rows], [int(row["label"]) for row in rows]


def _fit(classifier: Classifier, paths: list[Path], labels: Tensor, progress: Progress) -> Tensor:
    """Fit the head on frozen features; returns the logits of the same images."""
    tracked = progress.track(paths, total=len(paths), label="features")
    with torch.no_grad():
        features = torch.cat([classifier.embed(classifier.prepare(read_image(path))[None]) for path in tracked])
    optimizer = torch.optim.Adam(classifier.head.parameters(), lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss: Tensor = F.cross_entropy(classifier.head(features), labels)
        torch.autograd.backward(loss)
        optimizer.step()
    with torch.no_grad():
        logits: Tensor = classifier.head(features)
    return logits


def _policy(logits: Tensor, labels: Tensor, model: str) -> ThresholdPolicy:
    threshold, _, metrics = select_threshold_max_mcc(logits, labels)
    scores = ScoresRef(
        sha256=sha256_bytes(logits.numpy().tobytes()),
        model_sha256=model,
        split=Split.VAL_CALIB,
        n=len(labels),
        positives=int(labels.sum()),
    )
    interval = ThresholdInterval(low=threshold, high=threshold, level=0.95, n_resamples=2, units=len(labels))
    point = OperatingPoint(threshold=threshold, metrics={})
    return ThresholdPolicy(
        threshold=threshold, interval=interval, metrics=metrics, operating_points={"balanced": point}, scores=scores
    )


def _walk(predictor: Predictor, paths: list[Path]) -> Callable[[], None]:
    def walk() -> None:
        for _ in predictor.stream(paths, batch_size=BATCH):
            pass

    return walk
