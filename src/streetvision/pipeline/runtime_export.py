"""Export of a bundle to another runtime: converted, compared on VAL_SELECT, and rejected if it is worse."""

import importlib.metadata
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from streetvision.bundle.format import (
    FUSION_ARRAYS,
    Bundle,
    bundle_folder,
    check_export_folder,
    read_bundle,
    read_fusion_description,
    write_bundle,
)
from streetvision.bundle.graph_model import GraphModel, open_graph_model
from streetvision.bundle.model import Prepared
from streetvision.bundle.predictor import Predictor
from streetvision.bundle.runtimes.capture import capture, capture_dense
from streetvision.bundle.runtimes.graph import DENSE, Graph
from streetvision.bundle.runtimes.parity import check_parity, compute_logits, measure_parity
from streetvision.bundle.runtimes.registry import RUNTIMES, write_graph
from streetvision.bundle.torch_model import load_classifier
from streetvision.bundle.view_fusion import inference_keys
from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ArtifactError, ConfigError, StreetVisionError, unknown_name
from streetvision.contracts.phase import Context
from streetvision.contracts.policies import Precision, RuntimeParity, RuntimeRef
from streetvision.contracts.split_contracts import Split, every_nth
from streetvision.data.config import LoaderConfig
from streetvision.data.image_file import read_recorded
from streetvision.data.splitting.splits_json import partition_from_json
from streetvision.io.atomic import read_json
from streetvision.io.tensors import load_state
from streetvision.models.device import pick_device
from streetvision.models.views import ViewArrays
from streetvision.pipeline.artifacts import open_bundle
from streetvision.pipeline.config import compose_config
from streetvision.pipeline.console import Console
from streetvision.pipeline.run import follow_data, with_recorded_limits
from streetvision.pipeline.settings import warn_without_effect

CALIBRATION_IMAGES = 128
"""Images of TRAIN, evenly spaced over its rows, from which int8 ranges are taken."""


OFFERED: tuple[Precision, ...] = ("bf16", "fp32")
"""Precisions of OpenVINO that are tried after a training; the first one that passes and is faster is offered."""
SMALLEST_OFFERED = 4_000_000
"""Bytes of a model, below which no other runtime is offered: it is fast in any."""
LEAST_SPEED = 1.1
"""Times as fast as PyTorch, at least."""
OFFER_IMAGES = 256
"""Images of VAL_SELECT on which an offer is compared, at most; an export is compared on all."""
OFFER_SECONDS = 60.0
"""Time for the images of an offer, about; slow models are compared on fewer images."""
FEWEST_OFFER_IMAGES = 20
"""Images of VAL_SELECT, below which no other runtime is offered: too few to compare."""
TIMED_IMAGES, TIMED_REPEATS = 16, 4
"""Images whose time is measured, at most, and how often."""


@dataclass(frozen=True)
class RuntimeRequest:
    """A runtime export."""

    bundle: Path
    """Folder of the bundle, or its bundle.json."""
    out: Path
    runtime: str
    precision: Precision

    @property
    def graph(self) -> type[Graph]:
        """The graph class of the runtime; raises ConfigError for an unknown runtime or precision."""
        if self.runtime not in RUNTIMES:
            raise unknown_name("runtime", self.runtime, RUNTIMES)
        graph = RUNTIMES[self.runtime]
        if self.precision not in graph.precisions:
            raise ConfigError(
                f"--runtime {self.runtime} has no precision {self.precision}",
                f"set --precision to one of: {', '.join(graph.precisions)}",
            )
        return graph


@dataclass(frozen=True)
class _Converted:
    """An exported graph, before it is compared."""

    model: GraphModel
    files: tuple[str, ...]
    feature_dim: int
    calibration_images: int


def export_runtime(request: RuntimeRequest, overrides: Sequence[str], console: Console) -> Bundle:
    """Write a bundle whose backbone runs in another runtime. A rejected export writes nothing.

    The images for the comparison are those of the run around the bundle, or of run_dir=; data.root= is a new place of
    them.
    """
    _, out = request.graph, request.out  # an unknown runtime is reported first
    check_export_folder(out, bundle_folder(request.bundle))  # before the images are read
    context = _run_context(request.bundle, overrides, console)
    bundle = open_bundle(context, request.bundle)
    manifest = bundle.manifest
    if manifest.runtime is not None:
        raise ConfigError(
            f"bundle {str(bundle.folder)!r} already runs in {manifest.runtime.name}",
            "set --bundle to the PyTorch bundle that it was made from",
        )
    predictor = Predictor(bundle, limits=context.settings(LoaderConfig).limits)
    splits = next(context.folds(), context)  # under cross_fit, those of the first fold
    with TemporaryDirectory() as name:
        folder = Path(name)
        converted = _convert(predictor, request, splits, folder)
        parity = _compare(predictor, converted.model, splits)
        _print_parity(parity, request, console)
        check_parity(parity, name=f"{request.runtime} {request.precision}")
        exported = _write(
            bundle,
            request,
            folder,
            parity,
            files=converted.files,
            feature_dim=converted.feature_dim,
            calibration_images=converted.calibration_images,
        )
    size = sum(entry.bytes for entry in exported.manifest.files.values())
    console.line("bundle", f"{exported.folder} ({size / 1e6:.1f} MB)")
    in_run = exported.folder.absolute().parent == context.schema.output_dir.absolute()
    run_dir = () if in_run else (f"run_dir={context.schema.output_dir}",)
    console.next_command("streetvision", "evaluate", "--bundle", exported.folder, *run_dir)
    return exported


def offer_openvino(bundle: Path, console: Console) -> None:
    """Print how much faster OpenVINO is than PyTorch on this CPU, and the command to export the bundle for it.

    If no precision can be converted, passes the comparison on VAL_SELECT and is faster, the reason is printed. A model
    that is too slow for the comparison is not compared; the command is printed. Nothing is printed if OpenVINO is not
    installed, if there is a GPU, or if the model is small or VAL_SELECT has few images.
    """
    if find_spec("openvino") is None or pick_device().type != "cpu":
        return
    context = _run_context(bundle, (), console)
    opened = open_bundle(context, bundle)
    if (opened.folder / opened.manifest.model_checkpoint).stat().st_size < SMALLEST_OFFERED:
        return
    predictor = Predictor(opened, limits=context.settings(LoaderConfig).limits)
    splits = next(context.folds(), context)
    if len(splits.rows(Split.VAL_SELECT)) < FEWEST_OFFER_IMAGES:
        return
    console.line("openvino", "comparing it with PyTorch on VAL_SELECT takes up to a minute; Ctrl-C skips it")
    out = _new_folder(opened.folder.parent / "openvino")
    export = ("streetvision", "export", "--bundle", opened.folder, "--out", out, "--runtime", "openvino")
    most, seconds = _offer_images(predictor, splits)
    if most < FEWEST_OFFER_IMAGES:
        console.line("openvino", f"not compared: an image takes {seconds:.1f} s; this command compares all images")
        console.next_command(*export)
        return
    reason = ""
    for precision in OFFERED:
        request = RuntimeRequest(opened.folder, out, "openvino", precision)
        with TemporaryDirectory() as name:
            try:
                model = _convert(predictor, request, splits, Path(name)).model
                speed = _speed(predictor, predictor.with_model(model), splits, max(1, most // TIMED_IMAGES))
                if speed < LEAST_SPEED:
                    reason = f"{precision} runs the model {speed:.1f} times as fast as PyTorch"
                    continue
                parity = _compare(predictor, model, splits, most)
                check_parity(parity, name=precision)
            except StreetVisionError as error:
                reason = error.message
                continue
        console.line(
            "openvino",
            f"{precision} runs the model {speed:.1f} times as fast on this CPU; MCC on {parity.n} images "
            f"{parity.mcc:.3f}, in PyTorch {parity.pytorch_mcc:.3f}",
        )
        console.next_command(*export, "--precision", precision)
        return
    console.line("openvino", f"not offered: {reason}")


def _new_folder(path: Path) -> Path:
    """The first of PATH, PATH_2, PATH_3 and so on that does not exist."""
    numbered = (path.with_name(f"{path.name}_{number}") for number in count(2))
    return next(candidate for candidate in chain([path], numbered) if not candidate.exists())


def _offer_images(predictor: Predictor, context: Context) -> tuple[int, float]:
    """How many images of VAL_SELECT can be compared in OFFER_SECONDS, and the seconds of one in PyTorch."""
    images = _prepared(predictor, context, 1)
    seconds = min(_seconds(predictor, images) for _ in range(TIMED_REPEATS))  # the first prediction is slower
    # Both models predict each image for the comparison, and a part of the images for their speed; for each precision.
    passes = len(OFFERED) * 2 * (1 + TIMED_REPEATS / TIMED_IMAGES)
    return min(OFFER_IMAGES, int(OFFER_SECONDS / (passes * seconds))), seconds


def _speed(predictor: Predictor, other: Predictor, context: Context, n_images: int) -> float:
    """How many times as fast another model predicts images of VAL_SELECT that are prepared."""
    images = _prepared(predictor, context, n_images)
    seconds: dict[Predictor, list[float]] = {predictor: [], other: []}
    for _ in range(TIMED_REPEATS):
        for candidate, times in seconds.items():
            times.append(_seconds(candidate, images))
    return min(seconds[predictor]) / min(seconds[other])


def _prepared(predictor: Predictor, context: Context, n_images: int) -> list[Prepared]:
    rows = context.rows(Split.VAL_SELECT)[:n_images]
    return [predictor.prepare(read_recorded(context.data_root, row, limits=predictor.limits)) for row in rows]


def _seconds(predictor: Predictor, images: list[Prepared]) -> float:
    started = time.perf_counter()
    predictor.logits(images)
    return time.perf_counter() - started


def _convert(predictor: Predictor, request: RuntimeRequest, context: Context, folder: Path) -> _Converted:
    """Write the graphs, and the weights of a trained fusion, to `folder`, and open them."""
    bundle, graph = predictor.bundle, request.graph
    images: list[NDArray[np.uint8]] = []
    dense_images: list[NDArray[np.uint8]] = []
    if request.precision in graph.calibrated:
        images, dense_images = _calibration_images(predictor, context)
    classifier, fusion, files = load_classifier(bundle), read_fusion_description(bundle), graph.files
    write_graph(capture(classifier), folder, name=request.runtime, precision=request.precision, images=images)
    if fusion is not None and fusion.dense_size is not None:
        dense = capture_dense(classifier.patches_at(fusion.dense_size))
        write_graph(dense, folder, name=request.runtime, precision=request.precision, images=dense_images, part=DENSE)
        files += graph.files_of(DENSE)
    weights = bundle.manifest.fusion_weights
    if weights is not None:
        state = load_state(bundle.folder / weights)
        save_file({key: state[key].numpy() for key in inference_keys(state)}, folder / FUSION_ARRAYS)
    # The same model as in a prediction with the exported bundle, so the comparison measures what is exported.
    model = open_graph_model(
        folder,
        classifier.description,
        fusion,
        runtime=request.runtime,
        precision=request.precision,
        feature_dim=classifier.width,
        fusion_weights=None if weights is None else FUSION_ARRAYS,
    )
    return _Converted(model, files, classifier.width, len(images))


def _compare(predictor: Predictor, model: GraphModel, context: Context, most: int | None = None) -> RuntimeParity:
    """Compare a model with that of the predictor, on VAL_SELECT, or on some of its images."""
    rows = context.rows(Split.VAL_SELECT)
    if most is not None:
        rows = every_nth(rows, most)
    for row in rows:
        read_recorded(context.data_root, row, limits=predictor.limits)  # raises if a file has changed
    paths, batch_size = [context.data_root / row.path for row in rows], context.settings(LoaderConfig).batch_size
    expected, actual = (
        compute_logits(candidate, paths, context.progress, batch_size=batch_size)
        for candidate in (predictor, predictor.with_model(model))
    )
    return measure_parity(predictor, expected, actual, [row.label for row in rows])


def _run_context(bundle: Path, overrides: Sequence[str], console: Console) -> Context:
    """The splits of the run around the bundle that an export may open, and its limits of image files."""
    folder = bundle_folder(bundle)
    config = compose_config(overrides, base={"run_dir": str(folder.absolute().parent)})
    keys = config.overrides.keys() - {"data.root"}
    warn_without_effect(config, {LoaderConfig}, "export --runtime", console, keys=keys)
    schema = ArtifactSchema(config.root)
    read_bundle(folder)  # a missing bundle is reported before a missing run
    if not schema.splits_json.is_file():
        raise ArtifactError(
            f"{str(schema.output_dir)!r} is not the run that made this bundle: it has no splits.json, and an export is "
            "compared on the run's VAL_SELECT",
            "set run_dir=... to that run",
        )
    follow_data(schema, config.data.root, console)
    config = with_recorded_limits(config, schema)
    return Context(
        phase="export_runtime",
        schema=schema,
        progress=console,
        configs={LoaderConfig: config.loader},
        load_partition=lambda: partition_from_json(read_json(schema.splits_json), schema.splits_json),
    )


def _calibration_images(
    predictor: Predictor, context: Context
) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
    """Preprocessed images (1, 3, h, w) of TRAIN; if images have several views, a different one of each.

    And those of the dense pass, if there is one.
    """
    rows = context.rows(Split.TRAIN)
    n_images = min(len(rows), CALIBRATION_IMAGES)
    images: list[NDArray[np.uint8]] = []
    dense: list[NDArray[np.uint8]] = []
    for number in range(n_images):
        row = rows[number * len(rows) // n_images]
        prepared = predictor.prepare(read_recorded(context.data_root, row, limits=predictor.limits))
        if isinstance(prepared, ViewArrays):
            dense += [prepared.dense] if len(prepared.dense) else []
            views = prepared.pixels[prepared.mask]
            prepared = views[number % len(views)]
        images.append(prepared[None])
    return images, dense


def _write(
    bundle: Bundle,
    request: RuntimeRequest,
    folder: Path,
    parity: RuntimeParity,
    *,
    files: tuple[str, ...],
    feature_dim: int,
    calibration_images: int,
) -> Bundle:
    graph, manifest = request.graph, bundle.manifest
    fusion_weights = None if manifest.fusion_weights is None else FUSION_ARRAYS
    reference = RuntimeRef.model_validate(
        {
            "name": request.runtime,
            "precision": request.precision,
            "files": files,
            "feature_dim": feature_dim,
            "fusion_weights": fusion_weights,
            "calibration_images": calibration_images,
            "parity": parity,
        }
    )
    originals = {name: bundle.folder / name for name in manifest.files}
    exported = files if fusion_weights is None else (*files, fusion_weights)
    try:
        return write_bundle(
            request.out,
            {**originals, **{name: folder / name for name in exported}},
            policy=manifest.policy,
            class_names=manifest.class_names,
            data_fingerprint=manifest.data_fingerprint,
            split_sha256=manifest.split_sha256,
            runtime=reference,
            extra_versions={graph.package: importlib.metadata.version(graph.package)},
        )
    except BaseException:
        shutil.rmtree(request.out, ignore_errors=True)  # the same command would be refused
        raise


def _print_parity(parity: RuntimeParity, request: RuntimeRequest, console: Console) -> None:
    console.line(request.runtime, f"{request.precision}, compared with PyTorch on {parity.n} images of VAL_SELECT")
    console.line(
        "predictions",
        f"logits differ by at most {parity.max_logit_difference:.1e}, probabilities by "
        f"{parity.max_probability_difference:.1e}; {parity.decision_flips} of {parity.n} decisions differ",
    )
    console.line("MCC", f"{parity.mcc:.4f}, PyTorch {parity.pytorch_mcc:.4f}")
    if parity.certified_flips:
        console.warn(
            f"{parity.certified_flips} certified predictions differ; their risk was certified for those of PyTorch"
        )
