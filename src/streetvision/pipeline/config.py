"""Compose YAML files and overrides into a RunConfig. This is the only module that uses Hydra and OmegaConf."""

import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import cache
from importlib import resources
from itertools import chain
from pathlib import Path
from types import UnionType
from typing import Any, Union, cast, get_args, get_origin

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from yaml import YAMLError, safe_load

from streetvision.contracts.errors import ConfigError, unknown_name
from streetvision.contracts.settings import list_setting, no_effect, result_affecting, variants
from streetvision.io.atomic import sha256_json
from streetvision.io.user_paths import user_path
from streetvision.io.yaml_files import read_yaml
from streetvision.pipeline.settings import RunConfig, all_settings, unknown_setting
from streetvision.training.config import DenseConfig, MilConfig

Tree = dict[str, Any]
"""Settings by name, nested by section."""
CVFM_CHOICE = "model.multiview.cvfm.mode"
DEFAULT_FUSIONS = {"mil": MilConfig.model_fields, "dense": DenseConfig.model_fields}
"""Values of phase4c.mode, the default one first -> the settings that they have."""
MAY_BE_PATHS = ("data.root", "model.backbone.name")
"""Settings that are a path or another name."""
STANCE = "hardware.compiler.stance"
WEIGHTS = "model.backbone.weights"


def compose_config(
    overrides: Sequence[str], *, file: Path | None = None, base: Mapping[str, object] | None = None
) -> RunConfig:
    """Compose the configuration of a run. Later sources win: packaged files, `base`, `file`, `overrides`.

    Args:
        overrides: Settings as KEY=VALUE.
        file: A YAML file of settings.
        base: Settings by name, nested or with dotted keys.

    Raises:
        ConfigError: A key does not exist, a value is not allowed, or the file is not YAML.
    """
    given = [*_flat(_read_yaml(file) if file else {}), *map(_parse, overrides)]
    explicit = [(key, _expand_home(key, value)) for key, value in given]
    sources = [*((key, _expand_home(key, value)) for key, value in _flat(base or {})), *explicit]
    for key, value in sources:
        _check(key, value)
    composed = _compose_groups(sources)
    values = dict(sources)
    tree = _complete(_set_defaults(composed, values), RunConfig)
    try:
        config = RunConfig.model_validate(tree)
    except ValidationError as error:
        raise _config_error(error, values) from error
    config._overrides = dict(explicit)
    return config


def settings_sha256(config: RunConfig) -> str:
    """Return the digest of the settings that affect the results of a run, independent of its folder."""
    return sha256_json({kind.__name__: result_affecting(section) for kind, section in config.sections().items()})


@cache
def groups() -> Mapping[str, list[str]]:
    """Return the groups in the defaults list of config.yaml, each with the names of its files."""
    defaults = safe_load((_folder() / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    names = sorted(name for entry in defaults if isinstance(entry, dict) for name in entry)
    return {name: sorted(file.stem for file in (_folder() / name).glob("*.yaml")) for name in names}


def _folder() -> Path:
    return Path(str(resources.files("streetvision"))) / "configs"


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _read_yaml(file: Path) -> Tree:
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise ConfigError(
            f"{str(file)!r} contains {type(content).__name__}, not settings by name", "write lines of KEY: VALUE"
        )
    return {str(name): value for name, value in content.items()}


def _expand_home(key: str, value: object) -> object:
    """Expand `~` in the value of a setting that is a path, or several, or may be one."""
    setting = all_settings().get(key)
    if setting is None or not (key in MAY_BE_PATHS or "Path" in str(setting.type)):
        return value
    if isinstance(value, list | tuple):
        return [_expand_home(key, part) for part in value]
    is_home = isinstance(value, str | Path) and str(value).startswith("~")
    return str(user_path(cast(str, value))) if is_home else value


def _parse(override: str) -> tuple[str, object]:
    """Split KEY=VALUE. The value of a text setting is taken literally, that of any other setting is parsed as YAML."""
    key, equals, text = override.partition("=")
    if not equals:
        example = f"data.root={shlex.quote(override)}" if Path(override).exists() else "training.epochs=5"
        raise ConfigError(f"{override!r} is not a setting", f"write settings as KEY=VALUE, for example {example}")
    if _is_text(key) and text != "null":
        return key, text
    try:
        return key, cast(Tree, OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"])))["value"]
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{key}={text!r} cannot be parsed: {' '.join(str(error).split())}") from error


def _is_text(key: str) -> bool:
    """Whether the value of a setting is text: the name of a file of a group, a string or a path."""
    setting = all_settings().get(key)
    kind = None if setting is None else setting.type
    kinds = set(get_args(kind)) if get_origin(kind) in (Union, UnionType) else {kind}
    return key in groups() or bool(kinds & {str, Path})


def format_overrides(*sources: Mapping[str, object]) -> list[str]:
    """Return Python values of settings as KEY=VALUE, the form in which a command and its worker processes get them.

    Args:
        *sources: Settings by name, nested by section or with dotted keys.

    Raises:
        ConfigError: A setting is given twice, or a value has no text form.
    """
    given: Tree = {}
    for key, value in chain.from_iterable(map(_flat, sources)):
        if key in given:
            raise ConfigError(f"{key} is given twice", "give it once")
        given[key] = value
    return [f"{key}={_as_text(key, value)}" for key, value in given.items()]


def _as_text(key: str, value: object) -> str:
    if isinstance(value, str | os.PathLike) and _is_text(key):
        return os.fspath(value)
    try:
        text = json.dumps(value, default=_plain, ensure_ascii=False)
    except TypeError as error:
        raise ConfigError(
            f"{key}={value!r}: {type(value).__name__} is not a type of a setting",
            "use numbers, text, paths, booleans, lists or None",
        ) from error
    # The escapes of YAML: it reads both halves of a surrogate pair of JSON as characters, and some characters as they
    # are as line breaks.
    return re.sub(r"[^\x00-\x7e]", lambda match: f"\\U{ord(match[0]):08x}", text)


def _plain(value: object) -> object:
    """Paths, and the numbers of NumPy, for JSON."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError


def _check(key: str, value: object) -> None:
    if key in groups():
        if value not in groups()[key]:
            raise unknown_name(key, str(value), groups()[key])
    elif key not in all_settings():
        raise unknown_setting(key, groups())
    parts = value if isinstance(value, list) else [value]
    if "" in parts and "Path" in str(all_settings()[key].type):
        raise ConfigError(f"{key} is an empty path", "check whether a shell variable is unset")
    if any(isinstance(part, str) and "\0" in part for part in parts):
        raise ConfigError(f"{key}={value!r} contains the character NUL", "remove it")


def _compose_groups(sources: Sequence[tuple[str, object]]) -> Tree:
    """Let Hydra compose the packaged files of the selected groups, and set all other keys on the result."""
    chosen = tuple(f"{key}={value}" for key, value in sources if key in groups())
    try:
        composed = deepcopy(_packaged(chosen))
        # OmegaConf would interpolate `${...}` in a user's value, so it only sees placeholders.
        placeholders = {f"\0{number}": value for number, (_, value) in enumerate(sources)}
        for (key, _), placeholder in zip(sources, placeholders, strict=True):
            if key not in groups():
                OmegaConf.update(composed, key, placeholder, force_add=True)
        return cast(Tree, _filled(OmegaConf.to_container(composed, throw_on_missing=True), placeholders))
    except MissingMandatoryValue as error:
        hint = f"set {error.full_key}=..."
        if error.full_key == WEIGHTS:
            hint += (
                f" to a .safetensors or .pth file, or {WEIGHTS}=null model.backbone.pretrained=true to download them"
            )
        raise ConfigError(f"{error.full_key} has no default", hint) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(str(error).strip().splitlines()[0], "write settings as KEY=VALUE") from error


@cache
def _packaged(chosen: tuple[str, ...]) -> DictConfig:
    """Return the packaged files of the selected groups, composed. An experiment composes the same groups many times."""
    with initialize_config_dir(str(_folder()), version_base="1.3"):
        return compose(config_name="config", overrides=list(chosen))


def _filled(composed: object, placeholders: Mapping[str, object]) -> object:
    if isinstance(composed, dict):
        return {name: _filled(value, placeholders) for name, value in composed.items()}
    return placeholders.get(composed, composed) if isinstance(composed, str) else composed


def _set_defaults(tree: Tree, values: Mapping[str, object]) -> Tree:
    """Set the defaults that depend on other sections: the seeds, and the fusion of phase 4c."""
    pipeline, model = tree.setdefault("pipeline", {}), tree["model"]
    phases = pipeline.get("phases")
    fuses = isinstance(phases, list) and "phase4c_cvfm" in phases
    named = model.get("multiview", {}).get("cvfm", {}).get("mode")
    given = {key.split(".")[1] for key in values if key.startswith("phase4c.")}
    # Settings that mil does not have are those of another fusion.
    mode = next((name for name, fields in DEFAULT_FUSIONS.items() if given <= fields.keys()), "cvfm_trained")
    if named is not None:
        mode = f"cvfm_{named}"
    if fuses and not values.keys() & {"phase4c", "phase4c.mode"}:
        tree["phase4c"]["mode"] = mode
    elif CVFM_CHOICE in values and not (fuses and tree["phase4c"]["mode"] == mode):
        condition = f"phase4c.mode={tree['phase4c']['mode']}" if fuses else "phase4c_cvfm is not in pipeline.phases"
        raise no_effect(CVFM_CHOICE, condition, "set 'pipeline.phases=[phase1,phase2,phase4c_cvfm,phase5,phase6]'")
    if "seed" in pipeline:
        sections = [name for name, field in RunConfig.model_fields.items() if _has_seed(variants(field))]
        trees = [tree.setdefault(name, {}) for name in sections if name != "pipeline"]
        trees += [model["backbone"]] if model["backbone"].get("source") == "random" else []
        for section in trees:
            section.setdefault("seed", pipeline["seed"])
    return tree


def _has_seed(models: Sequence[type[BaseModel]]) -> bool:
    return any("seed" in model.model_fields for model in models)


def _complete(tree: Tree, model: type[BaseModel]) -> Tree:
    """Add what a partly given section leaves open: the choice of a union, and the other keys of a mapping."""
    completed = dict(tree)
    for name, field in model.model_fields.items():
        value, models = tree.get(name), variants(field)
        if not isinstance(value, dict):
            continue
        if isinstance(field.default, Mapping):
            completed[name] = {str(key): default for key, default in field.default.items()} | value
        elif len(models) == 1:
            completed[name] = _complete(value, models[0])
        elif models:
            choice = str(field.discriminator)
            value = {choice: getattr(field.default, choice, None)} | value
            variant = next((m for m in models if m.model_fields[choice].default == value[choice]), None)
            completed[name] = _complete(value, variant) if variant else value
    return completed


def _config_error(error: ValidationError, values: Mapping[str, object]) -> ConfigError:
    """Return the first error of pydantic as a ConfigError about a key."""
    first, *others = error.errors(include_url=False)
    place = _Place(first["loc"])
    given, context = first["input"], first.get("ctx", {})
    if first["type"] == "extra_forbidden":
        key = next((name for name in values if f"{name}.".startswith(f"{place.key}.")), place.key)
        allowed = [m.model_fields[place.choice].default for m in place.models if place.name in m.model_fields]
        choice = place.key.removesuffix(place.name) + place.choice
        return no_effect(key, f"{choice}={place.tag}", f"set {choice}={' or '.join(allowed)}")
    if first["type"] == "union_tag_invalid":
        choice = context["discriminator"].strip("'")
        allowed = re.findall(r"'([^']*)'", context["expected_tags"])
        return _unknown_choice(f"{place.key}.{choice}", context["tag"], allowed)
    if (place.key, given) == (STANCE, "performance"):
        return ConfigError(f"torch.compile has no stance {given!r}", f"set {STANCE}=default")
    if first["type"] == "literal_error" and isinstance(given, str) and not others:
        return unknown_name(place.key, given, re.findall(r"'([^']*)'", context["expected"]))
    if cause := context.get("error"):
        message = str(cause)
    else:
        same = [e["msg"] for e in (first, *others) if _Place(e["loc"]).key == place.key]
        message = " or ".join(text[:1].lower() + text[1:] for text in same)
    unquoted = first["type"] == "string_type" and isinstance(given, bool | int | float)
    hint = None
    if unquoted:
        hint = "put the value in double quotes: YAML reads yes, no, on, off and numbers as other types"
        if isinstance(first["loc"][-1], int):
            example = list_setting(place.key.rpartition(".")[0], ["no", "yes"])
            hint = f"{hint}; for a list in a shell: {example}"
    elif first["type"] == "tuple_type" and isinstance(given, str) and not others:
        hint = f"write a list in brackets: {list_setting(place.key, map(str.strip, given.split(',')))}"
    return ConfigError(f"{place.key}={given!r}: {message}", hint)


def _unknown_choice(key: str, value: str, allowed: Sequence[str]) -> ConfigError:
    """Return the error for an unknown choice; the hint names another setting of the section that has such a value."""
    section = key.rpartition(".")[0]
    for other in all_settings().values():
        if other.key.startswith(f"{section}.") and value in get_args(other.type):
            choices = [choice for choice in other.models if choice]
            return ConfigError(
                f"there is no {key} {value!r}", f"set {' '.join([*choices[:1], f'{other.key}={value}'])}"
            )
    return unknown_name(key, value, allowed)


class _Place:
    """Where an error of pydantic is: the key without the tags of unions, and the innermost union around it."""

    def __init__(self, location: Sequence[int | str]) -> None:
        self.models: Sequence[type[BaseModel]] = ()
        self.choice, self.tag, self.name = "", "", ""
        parts: list[str] = []
        model: type[BaseModel] | None = RunConfig
        union: Sequence[type[BaseModel]] = ()
        choice, in_mapping = "", False
        for part in location:
            tagged = next((m for m in union if m.model_fields[choice].default == part), None)
            if tagged is not None:
                self.models, self.choice, self.tag, model, union = union, choice, str(part), tagged, ()
                continue
            if model is None and not (isinstance(part, int) or in_mapping):
                break  # the name of a type in a union of plain types
            parts.append(str(part))
            field = model.model_fields.get(str(part)) if model is not None else None
            models = variants(field) if field else ()
            model = models[0] if len(models) == 1 else None
            if field and len(models) > 1:
                union, choice = models, str(field.discriminator)
            in_mapping = field is not None and isinstance(field.default, Mapping)
        self.key, self.name = ".".join(parts), parts[-1] if parts else ""
