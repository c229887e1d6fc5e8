"""The monitoring reference of a run, from the images of VAL_CALIB or, under cross_fit, of all folds."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streetvision.bundle.reference import (
    MAX_IMAGES,
    MAX_SCORES,
    ReferenceHeader,
    build_reference,
    reference_bytes,
)
from streetvision.bundle.torch_model import TorchModel
from streetvision.calibration.base import margins
from streetvision.contracts.phase import Context
from streetvision.contracts.split_contracts import Row, Split
from streetvision.data.config import DecodeLimits, LoaderConfig
from streetvision.data.image_file import decode_file, read_recorded
from streetvision.data.quality import ImageQuality, measure_quality
from streetvision.io.atomic import sha256_file, write_bytes_atomic
from streetvision.io.manifests import read_manifest
from streetvision.io.resize import DecodeSize
from streetvision.io.scores import Scores
from streetvision.io.validators import validate_json
from streetvision.models.config import FusionDescription
from streetvision.models.device import pick_device
from streetvision.models.preprocessing import input_decode_size
from streetvision.models.views import ViewArrays
from streetvision.pipeline.scores import open_classifier, rows_of_folds

SEED = 0
"""Seed of the order of the images."""


def save_reference(context: Context, scores: Scores) -> Path:
    """Write the monitoring reference for the model of `scores`, from one image of each group; return its path."""
    rows = context.rows(scores.split)
    if scores.out_of_fold and context.n_folds > 0:
        rows = rows_of_folds(context, Split.VAL_CALIB, len(scores.fold_models))
    first_of_group: dict[str, int] = {}
    for index in sorted(range(len(rows)), key=lambda index: rows[index].path):
        first_of_group.setdefault(rows[index].group or f"\0{index}", index)
    units = np.random.default_rng(SEED).permutation(list(first_of_group.values()))
    scored, shown = units[:MAX_SCORES], units[:MAX_IMAGES]
    features, quality = _measure(context, scores, [rows[index] for index in shown])
    schema = context.schema
    adapted = read_manifest(schema.manifest("phase1")).metrics.get("adapted_backbone_sha256") is not None
    header = ReferenceHeader(
        scores_sha256=scores.reference.sha256,
        exact_scores=not scores.out_of_fold,
        # Under cross_fit, the folds share one backbone if only heads were fitted.
        exact_features=not scores.out_of_fold or (schema.fold_heads.is_file() and not adapted),
        groups=any(row.group for row in rows),
        images=len(rows),
        units=len(units),
    )
    reference = build_reference(
        header,
        margins=margins(scores.logits.numpy())[scored],
        labels=scores.labels.numpy()[scored],
        features=features,
        quality=quality,
    )
    write_bytes_atomic(schema.monitoring_reference, reference_bytes(reference))
    return schema.monitoring_reference


def _measure(context: Context, scores: Scores, rows: list[Row]) -> tuple[NDArray[np.float32], list[ImageQuality]]:
    """Features (N, P) of the whole image, and quality, of rows; decoded as a bundle does."""
    schema, loader = context.schema, context.settings(LoaderConfig)
    retrained = schema.mac_cal_checkpoint
    classifier = open_classifier(context.schema, _checkpoint(scores, schema.phase1_checkpoint, retrained))
    model = TorchModel(classifier, pick_device())  # the first view of a fusion is the image as the classifier takes it
    features: list[NDArray[np.float32]] = []
    quality: list[ImageQuality] = []
    batches = [rows[start : start + loader.batch_size] for start in range(0, len(rows), loader.batch_size)]
    # The decoder may reduce an image less for a fusion, whose tiles need more pixels.
    fusion = None if scores.fusion is None else validate_json(schema.cvfm_config_json, FusionDescription)
    decode_size = partial(input_decode_size, description=classifier.description, fusion=fusion)
    read = partial(_read, model, context.data_root, loader.limits, decode_size)
    with ThreadPoolExecutor() as pool:
        for batch in context.progress.track(batches, total=len(batches), label="reference"):
            images, measured = zip(*pool.map(read, batch), strict=True)
            quality += measured
            features.append(model.embed(np.stack(images)))
    return np.concatenate(features), quality


def _checkpoint(scores: Scores, phase1: Path, retrained: Path) -> Path:
    return phase1 if sha256_file(phase1) == scores.model_sha256 else retrained


def _read(
    model: TorchModel, root: Path, limits: DecodeLimits, decode_size: DecodeSize, row: Row
) -> tuple[NDArray[np.uint8], ImageQuality]:
    decoded = decode_file(read_recorded(root, row, limits=limits), limits=limits, decode_size=decode_size)
    prepared = model.prepare(decoded.pixels)
    assert not isinstance(prepared, ViewArrays)
    return prepared, measure_quality(decoded)
