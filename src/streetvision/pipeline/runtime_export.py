"""From a bundle in PyTorch to one in another runtime: converted, measured on VAL_SELECT, and refused if it is worse."""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from streetvision.bundle.format import Bundle, bundle_folder, read_bundle, write_bundle
from streetvision.bundle.predictor import Predictor, Prepared, open_classifier
from streetvision.bundle.runtimes.graph import Graph, capture
from streetvision.bundle.runtimes.parity import ask, check_parity, measure_parity
from streetvision.bundle.runtimes.registry import RUNTIMES, open_graph
from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ArtifactError, ConfigError, unknown_name
from streetvision.contracts.phase import Context
from streetvision.contracts.policies import Precision, RuntimeParity, RuntimeRef
from streetvision.contracts.split_contracts import Split
from streetvision.data.config import LoaderConfig
from streetvision.data.splitting.splits_json import partition_from_json
from streetvision.io.atomic import read_json
from streetvision.models.multi_view import Views
from streetvision.pipeline.config import compose_config
from streetvision.pipeline.console import Console
from streetvision.pipeline.steps.evaluate_model import own_bundle

CALIBRATION_IMAGES = 128
"""Images of TRAIN that ranges are taken from, evenly spread over its rows."""


@dataclass(frozen=True)
class RuntimeRequest:
    """What a person asked for."""

    bundle: Path
    """Its folder or its bundle.json."""
    out: Path
    runtime: str
    precision: Precision

    @property
    def graph(self) -> type[Graph]:
        """What writes it; raises ConfigError for a runtime or a precision that there is not."""
        if self.runtime not in RUNTIMES:
            raise unknown_name("runtime", self.runtime, RUNTIMES)
        graph = RUNTIMES[self.runtime]
        if self.precision not in graph.precisions:
            offered = ", ".join(graph.precisions)
            raise ConfigError(f"--runtime {self.runtime} has no precision {self.precision}", f"it has: {offered}")
        return graph


def export_runtime(request: RuntimeRequest, overrides: Sequence[str], console: Console) -> Bundle:
    """Write a new bundle whose backbone another runtime executes; nothing is left where the gate refuses it.

    The images are those of the run around the bundle, or of the one that run_dir= names.
    """
    graph, out = request.graph, request.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{str(out)!r} is not an empty folder", "give a folder of its own: --out ...")
    context = _context(request.bundle, overrides, console)
    bundle = own_bundle(context, request.bundle)
    if bundle.folder.resolve() in out.resolve().parents:
        raise ConfigError(
            f"{str(out)!r} lies in the bundle, which holds no stranger", "give a folder beside it: --out ..."
        )
    if bundle.manifest.runtime is not None:
        raise ConfigError(
            f"bundle {str(bundle.folder)!r} runs in {bundle.manifest.runtime.name} already",
            "give the bundle that it was made from",
        )
    predictor = Predictor(bundle, limits=context.settings(LoaderConfig).limits)
    images = _calibration_images(predictor, context) if request.precision in graph.calibrated else []
    with TemporaryDirectory() as name:
        converted = Path(name)
        classifier = open_classifier(bundle)
        graph.write(capture(classifier), converted, request.precision, images)
        through = open_graph(classifier, converted, name=request.runtime, precision=request.precision)
        parity = _measure(predictor, predictor.with_graph(through), context)
        _tell(parity, request, console)
        check_parity(parity, name=f"{request.runtime} {request.precision}")
        made = _write(bundle, request, converted, parity, calibration_images=len(images))
    _tell_where(made, context.schema, console)
    return made


def _context(bundle: Path, overrides: Sequence[str], console: Console) -> Context:
    """What the export may open of the run around the bundle."""
    folder = bundle_folder(bundle)
    config = compose_config(overrides, base={"run_dir": str(folder.absolute().parent)})
    schema = ArtifactSchema(config.root)
    read_bundle(folder)  # that there is none is worse than that its run is missing
    if not schema.splits_json.is_file():
        raise ArtifactError(
            f"{str(schema.output_dir)!r} is not the run that made this bundle: it has no splits.json, and an export is "
            "measured on the run's VAL_SELECT",
            "name the run: run_dir=...",
        )
    return Context(
        phase="export_runtime",
        schema=schema,
        progress=console,
        configs={LoaderConfig: config.loader},
        load_partition=lambda: partition_from_json(read_json(schema.splits_json), schema.splits_json),
    )


def _measure(reference: Predictor, candidate: Predictor, context: Context) -> RuntimeParity:
    rows = context.rows(Split.VAL_SELECT)
    paths = [context.data_root / row.path for row in rows]
    expected, found = (ask(predictor, paths, context.progress) for predictor in (reference, candidate))
    return measure_parity(reference, expected, found, [row.label for row in rows])


def _calibration_images(predictor: Predictor, context: Context) -> list[Tensor]:
    """Images (1, 3, S, S) as the backbone meets them, from TRAIN; of many views, one of each image in turn."""
    rows = context.rows(Split.TRAIN)
    count = min(len(rows), CALIBRATION_IMAGES)
    chosen = [rows[number * len(rows) // count] for number in range(count)]
    prepared = (predictor.prepare(context.data_root / row.path) for row in chosen)
    return [_one_view(images, number)[None] for number, images in enumerate(prepared)]


def _one_view(images: Prepared, number: int) -> Tensor:
    if not isinstance(images, Views):
        return images
    seen = images.pixels[images.mask]
    return seen[number % len(seen)]


def _write(
    bundle: Bundle, request: RuntimeRequest, converted: Path, parity: RuntimeParity, *, calibration_images: int
) -> Bundle:
    graph, manifest = request.graph, bundle.manifest
    reference = RuntimeRef.model_validate(
        {
            "name": request.runtime,
            "precision": request.precision,
            "files": graph.files,
            "calibration_images": calibration_images,
            "parity": parity,
        }
    )
    files = {name: bundle.folder / name for name in manifest.files}
    return write_bundle(
        request.out,
        {**files, **{name: converted / name for name in graph.files}},
        policy=manifest.policy,
        class_names=manifest.class_names,
        data_fingerprint=manifest.data_fingerprint,
        runtime=reference,
        extra_versions={graph.package: importlib.metadata.version(graph.package)},
    )


def _tell(parity: RuntimeParity, request: RuntimeRequest, console: Console) -> None:
    console.line(request.runtime, f"{request.precision}, beside PyTorch on {parity.n} images of VAL_SELECT")
    console.line(
        "answers",
        f"logits differ by at most {parity.max_logit_difference:.1e}, probabilities by "
        f"{parity.max_probability_difference:.1e}; {parity.decision_flips} of {parity.n} decisions differ",
    )
    console.line("MCC", f"{parity.mcc:.4f}, in PyTorch {parity.pytorch_mcc:.4f}")
    if parity.certified_flips:
        console.warn(
            f"{parity.certified_flips} certified answers differ: their risk was certified for the answers of PyTorch"
        )


def _tell_where(made: Bundle, schema: ArtifactSchema, console: Console) -> None:
    size = sum(entry.bytes for entry in made.manifest.files.values())
    console.line("bundle", f"{made.folder}  ({size / 1e6:.1f} MB, every file sealed)")
    around = made.folder.absolute().parent == schema.output_dir.absolute()
    console.line(
        "next", f"streetvision evaluate --bundle {made.folder}" + ("" if around else f" run_dir={schema.output_dir}")
    )
