"""YAML and overrides in, one typed configuration out: the only module that knows Hydra and OmegaConf."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Self, cast, get_args

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError, model_validator
from yaml import YAMLError, safe_load

from streetvision.calibration.config import MAC_CAL, Phase5Config
from streetvision.contracts.errors import ConfigError, unknown_name
from streetvision.contracts.settings import result_affecting
from streetvision.data.config import AugmentationConfig, DataConfig, LoaderConfig
from streetvision.io.atomic import sha256_json
from streetvision.io.yaml_files import read_yaml
from streetvision.models.config import ModelConfig
from streetvision.pipeline.phase_settings import (
    EvaluationConfig,
    Phase2Config,
    Phase6Config,
    PipelineConfig,
    RewardConfig,
)
from streetvision.synthetic.scenes import SceneConfig
from streetvision.training.config import MacCalConfig, TrainingConfig
from streetvision.training.fusion_config import CvfmConfig
from streetvision.training.ssl.config import ExPLoRAConfig


class RunConfig(BaseModel):
    """Everything a run can be told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_dir: Path | None
    """Folder of the run; None names it after the data: outputs/<name of data.root>."""
    pipeline: PipelineConfig
    data: DataConfig
    scenes: SceneConfig
    loader: LoaderConfig
    model: ModelConfig
    augmentation: AugmentationConfig
    phase4a: ExPLoRAConfig
    training: TrainingConfig
    phase2: Phase2Config
    phase4c: CvfmConfig
    mac_cal: MacCalConfig
    phase5: Phase5Config
    phase6: Phase6Config
    evaluation: EvaluationConfig
    reward: RewardConfig

    _overrides: Mapping[str, object] = PrivateAttr(default_factory=dict)

    @property
    def overrides(self) -> Mapping[str, object]:
        """The settings that the command or its file sets: dotted key -> value."""
        return self._overrides

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        if self.training.mode == "frozen" and self.augmentation != AugmentationConfig():
            raise ConfigError("augmentation is not read by training.mode=frozen", "leave it out, or take training=full")
        if self.training.mode == "frozen" and self.loader.cache_image_size is not None and not self.adapts:
            raise ConfigError(
                "loader.cache_image_size is not read by training.mode=frozen, which reads every image once",
                "leave it out, or take training=peft",
            )
        if self.augmentation.gate.epochs and self.training.hardware.devices * self.training.hardware.num_nodes > 1:
            raise ConfigError(
                "augmentation.gate runs in one process", "try the policy first with training.hardware.devices=1"
            )
        if self.adapts and self.model.explora_checkpoint_path is not None:
            raise ConfigError(
                "phase4a_explora makes a backbone, and model.explora_checkpoint_path names another",
                "leave out one of the two",
            )
        started = [(of.hardware.devices, of.hardware.num_nodes) for of in (self.phase4a, self.training)]
        if self.adapts and started[0] != started[1]:
            raise ConfigError(
                f"phase4a.hardware asks for {started[0]} devices and nodes beside {started[1]} of training.hardware: "
                "one command starts its processes once",
                "give both the same, or run the phases one after the other",
            )
        self._check_views()
        if self.data.root is not None and self.scenes != SceneConfig():
            raise ConfigError("scenes are not drawn where data.root is given", "leave out one of the two")
        return self

    def _check_views(self) -> None:
        mode = self.phase4c.mode
        if mode == "single_view":
            if "phase4c_cvfm" in self.pipeline.phases:
                raise ConfigError("phase4c_cvfm has nothing to do under phase4c.mode=single_view", "take phase4c=cvfm")
        elif self.phase6.policy == "threshold":
            raise ConfigError(
                f"phase6.policy=threshold cuts the scores of single views, against phase4c.mode={mode}",
                "leave out one of the two",
            )
        elif self.phase5.method == MAC_CAL:
            raise ConfigError(
                f"phase5.method=mac_cal retrains the head on single views, against phase4c.mode={mode}",
                "leave out one of the two",
            )

    @property
    def root(self) -> Path:
        """The run folder."""
        if self.run_dir is not None:
            return self.run_dir
        return Path("outputs") / (Path(self.data.root).resolve().name if self.data.root else "scenes")

    @property
    def adapts(self) -> bool:
        """Whether the backbone is adapted before it is trained."""
        return "phase4a_explora" in self.pipeline.phases

    def with_defaults(self, values: Mapping[str, object]) -> Self:
        """The same with other defaults: `values` by name, nested as in YAML, but for those that the command sets.

        The values are trusted: they are not validated again.
        """
        update: dict[str, object] = {}
        for name, value in values.items():
            if isinstance(value, Mapping):
                section = {key: v for key, v in value.items() if f"{name}.{key}" not in self.overrides}
                update[name] = getattr(self, name).model_copy(update=section)
            elif name not in self.overrides:
                update[name] = value
        return self.model_copy(update=update)

    @property
    def settled(self) -> Self:
        """The same with model.init_from_explora=null answered by the phases that are asked for."""
        if self.model.init_from_explora is not None:
            return self
        return self.model_copy(update={"model": self.model.model_copy(update={"init_from_explora": self.adapts})})

    def sections(self) -> dict[type[BaseModel], BaseModel]:
        """The sections that phases may declare, by type."""
        settled = self.settled
        values = (getattr(settled, name) for name in type(self).model_fields)
        return {type(value): value for value in values if isinstance(value, BaseModel)}


def compose_config(
    overrides: Sequence[str], *, file: Path | None = None, base: Mapping[str, object] | None = None
) -> RunConfig:
    """Compose the configuration of a run. Later sources win: packaged defaults, `base`, `file`, `overrides`.

    Args:
        overrides: Settings as KEY=VALUE.
        file: A YAML file of settings.
        base: Settings by name, nested or with dotted keys.

    Raises:
        ConfigError: A key does not exist, a value is not allowed, or the file is not YAML.
    """
    explicit = [*_flat(_read_yaml(file) if file else {}), *map(_parse, overrides)]
    given = [*_flat(base or {}), *explicit]
    given = [*_implied(dict(given)), *given]
    chosen, known = groups(), dict(settings())
    for key, value in given:
        _check(key, value, chosen, known)
    folder = Path(str(resources.files("streetvision"))) / "configs"
    try:
        with initialize_config_dir(str(folder), version_base="1.3"):
            composed = compose(config_name="config", overrides=[f"{k}={v}" for k, v in given if k in chosen])
        veiled = {f"\0{number}": value for number, (_, value) in enumerate(given)}
        for (key, _), veil in zip(given, veiled, strict=True):
            if key not in chosen:
                OmegaConf.update(composed, key, veil, force_add=True)
        plain = _unveiled(OmegaConf.to_container(composed, resolve=True, throw_on_missing=True), veiled)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} has no default", f"give it: {error.full_key}=...") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(str(error).strip().splitlines()[0], "write settings as KEY=VALUE") from error
    try:
        config = RunConfig.model_validate(plain)
    except ValidationError as error:
        raise _described(error) from error
    config._overrides = dict(explicit)
    return config


def settings_sha256(config: RunConfig) -> str:
    """Digest of the settings that decide the results of a run, wherever it lies."""
    return sha256_json({kind.__name__: result_affecting(section) for kind, section in config.sections().items()})


def _implied(given: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Whoever asks for phase 4c and does not say how takes the way that learns."""
    phases = given.get("pipeline.phases")
    if isinstance(phases, Sequence) and "phase4c_cvfm" in phases and not given.keys() & {"phase4c", "phase4c.mode"}:
        yield "phase4c", "cvfm"


def unread(given: Iterable[str], read: Collection[type[BaseModel]]) -> list[str]:
    """The keys among `given` whose section is none of those that are `read`; the run itself is always."""
    kinds = {name: field.annotation for name, field in RunConfig.model_fields.items() if name != "run_dir"}
    known = {name for name, kind in kinds.items() if kind in {PipelineConfig, *read}}
    return sorted(key for key in given if key != "run_dir" and key.partition(".")[0] not in known)


@cache
def groups() -> Mapping[str, list[str]]:
    """Group -> the names of its packaged YAML files, for example model -> [dinov3_vits16, ...].

    Groups are those that the defaults list of config.yaml names.
    """
    folder = Path(str(resources.files("streetvision"))) / "configs"
    defaults = safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    names = sorted(name for entry in defaults if isinstance(entry, dict) for name in entry)
    return {name: sorted(file.stem for file in (folder / name).glob("*.yaml")) for name in names}


def settings(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every dotted key that can be set, for example training.epochs, and its type."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from settings(kind, f"{prefix}{name}.")
            continue
        yield f"{prefix}{name}", kind
        if isinstance(field.default, Mapping):
            yield from ((f"{prefix}{name}.{key}", object) for key in field.default)


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _parse(override: str) -> tuple[str, object]:
    """KEY=VALUE as key and value: text is taken as it stands where the setting is a text, as YAML elsewhere."""
    key, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"{override!r} is not a setting", "write settings as KEY=VALUE: training.epochs=5")
    kind = dict(settings()).get(key)
    kinds = set(get_args(kind)) if isinstance(kind, UnionType) else {kind}
    if key in groups() or (kinds & {str, Path} and text != "null"):
        return key, text
    try:
        return key, cast(dict[str, object], OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"])))["value"]
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{key}={text!r} cannot be read: {' '.join(str(error).split())}") from error


def _unveiled(composed: object, veiled: Mapping[str, object]) -> object:
    """What was composed, with the values from outside where something stood for them: their `${` refers to nothing."""
    if isinstance(composed, dict):
        return {name: _unveiled(value, veiled) for name, value in composed.items()}
    return veiled.get(composed, composed) if isinstance(composed, str) else composed


def _read_yaml(file: Path) -> dict[str, object]:
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise ConfigError(f"{str(file)!r} should hold settings by name, and holds {type(content).__name__}")
    return {str(name): value for name, value in content.items()}


def _check(key: str, value: object, choices: Mapping[str, list[str]], known: Mapping[str, object]) -> None:
    if key in choices:
        if value not in choices[key]:
            raise unknown_name(key, str(value), choices[key])
    elif key not in known:
        raise _unknown_key(key, [*choices, *known])
    if any(isinstance(part, str) and "\0" in part for part in (value if isinstance(value, list) else [value])):
        raise ConfigError(f"{key}={value!r}: no text or path holds the character NUL")


def _unknown_key(key: str, known: Sequence[str]) -> ConfigError:
    near = get_close_matches(key, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    section = [name for name in known if name.startswith(f"{key.rpartition('.')[0]}.")] or known
    return ConfigError(f"{key} is not a setting{hint}", f"settings here: {', '.join(section)}")


def _described(error: ValidationError) -> ConfigError:
    first = error.errors(include_url=False)[0]
    key, given = ".".join(str(part) for part in first["loc"]), first["input"]
    if first["type"] == "literal_error" and isinstance(given, str):
        return unknown_name(key, given, re.findall(r"'([^']*)'", first["ctx"]["expected"]))
    cause = first.get("ctx", {}).get("error")
    message = str(cause) if cause else first["msg"][:1].lower() + first["msg"][1:]
    unquoted = first["type"] == "string_type" and isinstance(given, bool | int | float)
    hint = "write it in quotes: in YAML yes, no, on, off and numbers are no text" if unquoted else None
    return ConfigError(f"{key}={given!r}: {message}", hint)
