"""Runs of the command line: resolve the data of a run, order the phases, and start the engine."""

import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from streetvision.bundle.format import bundle_folder, read_bundle
from streetvision.calibration.config import MAC_CAL, Phase5Config, RiskConfig
from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ArtifactError, ConfigError, StreetVisionError
from streetvision.contracts.phase import Phase
from streetvision.contracts.progress import Silent
from streetvision.data.config import DataConfig, LoaderConfig
from streetvision.data.records import fold_name
from streetvision.data.splitting.splits_json import partition_from_json
from streetvision.io.atomic import read_json, sha256_file
from streetvision.io.lock import run_lock
from streetvision.io.manifests import read_manifest, relative
from streetvision.io.validators import validate_json
from streetvision.models.config import ModelConfig
from streetvision.pipeline.console import Console
from streetvision.pipeline.engine import Engine, changed_input, needs_data, phase_order
from streetvision.pipeline.moved_data import adopt_data_root, complete_move
from streetvision.pipeline.phases import PHASES
from streetvision.pipeline.settings import RunConfig, refuse_settings_of_options, warn_without_effect
from streetvision.synthetic.scenes import SceneConfig, write_scenes
from streetvision.training.config import AnyCvfmConfig, CvfmConfig
from streetvision.training.distributed import (
    broadcast,
    check_world_size,
    process_group,
    rank_and_world_size,
    receive,
    worker_loop,
)

Recorded = TypeVar("Recorded", DataConfig, LoaderConfig, Phase5Config)
SPLIT_SETTINGS = ("data.fractions", "data.seed", "data.protocol", "data.folds", "data.unlabeled", "data.labels")
"""Settings without effect in an evaluation on --data, which is not split."""
COLLAPSED_WARNING = (
    "the model predicts one class only: check the labels, and try more images, another model or other settings of the "
    "training"
)


def launch_training(config: RunConfig, *, console: Console, only: Collection[str] | None = None) -> ArtifactSchema:
    """Run the phases of `config`, or only those in `only`, and return the paths of the run.

    With torchrun, rank 0 runs the phases. The other ranks take part in training only.
    """
    check_world_size(config.hardware)
    with process_group():
        if rank_and_world_size()[0] > 0:
            return _run_worker(console)
        config = resolve_run_config(config, console=console)
        schema = ArtifactSchema(config.root)
        config = use_earlier_results(config, schema, console=console)
        broadcast(config)
        is_drawn = config.data.root is None or _same_path(config.data.root, str(schema.scenes_dir))
        phases = phase_order(config.pipeline.phases, PHASES)
        read = _read_by(phases)
        if ModelConfig in read and config.model.backbone.source == "embedded" and not is_drawn:
            console.warn(
                "the built-in backbone was trained on drawn scenes; for photographs set model=dinov2_small or another "
                "pretrained backbone"
            )
        if DataConfig in read:
            read.add(SceneConfig)
        # data.root is also a new place of the data.
        warn_without_effect(config, read, _names(phases), console, keys=config.overrides.keys() - {"data.root"})
        if DataConfig in read and "data.unlabeled" in config.overrides and not config.adapts:
            console.warn("data.unlabeled has no effect when phase4a_explora is not in pipeline.phases")
        if only is not None:
            phases = [phase for phase in phases if phase.id in only]
        Engine(schema, PHASES, config.sections(), console).run(phases)
        return schema


def _run_worker(console: Console) -> ArtifactSchema:
    config = receive()  # rank 0 resolves where the data is
    assert isinstance(config, RunConfig)
    schema = ArtifactSchema(config.root)
    engine = Engine(schema, PHASES, config.sections(), console)

    def run_phase(name: str) -> None:
        phase = PHASES[name]
        assert phase.run_worker is not None, f"{name} does not train"
        phase.run_worker(replace(engine.context(phase), progress=Silent()))

    worker_loop(run_phase)
    return schema


def launch_evaluation(bundle: Path, config: RunConfig, *, data: str | None = None, console: Console) -> ArtifactSchema:
    """Evaluate a bundle on VAL_TEST of the run that made it, or on `data`, and return the paths of the evaluation.

    The run is the parent folder of the bundle, or run_dir= if the bundle was moved. An evaluation on `data` is written
    to a folder of its own in that run, or to run_dir=.
    """
    if data is None:
        return _run_on_bundle(bundle, config, phase="evaluate", section="evaluation", console=console)
    refuse_settings_of_options(config, {"evaluation.bundle": "--bundle", "data.root": "--data"})
    opened = read_bundle(bundle)
    if ignored := sorted(key for key in config.overrides if key.startswith(SPLIT_SETTINGS)):
        raise ConfigError(f"{ignored[0]} has no effect when --data is given: all images are evaluated", "leave it out")
    root = _absolute_root(data)
    config = config.with_defaults(
        {
            "run_dir": opened.folder.parent / f"on_{Path(data).resolve().name}",
            "evaluation": {"bundle": opened.folder},
            "data": {"root": root, "class_names": opened.manifest.class_names},
        }
    )
    config = config.model_copy(update={"data": _absolute_paths(config.data)})
    given, of_bundle = config.data.class_names, opened.manifest.class_names
    if [fold_name(name) for name in given] == [fold_name(name) for name in reversed(of_bundle)]:
        raise ConfigError(
            f"data.class_names={list(given)} has the classes of the bundle in another order: {list(of_bundle)}",
            "leave data.class_names out, or give them in the order of the bundle",
        )
    schema = ArtifactSchema(config.root)
    if schema.splits_json.is_file():
        raise ConfigError(
            f"{str(schema.output_dir)!r} is the folder of a training run",
            f"set run_dir=... to another folder for the evaluation on {data!r}",
        )
    recorded = recorded_settings(schema, DataConfig, phase="evaluate_data")
    if recorded is not None and not _same_path(str(recorded.root), root):
        raise ConfigError(
            f"{str(schema.output_dir)!r} has the evaluation on {str(recorded.root)!r}",
            f"set run_dir=... to another folder for the evaluation on {data!r}",
        )
    return _run_phase("evaluate_data", with_recorded_limits(config, ArtifactSchema(opened.folder.parent)), console)


def launch_reward(bundle: Path, config: RunConfig, *, console: Console) -> ArtifactSchema:
    """Simulate the subnet's reward on VAL_TEST of the run that made the bundle, and return the paths of that run."""
    return _run_on_bundle(bundle, config, phase="reward", section="reward", console=console)


def _run_on_bundle(bundle: Path, config: RunConfig, *, phase: str, section: str, console: Console) -> ArtifactSchema:
    """Run a phase that reads a bundle in the run around it, or in run_dir=; data.root= is a new place of its data."""
    refuse_settings_of_options(config, {f"{section}.bundle": "--bundle"})
    folder = bundle_folder(bundle)
    config = config.with_defaults({section: {"bundle": folder}, "run_dir": folder.parent})
    schema = ArtifactSchema(config.root)
    read_bundle(folder)  # a missing bundle is reported before a missing run
    if not schema.splits_json.is_file():
        raise ArtifactError(
            f"{str(schema.output_dir)!r} is not the run that made this bundle: it has no splits.json",
            "set run_dir=... to that run, or evaluate on other images with --data",
        )
    follow_data(schema, config.data.root, console)
    return _run_phase(phase, with_recorded_limits(config, schema), console)


def with_recorded_limits(config: RunConfig, schema: ArtifactSchema) -> RunConfig:
    """Return the configuration with the loader.max_megapixels of the run, if the command sets no other."""
    recorded = recorded_settings(schema, LoaderConfig)
    return config if recorded is None else config.with_defaults({"loader": {"max_megapixels": recorded.max_megapixels}})


def follow_data(schema: ArtifactSchema, root: str | None, console: Console) -> None:
    """Record a new place of the data in a run whose split exists, and complete an interrupted move.

    Args:
        schema: The run.
        root: data.root of the command; None: the data is where the run recorded it.
        console: Prints progress.

    Raises:
        ConfigError: The images in `root` are not those of the run.
    """
    complete_move(schema)
    recorded = _recorded_data(schema)
    if recorded is not None and root is not None and not _same_path(str(recorded.root), root):
        adopt_data_root(schema, recorded, _absolute_root(root), console)


def _run_phase(name: str, config: RunConfig, console: Console) -> ArtifactSchema:
    schema, phases = ArtifactSchema(config.root), phase_order([name], PHASES)
    keys = config.overrides.keys() - {"data.root"}
    warn_without_effect(config, _read_by(phases), _names(phases), console, keys=keys)
    if "pipeline.phases" in config.overrides:
        console.warn(f"pipeline.phases has no effect on {_names(phases)}")
    Engine(schema, PHASES, config.sections(), console).run(phases)
    return schema


def _read_by(phases: Sequence[Phase]) -> set[type[BaseModel] | str]:
    read: set[type[BaseModel] | str] = {section for phase in phases for section in phase.config}
    return read | {"phase5.risk"} if RiskConfig in read else read  # it is not a section of its own


def _names(phases: Sequence[Phase]) -> str:
    return ", ".join(phase.id for phase in phases)


def resolve_run_config(config: RunConfig, *, console: Console) -> RunConfig:
    """Return the configuration with the data of the run.

    A run folder belongs to one data set, which it keeps if the command names none. Without any data, drawn scenes
    are drawn into the run folder. A new place of the same images is recorded in the run. Paths of the data
    become absolute, so that a run can be resumed from any working directory.

    Raises:
        ConfigError: The run folder belongs to another data set.
    """
    schema = ArtifactSchema(config.root)
    complete_move(schema)
    config = config.model_copy(update={"data": _absolute_paths(config.data)})
    recorded = _recorded_data(schema)
    names_data = any(key == "data.root" or key.startswith("scenes.") for key in config.overrides)
    if recorded is not None and not names_data:
        config = with_recorded_limits(config, schema)
        return config.with_defaults({"data": dict(recorded), "run_dir": config.root})
    # Without data.root, the labeled images alone are the data set.
    root = config.data.root or str(config.data.labels or schema.scenes_dir.absolute())
    if recorded is not None and not _same_path(str(recorded.root), root):
        adopt_data_root(schema, recorded, root, console)
        if not any(key.startswith("data.") for key in config.overrides if key != "data.root"):
            config = with_recorded_limits(config, schema)
            return config.model_copy(update={"data": recorded.model_copy(update={"root": root})})
    if (
        config.data.root is None
        and config.data.labels is None
        and (needs_data(config.pipeline.phases) or "data" in config.pipeline.phases)
    ):
        schema.ensure_output_dir()
        started = time.perf_counter()
        with run_lock(schema.lock_file):
            write_scenes(schema.scenes_dir, config.scenes, console)
        seconds = time.perf_counter() - started
        console.line("scenes", f"{config.scenes.count} drawn scenes, as data.root is not set", seconds=seconds)
    return config.model_copy(update={"data": config.data.model_copy(update={"root": root})})


def use_earlier_results(config: RunConfig, schema: ArtifactSchema, *, console: Console) -> RunConfig:
    """Return the configuration with the adaptation and the fusion that the run already has, and print their use.

    A later phase uses both, unless the command chooses otherwise with model.init_from_explora or phase4c. The engine
    checks that they were made from the present inputs.
    """
    phases, model = config.pipeline.phases, config.model
    adapted = schema.manifest("phase4a_explora").is_file() and not config.adapts
    other_start = model.init_from_explora is False or model.explora_checkpoint_path not in (
        None,
        schema.explora_checkpoint,
    )
    if adapted and "phase1" in phases and other_start:
        console.line("uses", "not the adapted backbone of this run, as the command sets another start")
    elif adapted and "phase1" in phases and model.init_from_explora is None:
        console.line("uses", "the adapted backbone of this run (model.init_from_explora=false: the original one)")
        config = config.model_copy(update={"model": model.model_copy(update={"init_from_explora": True})})

    fused = schema.manifest("phase4c_cvfm").is_file() and "phase4c_cvfm" not in phases
    if not fused or not {"phase5", "phase6"} & set(phases):
        return config
    sets_fusion = any(key.partition(".")[0] == "phase4c" for key in config.overrides)
    without = None
    if sets_fusion and config.phase4c.mode == "single_view":
        without = "phase4c is set"
    elif config.phase6.policy == "threshold":
        without = "phase6.policy=threshold has no fusion"
    elif config.phase5.method == MAC_CAL:
        without = f"phase5.method={MAC_CAL} has no fusion"
    added = []
    if without is not None:
        console.line("uses", f"a single view, as {without}; the fusion of this run is not exported")
    else:
        config = _with_recorded_fusion(config, schema, sets_fusion=sets_fusion)
        console.line("uses", "the fusion of this run (phase4c=single_view: none)")
        # An unchanged phase is skipped, and a new classifier needs a new fusion.
        added += ["phase4c_cvfm"] if "phase1" in phases else []
    if "phase6" in phases and config.phase6.policy == "scrc" and "phase5" not in phases:
        # A bundle needs the calibration of the scores that it serves.
        gate = relative(schema.fusion_gate_json, schema.output_dir)
        calibrated = is_current(schema, "phase5") and "phase1" not in phases
        if not calibrated or (gate in read_manifest(schema.manifest("phase5")).inputs) != (without is None):
            added.append("phase5")
            if (recorded := recorded_settings(schema, Phase5Config, phase="phase5")) is not None:
                # A recorded value that is the default was not set: phase5.folds may then be lower.
                values = {name: value for name, value in recorded if value != getattr(Phase5Config(), name)}
                if without is None and recorded.method == MAC_CAL:
                    values.pop("method", None)  # of a single view
                config = config.with_defaults({"phase5": values})
    pipeline = config.pipeline.model_copy(update={"phases": tuple(dict.fromkeys([*phases, *added]))})
    return config.model_copy(update={"pipeline": pipeline})


def _with_recorded_fusion(config: RunConfig, schema: ArtifactSchema, *, sets_fusion: bool) -> RunConfig:
    """The configuration with the fusion that the run has; ConfigError if the command sets another one."""
    try:
        fusion: CvfmConfig = TypeAdapter(AnyCvfmConfig).validate_python(
            read_manifest(schema.manifest("phase4c_cvfm")).config.get("CvfmConfig")
        )
    except ValidationError as error:
        raise ArtifactError(
            f"{str(schema.manifest('phase4c_cvfm'))!r} does not record the fusion of this run",
            "make it again with 'pipeline.phases=[phase4c_cvfm,phase5,phase6]'",
        ) from error
    if sets_fusion:
        same_mode = config.phase4c.mode == fusion.mode
        if not same_mode or config.with_defaults({"phase4c": dict(fusion)}).phase4c != fusion:
            raise ConfigError(
                f"the fusion of this run has other settings of phase4c (phase4c.mode={fusion.mode}) than the command",
                "add phase4c_cvfm to pipeline.phases for a new fusion, or leave phase4c out",
            )
    return config.model_copy(update={"phase4c": fusion})


def _same_path(first: str, second: str) -> bool:
    return Path(first).absolute() == Path(second).absolute()


def _absolute_root(root: str) -> str:
    """data.root as an absolute path, if it exists; another root may be a name on the Hugging Face hub."""
    try:
        return str(Path(root).absolute()) if Path(root).exists() else root
    except OSError:
        return root  # the phase that reads it reports it


def _absolute_paths(data: DataConfig) -> DataConfig:
    """The settings with absolute paths."""
    coco = data.coco
    folders = {
        "images": coco.images and coco.images.absolute(),
        "negatives": coco.negatives and coco.negatives.absolute(),
    }
    return data.model_copy(
        update={
            "root": data.root and _absolute_root(data.root),
            "labels": data.labels and data.labels.absolute(),
            "unlabeled": tuple(path.absolute() for path in data.unlabeled),
            "coco": coco.model_copy(update=folders),
        }
    )


def _recorded_data(schema: ArtifactSchema) -> DataConfig | None:
    """The data of a run, with absolute paths. splits.json has the place of a root that was recorded as relative."""
    recorded = recorded_settings(schema, DataConfig)
    if recorded is None:
        return None
    if recorded.root is not None and not Path(recorded.root).is_absolute() and schema.splits_json.is_file():
        try:
            folder = partition_from_json(read_json(schema.splits_json), schema.splits_json).index.root
        except StreetVisionError:
            return recorded  # the phase that reads it reports it
        root = Path(recorded.root)
        table = folder / root.name
        for place in (folder, table) if table.is_file() else (folder,):
            if any(parent / root == place for parent in (folder, *folder.parents)):
                recorded = recorded.model_copy(update={"root": str(place)})
    return _absolute_paths(recorded)


def recorded_settings(schema: ArtifactSchema, kind: type[Recorded], *, phase: str = "data") -> Recorded | None:
    """Return the settings in section `kind` with which `phase` has finished in a run, if it has."""
    manifest = schema.manifest(phase)
    if not manifest.is_file():
        return None
    try:
        return kind.model_validate(read_manifest(manifest).config.get(kind.__name__))
    except ValidationError as error:
        raise ArtifactError(
            f"{str(manifest)!r} does not record the settings of this run", "set run_dir=... to another folder"
        ) from error


def predicts_one_class_only(schema: ArtifactSchema) -> bool:
    """Whether phase 1 or phase 5 found that the present model predicts one class for every image."""
    return any(
        is_current(schema, phase) and bool(read_manifest(schema.manifest(phase)).metrics.get("one_class_only"))
        for phase in ("phase1", "phase5")
    )


def reward_lines(schema: ArtifactSchema) -> list[str]:
    """The expected reward as lines for a terminal."""
    from streetvision.pipeline.steps.expect_reward import RewardReport, summary_lines

    return list(summary_lines(validate_json(schema.reward_report_json, RewardReport)))


def evaluation_lines(schema: ArtifactSchema) -> list[str]:
    """The evaluation as lines for a terminal."""
    report = read_json(schema.evaluation_report_json)
    assert isinstance(report, dict)
    return [str(line) for line in report["summary"]]


def print_artifact_paths(schema: ArtifactSchema, console: Console) -> None:
    """Print the paths of the main artifacts that belong to the present model."""
    phase1 = schema.manifest("phase1")
    adapted = relative(schema.explora_checkpoint, schema.output_dir)
    is_adapted = phase1.is_file() and adapted in read_manifest(phase1).inputs
    other_threshold = is_current(schema, "phase5") and not _in_bundle(schema, schema.thresholds_json)
    console.text()
    console.line("run", str(schema.output_dir))
    for label, path, phase in (
        ("adapted", schema.explora_checkpoint, "phase4a_explora" if is_adapted else None),
        ("model", schema.phase1_checkpoint, "phase1"),
        ("threshold", schema.thresholds_json, None if other_threshold else "phase2"),
        ("fusion", schema.cvfm_config_json, "phase4c_cvfm" if _in_bundle(schema, schema.cvfm_config_json) else None),
        ("calibration", schema.scrc_params_json, "phase5"),
        ("bundle", schema.export_dir, "phase6"),
        ("archive", schema.bundle_archive, "phase6"),
        ("report", schema.report_html, "evaluate"),
    ):
        if phase is not None and path.exists() and is_current(schema, phase):
            console.line(label, str(path))


def _in_bundle(schema: ArtifactSchema, path: Path) -> bool:
    return (schema.export_dir / path.name).is_file()


def is_current(schema: ArtifactSchema, phase: str) -> bool:
    """Whether a phase has finished, and no phase has changed its inputs since."""
    manifest = schema.manifest(phase)
    if not manifest.is_file() or changed_input(schema, PHASES, phase) is not None:
        return False
    if phase != "evaluate":
        return True
    return schema.bundle_json.is_file() and read_manifest(manifest).external_sha256 == sha256_file(schema.bundle_json)
