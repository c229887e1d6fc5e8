"""YAML and overrides in, one typed configuration out: the only module that knows Hydra and OmegaConf."""

import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import get_args

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, ValidationError
from yaml import YAMLError, safe_load

from streetvision.contracts.errors import ConfigError, unknown_name
from streetvision.data.augmentation import AugmentationConfig
from streetvision.data.datamodule import LoaderConfig
from streetvision.data.index import DataConfig
from streetvision.data.scenes import SceneConfig
from streetvision.models.module import ModelConfig
from streetvision.pipeline.settings import (
    EvaluationConfig,
    Phase2Config,
    Phase5Config,
    Phase6Config,
    PipelineConfig,
)
from streetvision.training.config import TrainingConfig


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
    training: TrainingConfig
    phase2: Phase2Config
    phase5: Phase5Config
    phase6: Phase6Config
    evaluation: EvaluationConfig

    @property
    def root(self) -> Path:
        """The run folder."""
        if self.run_dir is not None:
            return self.run_dir
        return Path("outputs") / (Path(self.data.root).resolve().name if self.data.root else "scenes")

    def sections(self) -> dict[type[BaseModel], BaseModel]:
        """The sections that phases may declare, by type."""
        values = (getattr(self, name) for name in type(self).model_fields)
        return {type(value): value for value in values if isinstance(value, BaseModel)}


def compose_config(overrides: Sequence[str], *, file: Path | None = None) -> RunConfig:
    """The configuration of a run: packaged defaults, then the settings in `file`, then `overrides` (KEY=VALUE).

    Raises ConfigError for a key that is no setting, a value that is not allowed, or a file that is not YAML.
    """
    changes = [_for_hydra(change) for change in (*(_file_overrides(file) if file else ()), *overrides)]
    folder = Path(str(resources.files("streetvision"))) / "configs"
    try:
        with initialize_config_dir(str(folder), version_base="1.3"):
            composed = compose(config_name="config", overrides=changes)
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} has no default", f"give it: {error.full_key}=...") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(str(error).strip().splitlines()[0], "write settings as KEY=VALUE") from error
    try:
        return RunConfig.model_validate(plain)
    except ValidationError as error:
        raise ConfigError(*_describe(error)) from error


def groups() -> dict[str, list[str]]:
    """Group -> the names of its packaged YAML files, for example model -> [dinov3_vits16, ...]."""
    folder = Path(str(resources.files("streetvision"))) / "configs"
    return {g.name: sorted(f.stem for f in g.glob("*.yaml")) for g in sorted(folder.iterdir()) if g.is_dir()}


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


def as_overrides(values: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    """Nested settings as KEY=VALUE, in Hydra's own quoting."""
    choices = groups()
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from as_overrides(value, f"{key}.")
        elif key in choices:
            yield f"{key}={value}"
        else:
            yield f"{key}={_quoted(value)}"


def _quoted(value: object) -> str:
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_quoted(item) for item in value) + "]"
    return json.dumps(value)


def _file_overrides(file: Path) -> Iterator[str]:
    try:
        content = safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {str(file)!r}: {error.strerror}") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(file)!r} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{str(file)!r} should hold settings by name, and holds {type(content).__name__}")
    return as_overrides(content)


def _for_hydra(change: str) -> str:
    """A checked KEY=VALUE in Hydra's grammar; a path or name is quoted, so that any sign may stand in it."""
    key, equals, value = change.partition("=")
    if not equals:
        raise ConfigError(f"{change!r} is not a setting", "write settings as KEY=VALUE, for example training.epochs=5")
    choices, known = groups(), dict(settings())
    if key in choices:
        if value not in choices[key]:
            raise unknown_name(key, value, choices[key])
        return change
    if key not in known:
        raise _unknown_key(key, [*choices, *known])
    kinds = get_args(known[key]) if isinstance(known[key], UnionType) else (known[key],)
    if {str, Path} & set(kinds) and value not in {"", "null", "???"} and value[0] not in "'\"$":
        value = _quoted(value)
    return f"++{key}={value}"


def _unknown_key(key: str, known: Sequence[str]) -> ConfigError:
    near = get_close_matches(key, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    section = [name for name in known if name.startswith(f"{key.rpartition('.')[0]}.")] or known
    return ConfigError(f"{key} is not a setting{hint}", f"settings here: {', '.join(section)}")


def _describe(error: ValidationError) -> tuple[str, str | None]:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    cause = first.get("ctx", {}).get("error")
    message = str(cause) if cause else first["msg"][:1].lower() + first["msg"][1:]
    return f"{key}={first['input']!r}: {message}", None
