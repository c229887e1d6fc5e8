"""From a command line to a finished run: compose the settings, find the data, hand the plan to the engine."""

import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ValidationError

from streetvision.bundle.format import Bundle, bundle_folder, read_bundle
from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ArtifactError, ConfigError
from streetvision.contracts.phase import Phase
from streetvision.contracts.progress import Silent
from streetvision.data.config import DataConfig
from streetvision.io.atomic import read_json
from streetvision.io.lock import run_lock
from streetvision.io.manifests import read_manifest
from streetvision.io.validators import validate_json
from streetvision.pipeline.console import Console
from streetvision.pipeline.engine import Engine, ordered, trains
from streetvision.pipeline.phases import PHASES
from streetvision.pipeline.settings import RunConfig, without_effect
from streetvision.synthetic.scenes import SceneConfig, write_scenes
from streetvision.training.distributed import (
    broadcast,
    check_world_size,
    process_group,
    rank_and_world_size,
    receive,
    worker_loop,
)

NOT_SPLIT = ("data.fractions", "data.seed", "data.unlabeled")
"""Settings of a split, which there is none of where a whole set is judged."""


def launch_training(config: RunConfig, *, console: Console, only: Collection[str] | None = None) -> ArtifactSchema:
    """Run the phases that `config` requests, or `only` these of them; returns the paths of the run.

    Started by torchrun, every process but the first only takes part in training.
    """
    check_world_size(config.hardware)
    with process_group():
        if rank_and_world_size()[0] > 0:
            return _train_beside(console)
        return _lead_training(config, console=console, only=only)


def _train_beside(console: Console) -> ArtifactSchema:
    config = receive()  # the leader knows where the data is when the command does not say
    assert isinstance(config, RunConfig)
    schema = ArtifactSchema(config.root)
    engine = Engine(schema, PHASES, config.sections(), console)

    def take_part(announced: str) -> None:
        phase = PHASES[announced]
        assert phase.run_worker is not None, f"{announced} does not train"
        phase.run_worker(replace(engine.context(phase), progress=Silent()))

    worker_loop(take_part)
    return schema


def _lead_training(config: RunConfig, *, console: Console, only: Collection[str] | None) -> ArtifactSchema:
    config = resolve_run_config(config, console=console)
    broadcast(config)
    schema = ArtifactSchema(config.root)
    drawn = config.data.root is None or _same_place(config.data.root, str(schema.scenes_dir))
    if trains(config.pipeline.phases) and config.model.backbone.source == "embedded" and not drawn:
        console.warn("the backbone that ships was taught on drawings; for photographs take model=dinov3_vits16 or kin")
    phases = ordered(config.pipeline.phases, PHASES)
    _warn_of_unread(config.overrides, phases, console, also={SceneConfig, DataConfig})
    if "data.unlabeled" in config.overrides and not config.adapts:
        console.warn("data.unlabeled is read by phase4a_explora alone, which is not among pipeline.phases")
    wanted = phases if only is None else [phase for phase in phases if phase.id in only]
    Engine(schema, PHASES, config.sections(), console).run(wanted)
    return schema


def _warn_of_unread(
    given: Collection[str], phases: Sequence[Phase], console: Console, *, also: Collection[type[BaseModel]] = ()
) -> None:
    """Name the settings of the command that none of the phases reads; sections in `also` are read by the rest."""
    read = {section for phase in phases for section in phase.config}
    if ignored := without_effect(given, {*also, *read}):
        console.warn(f"{', '.join(ignored)}: not read by {', '.join(phase.id for phase in phases)}")


def launch_evaluation(bundle: Path, config: RunConfig, *, data: str | None = None, console: Console) -> ArtifactSchema:
    """Judge a bundle on VAL_TEST of the run that it came from, or on `data`; returns the paths of the evaluation.

    The run is the folder above the bundle's, unless run_dir= names it because the bundle was moved. The evaluation on
    other data has a folder of its own in that run, unless run_dir= names another.
    """
    if data is not None:
        return _evaluate_elsewhere(read_bundle(bundle), config, data=data, console=console)
    return _ask_run(bundle, config, phase="evaluate", section="evaluation", console=console)


def launch_reward(bundle: Path, config: RunConfig, *, console: Console) -> ArtifactSchema:
    """Simulate the subnet's reward on VAL_TEST of the run that the bundle came from; returns the paths of that run."""
    return _ask_run(bundle, config, phase="reward", section="reward", console=console)


def _ask_run(bundle: Path, config: RunConfig, *, phase: str, section: str, console: Console) -> ArtifactSchema:
    """Run a phase that judges a bundle in the run around it, or in the one that run_dir= names."""
    folder = bundle_folder(bundle)
    config = config.with_defaults({section: {"bundle": folder}, "run_dir": folder.parent})
    schema = ArtifactSchema(config.root)
    read_bundle(folder)  # that there is none is worse than that its run is missing
    if not schema.splits_json.is_file():
        raise ArtifactError(
            f"{str(schema.output_dir)!r} is not the run that made this bundle: it has no splits.json",
            "name the run whose VAL_TEST it should be judged on: run_dir=..., or other images: --data ...",
        )
    phases = ordered([phase], PHASES)
    _warn_of_unread(config.overrides, phases, console)
    Engine(schema, PHASES, config.sections(), console).run(phases)
    return schema


def _evaluate_elsewhere(bundle: Bundle, config: RunConfig, *, data: str, console: Console) -> ArtifactSchema:
    if ignored := sorted(key for key in config.overrides if key.startswith(NOT_SPLIT)):
        raise ConfigError(f"{ignored[0]} is not read with --data: all of its images are judged", "leave it out")
    name = Path(data).expanduser().resolve().stem
    config = config.with_defaults(
        {
            "run_dir": bundle.folder.parent / f"on_{name}",
            "evaluation": {"bundle": bundle.folder},
            "data": {"root": data, "class_names": bundle.manifest.class_names},
        }
    )
    schema = ArtifactSchema(config.root)
    if schema.splits_json.is_file():
        raise ConfigError(
            f"{str(schema.output_dir)!r} is a run of its own; the evaluation on {data!r} needs another folder",
            "give another folder: run_dir=...",
        )
    phases = ordered(["evaluate_data"], PHASES)
    _warn_of_unread(config.overrides, phases, console)
    Engine(schema, PHASES, config.sections(), console).run(phases)
    return schema


def resolve_run_config(config: RunConfig, *, console: Console) -> RunConfig:
    """The configuration with its data in place.

    A run folder is about one data set. When it has one and the command names none, that one stands; when the command
    names another, ConfigError. Without data at all, procedural scenes are drawn into the run folder.
    """
    schema = ArtifactSchema(config.root)
    recorded = _recorded_data(schema)
    named = any(key.startswith(("data.", "scenes.")) for key in config.overrides)
    if recorded is not None and not named:
        return config.model_copy(update={"data": recorded, "run_dir": config.root})
    root = config.data.root or str(schema.scenes_dir.absolute())
    if recorded is not None and not _same_place(str(recorded.root), root):
        raise ConfigError(
            f"run folder {str(schema.output_dir)!r} is about {recorded.root!r}, and this command asks for {root!r}",
            f"give data.root={recorded.root}, or a folder of its own for this run: run_dir=...",
        )
    if config.data.root is None and (trains(config.pipeline.phases) or "data" in config.pipeline.phases):
        _draw_scenes(schema, config, console)
    return config.model_copy(update={"data": config.data.model_copy(update={"root": root})})


def _draw_scenes(schema: ArtifactSchema, config: RunConfig, console: Console) -> None:
    schema.ensure_output_dir()
    started = time.perf_counter()
    with run_lock(schema.lock_file):
        write_scenes(schema.scenes_dir, config.scenes, console)
    seconds = time.perf_counter() - started
    console.line("scenes", f"{config.scenes.count} drawn, since no data.root was given", seconds=seconds)


def _same_place(first: str, second: str) -> bool:
    return first == second or Path(first).expanduser().absolute() == Path(second).expanduser().absolute()


def _recorded_data(schema: ArtifactSchema) -> DataConfig | None:
    """The data section that the run folder's splits.json was made with, if it has one."""
    manifest = schema.manifest("data")
    if not manifest.is_file():
        return None
    try:
        return DataConfig.model_validate(read_manifest(manifest).config.get("DataConfig"))
    except ValidationError as error:
        raise ArtifactError(
            f"{str(manifest)!r} does not say which data this run is about", "give another run_dir="
        ) from error


def answers_one_class_only(schema: ArtifactSchema) -> bool:
    """Whether the model of this run gave every image of VAL_SELECT the same answer."""
    manifest = schema.manifest("phase1")
    return manifest.is_file() and bool(read_manifest(manifest).metrics.get("one_class_only"))


def reward_lines(schema: ArtifactSchema) -> list[str]:
    """The expected reward, for a terminal."""
    from streetvision.pipeline.steps.expect_reward import RewardReport, tell

    return list(tell(validate_json(schema.reward_report_json, RewardReport)))


def report_lines(schema: ArtifactSchema) -> list[str]:
    """What the evaluation found, for a terminal."""
    report = read_json(schema.evaluation_report_json)
    assert isinstance(report, dict)
    return [str(line) for line in report["summary"]]


def print_artifact_paths(schema: ArtifactSchema, console: Console) -> None:
    """Print where everything is that a reader may want to open."""
    console.text()
    for label, path in (
        ("run", schema.output_dir),
        ("adapted", schema.explora_checkpoint),
        ("model", schema.phase1_checkpoint),
        ("threshold", schema.thresholds_json),
        ("calibration", schema.scrc_params_json),
        ("bundle", schema.export_dir),
        ("archive", schema.bundle_archive),
        ("report", schema.report_html),
    ):
        if path.exists():
            console.line(label, str(path))
