"""Every setting of a run: the sections of the pipeline, RunConfig with all sections, and their keys."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, PrivateAttr, model_validator

from streetvision.calibration.config import MAC_CAL, Phase5Config, RiskConfig
from streetvision.contracts.errors import ConfigError
from streetvision.contracts.progress import Progress
from streetvision.contracts.settings import Section, Seed, common_base, no_effect, section_class, variants
from streetvision.data.config import AugmentationConfig, DataConfig, LoaderConfig
from streetvision.models.config import HardwareConfig, ModelConfig
from streetvision.synthetic.scenes import SceneConfig
from streetvision.training.config import (
    AnyCvfmConfig,
    AnyTrainingConfig,
    FinetuningConfig,
    FrozenConfig,
    LearningConfig,
    MacCalConfig,
    is_solvable,
)
from streetvision.training.ssl.config import AnyExPLoRAConfig


class PipelineConfig(Section):
    """The phases to run."""

    phases: tuple[str, ...] = ("phase1", "phase2", "phase5", "phase6")
    """phase4a_explora, phase1, phase2, phase4c_cvfm, phase5_maccal, phase5, phase6, in any order. They run in this
    order."""
    seed: Seed = 0
    """Default of every other seed."""


class Phase2Config(Section):
    """The threshold of phase 1's scores."""

    n_thresholds: int = Field(default=5000, ge=2)
    """Points of the grid in threshold_sweep.csv. The chosen threshold is exact and does not depend on the grid."""
    optimize_metric: Literal["mcc"] = "mcc"
    """The metric that the threshold maximizes."""
    save_sweep_curve: bool = True
    """Write threshold_sweep.csv and mcc_curve.png."""
    target_recall: float = Field(default=0.95, ge=0, le=1)
    """Recall of the operating point `recall`."""
    target_fpr: float = Field(default=0.05, ge=0, le=1)
    """Largest false positive rate of the operating point `fpr`."""
    n_resamples: int = Field(default=1000, ge=100)
    """Bootstrap resamples for the interval of the threshold and the band of the curve."""
    seed: Seed = 0
    """Seed of the resamples."""


class Phase6Config(Section):
    """The bundle."""

    policy: Literal["scrc", "threshold"] = "scrc"
    """scrc: phase 5's calibrated operating point; threshold: phase 2's threshold on the uncalibrated softmax."""
    archive: bool = False
    """Also write export.tar.gz, with the same bytes for the same bundle."""


class EvaluationConfig(Section):
    """The evaluation on VAL_TEST."""

    bundle: Path | None = Field(default=None, exclude=True)  # manifests record the bundle's digest instead
    """Folder of the bundle; null: the bundle of this run."""
    mode: Literal["quick", "comprehensive"] = "comprehensive"
    """quick: metrics of the shipped policy; comprehensive: also other policies, slices, thresholds and mistakes."""
    n_resamples: int = Field(default=1000, ge=100)
    """Bootstrap resamples for each interval."""
    confidence_level: float = Field(default=0.95, gt=0.5, lt=1)
    """Confidence level of the intervals."""
    seed: Seed = 0
    """Seed of the resamples."""


class CrossValidationConfig(Section):
    """`streetvision cross-validate`: outer folds and repeats of the whole chain."""

    folds: int = Field(default=5, ge=2, le=100)
    """Outer folds. Each is predicted by a chain that runs on the others."""
    repeats: int = Field(default=3, ge=1, le=100)
    """Repeats, each with other outer folds."""
    learning_curve: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.25, 0.5, 0.75)
    """Shares of the groups outside the outer fold with which the first repeat is run as well; []: no learning curve."""
    leave_out: Literal["source"] | None = None
    """source: also predict each source by a chain that uses none of its images, as for an unseen camera, road or city;
    null: do not. Of more than 20 sources, several are left out at a time."""
    n_resamples: int = Field(default=1000, ge=100)
    """Bootstrap resamples for each interval."""
    confidence_level: float = Field(default=0.95, gt=0.5, lt=1)
    """Confidence level of the intervals."""
    seed: Seed = 0
    """Seed of the outer folds and the resamples."""

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        if len(set(self.learning_curve)) < len(self.learning_curve):
            raise ConfigError("cross_validation.learning_curve has a share twice", "give each share once")
        return self


class RewardConfig(Section):
    """The simulation of the subnet's reward on VAL_TEST."""

    bundle: Path | None = Field(default=None, exclude=True)  # manifests record the bundle's digest instead
    """Folder of the bundle; null: the bundle of this run."""
    n_simulations: int = Field(default=1000, ge=20)
    """Simulated streams of challenges, over which the percentiles are taken."""
    steps: int = Field(default=1000, ge=100)
    """Challenges per stream. The score is taken at the end."""
    timeout_fraction: float = Field(default=0.05, gt=0, lt=1)
    """Share of late responses in the rows about timeouts."""
    seed: Seed = 0
    """Seed of the distortions and the streams."""


class RunConfig(Section):
    """All settings of a run."""

    run_dir: Path | None = None
    """Folder of the run; null: outputs/NAME, named after data.root."""
    pipeline: PipelineConfig = PipelineConfig()
    data: DataConfig = DataConfig()
    scenes: SceneConfig = SceneConfig()
    loader: LoaderConfig = LoaderConfig()
    model: ModelConfig
    augmentation: AugmentationConfig = AugmentationConfig()
    hardware: HardwareConfig = HardwareConfig()
    phase4a: AnyExPLoRAConfig
    training: AnyTrainingConfig
    phase2: Phase2Config = Phase2Config()
    phase4c: AnyCvfmConfig
    mac_cal: MacCalConfig = MacCalConfig()
    phase5: Phase5Config = Phase5Config()
    phase6: Phase6Config = Phase6Config()
    evaluation: EvaluationConfig = EvaluationConfig()
    cross_validation: CrossValidationConfig = CrossValidationConfig()
    reward: RewardConfig = RewardConfig()

    _overrides: Mapping[str, object] = PrivateAttr(default_factory=dict)

    @property
    def overrides(self) -> Mapping[str, object]:
        """The settings that the command or its file sets: dotted key -> value."""
        return self._overrides

    @property
    def root(self) -> Path:
        """The run folder."""
        if self.run_dir is not None:
            return self.run_dir
        if self.data.root is None and self.data.labels is not None:
            labels = self.data.labels.resolve()
            folder = labels.parent if labels.name == "labels.parquet" else labels  # as data.labels=FOLDER
            return Path("outputs") / f"{folder.name}-training"  # not the folder of the labels
        return Path("outputs") / (Path(self.data.root).resolve().name if self.data.root else "scenes")

    @property
    def adapts(self) -> bool:
        """Whether the run adapts the backbone before phase 1."""
        return "phase4a_explora" in self.pipeline.phases

    def with_defaults(self, values: Mapping[str, object]) -> Self:
        """Return a copy with other defaults: `values` replace all settings that the command does not set.

        Args:
            values: Values by name, nested by section. They are not validated again.
        """
        update: dict[str, object] = {}
        for name, value in values.items():
            if isinstance(value, Mapping):
                present, section = getattr(self, name), {}
                for key, default in value.items():
                    prefix = f"{name}.{key}."
                    # Fields of a nested section, or keys of a mapping, that the command sets.
                    inner = {k.removeprefix(prefix).partition(".")[0] for k in self.overrides if k.startswith(prefix)}
                    if f"{name}.{key}" in self.overrides or (inner and not isinstance(default, BaseModel)):
                        continue
                    kept = {field: getattr(getattr(present, key), field) for field in inner}
                    section[key] = default.model_copy(update=kept) if kept else default
                update[name] = present.model_copy(update=section)
            elif name not in self.overrides:
                update[name] = value
        return self.model_copy(update=update)

    def sections(self) -> dict[type[BaseModel], BaseModel]:
        """The sections by the class with which phases request them."""
        model = self.model
        if model.init_from_explora is None:
            model = model.model_copy(update={"init_from_explora": self.adapts})
        values = {name: getattr(self, name) for name in type(self).model_fields} | {"model": model}
        sections = {
            section_class(field): values[name] for name, field in type(self).model_fields.items() if variants(field)
        }
        return {**sections, RiskConfig: self.phase5.risk}

    @model_validator(mode="after")
    def _check_sections_together(self) -> Self:
        self._check_frozen()
        self._check_processes()
        self._check_views()
        if self.adapts and self.model.explora_checkpoint_path is not None:
            raise ConfigError(
                "model.explora_checkpoint_path cannot be combined with phase4a_explora, which makes another backbone",
                "leave out one of the two",
            )
        if self.data.root is not None and self.scenes != SceneConfig():
            raise no_effect("scenes", "data.root is set", "leave data.root out")
        return self

    def _check_frozen(self) -> None:
        if self.training.mode != "frozen":
            assert isinstance(self.training, FinetuningConfig)
            if self.training.gate != "on" and not is_solvable(self.model.head, self.training.loss):
                raise ConfigError(
                    f"training.gate={self.training.gate} has no effect: with this head or loss there is no probe",
                    "leave training.gate out",
                )
            return
        frozen, hint = "training.mode=frozen", "set training=peft"
        if self.augmentation != AugmentationConfig():
            raise no_effect("augmentation", frozen, hint)
        if self.loader.cache_image_size is not None and not self.adapts:
            raise no_effect("loader.cache_image_size", f"{frozen}, which reads every image once", hint)
        if self.hardware.compile:
            raise no_effect("hardware.compile", frozen, hint)
        only_phase4a = self.adapts and "phase1" not in self.pipeline.phases
        if self.hardware.processes > 1 and not only_phase4a:
            raise no_effect("hardware.devices", frozen, hint)
        if self.hardware != HardwareConfig() and not self.adapts:
            raise no_effect("hardware", frozen, hint)
        if is_solvable(self.model.head, self.training.loss):
            default = FrozenConfig()
            neutral = {"mode", "loss", "seed", "tracker", "tracker_offline"}
            for name in set(FrozenConfig.model_fields) - neutral:
                if getattr(self.training, name) != getattr(default, name):
                    raise no_effect(
                        f"training.{name}",
                        f"{frozen} with a linear head, which a solver fits",
                        "set model.head.kind=mlp or training=full",
                    )
            if self.model.head.dropout:
                raise no_effect(
                    "model.head.dropout", "training.mode=frozen with a linear head", "set model.head.kind=mlp"
                )

    def _check_processes(self) -> None:
        several = self.hardware.processes > 1
        if several and self.training.mode == "auto" and "phase1" in self.pipeline.phases:
            raise ConfigError("training.mode=auto needs a single process", "set training=full, peft or last_n")
        trainings: dict[str, LearningConfig] = {"training": self.training}
        if self.adapts:
            trainings["phase4a"] = self.phase4a
        for name, training in trainings.items():
            # A head on cached features is fitted in one process.
            processes = 1 if isinstance(training, FrozenConfig) else self.hardware.processes
            key, rows = "batch_size", training.batch_size
            if isinstance(training, FinetuningConfig) and training.micro_batch_size is not None:
                key, rows = "micro_batch_size", training.micro_batch_size
                if training.batch_size % rows:
                    raise ConfigError(
                        f"{name}.micro_batch_size={rows} does not divide {name}.batch_size={training.batch_size}",
                        f"set {name}.micro_batch_size to a divisor of {training.batch_size}",
                    )
            if rows % processes:
                raise ConfigError(
                    f"{name}.{key}={rows} is not a multiple of the {processes} processes",
                    f"set {name}.{key} to a multiple of {processes}",
                )
            if training.tracker == "none" and not training.tracker_offline:
                raise no_effect(f"{name}.tracker_offline", f"{name}.tracker=none", f"set {name}.tracker=wandb")
        if self.hardware.strategy == "fsdp" and self.training.ema_decay is not None:
            raise ConfigError(
                "hardware.strategy=fsdp cannot be combined with training.ema_decay, which needs whole weights",
                "set hardware.strategy=ddp or leave training.ema_decay out",
            )
        if self.hardware.strategy == "fsdp" and self.adapts and "phase1" not in self.pipeline.phases:
            raise no_effect("hardware.strategy=fsdp", "phase1 is not in pipeline.phases", "set hardware.strategy=ddp")
        if several and self.augmentation.gate != "off":
            raise ConfigError(
                "augmentation.gate needs a single process", "test the augmentation first with hardware.devices=1"
            )
        if several and self.adapts and getattr(self.phase4a, "grad_cache_chunk", None) is not None:
            raise ConfigError("phase4a.grad_cache_chunk needs a single process", "leave phase4a.grad_cache_chunk out")

    def _check_views(self) -> None:
        mode = self.phase4c.mode
        if mode == "single_view":
            if "phase4c_cvfm" in self.pipeline.phases:
                raise ConfigError("phase4c_cvfm cannot run with phase4c.mode=single_view", "set phase4c=mil")
        elif self.phase6.policy == "threshold":
            raise ConfigError(
                f"phase6.policy=threshold needs scores of single views, and phase4c.mode={mode}",
                "set phase6.policy=scrc or phase4c=single_view",
            )
        elif self.phase5.method == MAC_CAL:
            raise ConfigError(
                f"phase5.method=mac_cal needs scores of single views, and phase4c.mode={mode}",
                "set another phase5.method or phase4c=single_view",
            )


@dataclass(frozen=True)
class Setting:
    """One key of the configuration."""

    key: str
    type: Any
    name: str
    """The name of its field."""
    models: Mapping[str, type[BaseModel]]
    """The models that declare it, by the choice that selects them, for example training.mode=peft; "" for no choice."""
    defaults: Mapping[str, Any]
    """The default under each of these choices; PydanticUndefined if the packaged files set it."""
    always: bool = True
    """Whether it has an effect under every choice."""


def settings(
    model: type[BaseModel] = RunConfig, prefix: str = "", values: BaseModel | None = None
) -> Iterator[Setting]:
    """Yield every key below `model` once, for example training.epochs; of a union, the keys of all its variants.

    Args:
        model: A section.
        prefix: In front of the keys.
        values: The section as the section around it has it by default; None: the defaults of `model`.
    """
    for name, field in model.model_fields.items():
        key, models = f"{prefix}{name}", variants(field)
        default = field.default if values is None else getattr(values, name)
        if len(models) == 1:
            yield from settings(models[0], f"{key}.", default if isinstance(default, BaseModel) else None)
        elif models:
            yield from _union_settings(models, f"{key}.", str(field.discriminator))
        else:
            yield Setting(key, field.annotation, name, {"": model}, {"": default})
            if isinstance(default, Mapping):
                parts = default.items()
                yield from (Setting(f"{key}.{part}", object, name, {"": model}, {"": value}) for part, value in parts)


def _union_settings(models: Sequence[type[BaseModel]], prefix: str, discriminator: str) -> Iterator[Setting]:
    by_key: dict[str, dict[str, Setting]] = {}
    for model in models:
        choice = f"{prefix}{discriminator}={model.model_fields[discriminator].default}"
        for setting in settings(model, prefix):
            by_key.setdefault(setting.key, {})[choice] = setting
    for key, declared in by_key.items():
        first = next(iter(declared.values()))
        always = len(declared) == len(models)
        if key == f"{prefix}{discriminator}":
            names = tuple(model.model_fields[discriminator].default for model in models)
            yield Setting(key, Literal.__getitem__(names), first.name, {"": common_base(models)}, first.defaults)
        elif always and len({repr((setting.models, setting.defaults)) for setting in declared.values()}) == 1:
            yield first
        elif "" in first.models:
            kinds = {choice: setting.models[""] for choice, setting in declared.items()}
            defaults = {choice: setting.defaults[""] for choice, setting in declared.items()}
            yield Setting(key, first.type, first.name, kinds, defaults, always)
        else:  # a union within the variants: its own choice is the one to report
            yield first


def all_settings() -> Mapping[str, Setting]:
    """Every setting of a run by its key."""
    return _ALL


_ALL = {setting.key: setting for setting in settings()}


SECTION_OF_GROUP = {"phase4b": "training"}
"""Groups whose files set a section of another name."""


def without_effect(keys: Iterable[str], read: Collection[type[BaseModel] | str]) -> list[str]:
    """Return those of `keys` that are not `read`: the models of whole sections, or single settings by their keys.

    run_dir and pipeline are always read.
    """
    classes = {name: section_class(field) for name, field in RunConfig.model_fields.items() if variants(field)}
    sections = {name for name, kind in classes.items() if kind in {PipelineConfig, *read}}
    known = {"run_dir", *sections, *(name for name in read if isinstance(name, str))}
    known |= {group for group, section in SECTION_OF_GROUP.items() if section in sections}
    return sorted(key for key in keys if not any(key == name or key.startswith(f"{name}.") for name in known))


def warn_without_effect(
    config: RunConfig,
    read: Collection[type[BaseModel] | str],
    command: str,
    progress: Progress,
    *,
    keys: Collection[str] | None = None,
) -> None:
    """Warn of settings of the command, or those of them in `keys`, that `command` does not read."""
    if ignored := without_effect(config.overrides if keys is None else keys, read):
        progress.warn(f"{', '.join(ignored)} {'has' if len(ignored) == 1 else 'have'} no effect on {command}")


def refuse_settings_of_options(config: RunConfig, options: Mapping[str, str]) -> None:
    """Raise ConfigError for a setting that an option or an argument gives as well.

    Args:
        config: The settings.
        options: Setting -> the option or argument.
    """
    for key, option in options.items():
        if key in config.overrides:
            raise ConfigError(f"{key} and {option} exclude each other", f"give {option} alone")


OTHER_NAMES = {
    "training.compile": "hardware.compile",
    "training.compile_mode": "hardware.compiler.mode",
    "compile_mode": "hardware.compiler.mode",
    "hardware.compile_mode": "hardware.compiler.mode",
    "training.precision": "training.mixed_precision.enabled",
    "trainer.precision": "training.mixed_precision.enabled",
    "accumulate_grad_batches": "training.gradient_accumulation_steps",
    "trainer.accumulate_grad_batches": "training.gradient_accumulation_steps",
    "training.accumulate": "training.gradient_accumulation_steps",
    "training.dora": "training.adapter.use_dora",
    "phase4a.epochs": "phase4a.num_epochs",
    "phase4c.num_epochs": "phase4c.epochs",
    "training.num_epochs": "training.epochs",
    "phase6.compression": "phase6.archive",
    "evaluation.n_bootstrap": "evaluation.n_resamples",
}
"""Keys that other programs use, or that a reader of the specification may expect -> the setting."""
OTHER_PARTS = {"lr": "learning_rate", "wd": "weight_decay", "bs": "batch_size", "num_epochs": "epochs"}
"""Last parts of keys -> as they are called here."""


def unknown_setting(key: str, groups: Collection[str]) -> ConfigError:
    """Return the error for a key that does not exist, with one kind of hint.

    In this order: keys that start or end with it, the setting that other programs call so, similar keys, the keys of
    its section, the sections.
    """
    known = [*groups, *_ALL]
    message = f"{key} is not a setting"
    if key in OTHER_NAMES:
        return ConfigError(message, f"did you mean {OTHER_NAMES[key]}?")
    # phase4a_explora.rank: the id of a phase instead of its section; training.lr: a short form of the last part
    section, dot, name = key.rpartition(".")
    for other in (f"{section.partition('_')[0]}{dot}{name}", f"{section}{dot}{OTHER_PARTS.get(name, name)}"):
        if other in _ALL:
            return ConfigError(message, f"did you mean {other}?")
    prefixed = [name for name in known if name.startswith(key) or name.endswith(f".{key}")]
    if similar := prefixed or _similar(key, known):
        more = f" and {len(similar) - 8} more" if len(similar) > 8 else ""
        return ConfigError(message, f"did you mean {' or '.join(similar[:8])}{more}?")
    section = key.rpartition(".")[0]
    while section and not any(name.startswith(f"{section}.") for name in known):
        section = section.rpartition(".")[0]
    prefix = f"{section}." if section else ""
    names = {prefix + name.removeprefix(prefix).partition(".")[0] for name in known if name.startswith(prefix)}
    if section:
        return ConfigError(message, f"{section} has: {', '.join(sorted(names))}")
    listed = ", ".join(sorted(names - {"run_dir"}))
    return ConfigError(message, f"settings are run_dir and SECTION.NAME, such as training.epochs; sections: {listed}")


def _similar(key: str, known: Collection[str]) -> list[str]:
    """The nearest keys: of the same section by their last part, or else by the whole key."""
    section, _, last = key.rpartition(".")
    names = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == section}
    if section and names:
        return [names[near] for near in get_close_matches(last, names, n=3, cutoff=0.7)]
    return get_close_matches(key, known, n=3, cutoff=0.8)
