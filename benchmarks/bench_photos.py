"""`streetvision dev bench photos`: 12-megapixel JPEGs to predictions, and decode and resize on one core.

Images/s are those of the worker processes of `predict --out` after their first shard, one for each core. Before:
preprocessing 1; after: preprocessing 2, in PyTorch and in each precision of OpenVINO that passes the gate. The peer is
transformers.pipeline on the same folder, with the same model, which `export --format miner` writes. DeiT-tiny is
measured if STREETVISION_REAL_DATA is set. Decode and resize are compared with simplejpeg and PyTurboJPEG used by hand,
which reduce a JPEG as far as the input has no more pixels, by the CPU time of one thread.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from benchmarks.bench_data import photographs
from benchmarks.bench_inference import copy_bundle, export_to, scene_bundle
from benchmarks.figures import Figure, interleaved_medians
from streetvision.bundle.batch.executors import run_local
from streetvision.bundle.batch.shards import open_folder
from streetvision.bundle.format import MODEL_DESCRIPTION, Bundle, read_classifier_description
from streetvision.bundle.predictor import Predictor
from streetvision.contracts.errors import StreetVisionError
from streetvision.contracts.policies import Precision
from streetvision.contracts.progress import Progress
from streetvision.data.image_file import decode_file
from streetvision.io.atomic import write_json_atomic
from streetvision.io.process_pool import usable_cores
from streetvision.io.resize import ImageSize, fit_pixels
from streetvision.models.backbone import BackboneConfig
from streetvision.models.config import ClassifierDescription, ModelConfig
from streetvision.models.module import load_classifier
from streetvision.models.preprocessing import input_decode_size
from streetvision.pipeline.config import compose_config
from streetvision.subnet.miner import Submission, write_miner

SIZES = {"1024x768": (1024, 768), "12 megapixels": (4032, 3024)}
"""Width and height of the photographs."""
TARGETS = ((224, 224), (320, 432))
"""Sizes of the input: the usual one, and that of image_size=auto for photographs of 4:3."""
PHOTOGRAPHS, SHARD, SHARDS_PER_WORKER = 4, 8, 4
"""Different photographs, images in a shard, and shards of a worker, the first of which is not timed."""
REPEATS, DECODE_REPEATS = 3, 15
FITTED_SCENES, GATE_SCENES = 48, 96
DEIT = "deit_tiny_patch16_224"
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


def bench_photos(progress: Progress) -> list[Figure]:
    """Milliseconds of decode and resize, then images/s."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = {
            label: photographs(folder / label, progress, count=PHOTOGRAPHS, size=size) for label, size in SIZES.items()
        }
        figures = [
            figure
            for label, paths in photos.items()
            for target in TARGETS
            for figure in _decoding(label, paths[0].read_bytes(), target)
        ]
        images = _copies(photos["12 megapixels"], folder / "folder")
        for label, backbone in _backbones().items():
            figures += _prediction(label, backbone, images, folder / label.replace(" ", "-"), progress)
    return figures


def _decoding(label: str, data: bytes, target: ImageSize) -> list[Figure]:
    """Decode and resize one photograph, by the code of a bundle and by hand, on one thread."""
    description = ClassifierDescription.model_validate(
        {"backbone": {}, "image_size": target, "preprocessing": 2, "pooling": "cls", "head": {"kind": "linear"}}
    )

    def ours() -> object:
        return fit_pixels(
            decode_file(data, decode_size=lambda size: input_decode_size(size, description)).pixels, target
        )

    height, width = decode_file(data, decode_size=lambda size: input_decode_size(size, description)).pixels.shape[:2]

    def ceiling() -> object:
        return simplejpeg.decode_jpeg(data, min_height=height, min_width=width)

    def by_hand() -> object:
        return _resize(simplejpeg.decode_jpeg(data, min_height=target[0], min_width=target[1]), target)

    name = f"decode and resize, {label} to {target[1]}x{target[0]}, decoded to {width}x{height}"
    peers: dict[str, Callable[[], object]] = {"simplejpeg and Pillow": by_hand, "the decoder alone": ceiling}
    if (turbo := _turbo(data, target)) is not None:
        peers["PyTurboJPEG and Pillow"] = turbo
    first, *others = (
        1000 * s for s in interleaved_medians((ours, *peers.values()), repeats=DECODE_REPEATS, clock=time.thread_time)
    )
    return [Figure(name, first, peer, other, "ms") for peer, other in zip(peers, others, strict=True)]


def _turbo(data: bytes, target: ImageSize) -> Callable[[], object] | None:
    """PyTurboJPEG, as its users call it; None if it or the library that it needs is not installed."""
    if find_spec("turbojpeg") is None:
        return None
    turbojpeg = import_module("turbojpeg")
    try:
        jpeg = turbojpeg.TurboJPEG()
    except RuntimeError:  # the library is not found
        return None
    width, height, *_ = jpeg.decode_header(data)
    factor = max(f for f in (1, 2, 4, 8) if height / f >= target[0] and width / f >= target[1])

    def decode() -> object:
        return _resize(jpeg.decode(data, pixel_format=turbojpeg.TJPF_RGB, scaling_factor=(1, factor)), target)

    return decode


def _resize(pixels: Any, target: ImageSize) -> object:
    return np.asarray(Image.fromarray(pixels).resize(target[::-1], Image.Resampling.BILINEAR))


def _backbones() -> dict[str, BackboneConfig]:
    found = {"packaged backbone": compose_config([]).model.backbone}
    if data := os.environ.get("STREETVISION_REAL_DATA"):
        weights = Path(data) / DEIT / "model.safetensors"
        found["DeiT-tiny"] = BackboneConfig(source="timm", name=DEIT, weights=weights)
    return found


def _copies(photos: Sequence[Path], folder: Path) -> Path:
    """A folder of as many images as the workers predict, links to the photographs."""
    folder.mkdir()
    for number in range(SHARD * SHARDS_PER_WORKER * usable_cores()):
        (folder / f"{number:04}.jpg").hardlink_to(photos[number % len(photos)])
    return folder


def _prediction(label: str, backbone: BackboneConfig, images: Path, folder: Path, progress: Progress) -> list[Figure]:
    """Images/s of each bundle, compared with preprocessing 1 in PyTorch and with the peer."""
    folder.mkdir()
    config = ModelConfig(backbone=backbone, image_size=TARGETS[1], pooling="cls", layers=1)
    after, gate_images, labels = scene_bundle(
        load_classifier(config).eval(), folder, progress, fitted=FITTED_SCENES, evaluated=GATE_SCENES
    )
    before = _version_1(after, folder / "version-1")
    candidates = {"PyTorch": after} | _openvino(after, gate_images, labels, folder, progress)
    peer = _pipeline(after, folder / "transformers")
    paths = [str(path) for path in sorted(images.iterdir())[: SHARD * SHARDS_PER_WORKER]]
    speeds: dict[str, list[float]] = {name: [] for name in ("before", "transformers", *candidates)}
    for number in progress.track(range(REPEATS), total=REPEATS, label=label):
        speeds["before"].append(_images_per_second(before, images, folder / f"before-{number}"))
        for name, bundle in candidates.items():
            speeds[name].append(_images_per_second(bundle, images, folder / f"{name}-{number}"))
        peer(paths[:4])
        start = time.perf_counter()
        peer(paths)
        speeds["transformers"].append(len(paths) / (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    return [
        Figure(f"{label}, preprocessing 2, {name}", medians[name], baseline, medians[key], "images/s")
        for name in candidates
        for key, baseline in (
            ("before", "preprocessing 1, PyTorch"),
            ("transformers", 'transformers.pipeline("image-classification")'),
        )
    ]


def _images_per_second(bundle: Bundle, images: Path, out: Path) -> float:
    """Images/s of `predict --out`, after every worker has finished its first shard."""
    workers = usable_cores()
    shards = open_folder(out, [images], bundle=bundle.manifest.digest, shard_size=SHARD).manifest.shards
    finished, start, first = 0, 0.0, 0
    for number, result in enumerate(run_local(bundle, out, range(shards), workers), start=1):
        assert result.failures == 0
        finished += result.images
        if number == workers:
            start, first = time.perf_counter(), finished
    return (finished - first) / (time.perf_counter() - start)


def _version_1(bundle: Bundle, folder: Path) -> Bundle:
    """The same bundle with preprocessing 1."""
    description = read_classifier_description(bundle).model_copy(update={"preprocessing": 1})
    folder.mkdir()
    write_json_atomic(folder / MODEL_DESCRIPTION, description.model_dump(mode="json"))
    files = {name: bundle.folder / name for name in bundle.manifest.files}
    return copy_bundle(bundle, folder / "bundle", files | {MODEL_DESCRIPTION: folder / MODEL_DESCRIPTION})


def _openvino(
    bundle: Bundle, images: Sequence[Path], labels: Sequence[int], folder: Path, progress: Progress
) -> dict[str, Bundle]:
    """Bundles for OpenVINO that pass the gate; for the others a warning states the reason."""
    found = {}
    for precision in PRECISIONS:
        try:
            made = export_to("openvino", precision, bundle, images, labels, folder / precision, progress)
        except StreetVisionError as error:
            progress.warn(f"openvino {precision} is left out: {error.message}")
            continue
        assert made.manifest.runtime is not None
        parity = made.manifest.runtime.parity
        found[f"OpenVINO {precision} (MCC {parity.mcc:.3f}, in PyTorch {parity.pytorch_mcc:.3f})"] = made
    return found


def _pipeline(bundle: Bundle, folder: Path) -> Any:
    """The peer, on the same model."""
    from transformers import pipeline
    from transformers.utils import logging as library_logging

    logging: Any = library_logging
    logging.disable_progress_bar()
    write_miner(Predictor(bundle), folder, Submission(name="m", description="m", version="1.0.0", hotkey="m"))
    return pipeline("image-classification", model=str(folder), device="cpu")
