"""Tensors and state dicts to and from disk: no pickle is executed, no key is dropped in silence."""

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from streetvision.contracts.errors import ArtifactError
from streetvision.io.atomic import open_atomic

SHOWN_KEYS = 5
CHECK_PAIR = "check that model and weights belong together"
"""What to do about weights that do not fit."""


def save_tensors(path: Path, value: Tensor | Mapping[str, Tensor]) -> None:
    """Write a tensor or a state dict, atomically; equal tensors give equal bytes whatever the file's name."""
    content = value if isinstance(value, Tensor) else dict(value)
    with open_atomic(path) as handle:
        try:
            torch.save(content, handle)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch hides a full disk behind an error of its own
                raise error.__context__ from error
            raise


def load_tensor(path: Path) -> Tensor:
    """The one tensor in `path`, on the CPU; raises ArtifactError when it holds anything else."""
    value = _load(path)
    if not isinstance(value, Tensor):
        raise ArtifactError(f"{str(path)!r} should hold one tensor and holds a {type(value).__name__}")
    return value


def validate_logits(path: Path) -> Tensor:
    """The (N, 2) finite float32 logits in `path`; raises ArtifactError otherwise."""
    logits = load_tensor(path)
    if logits.ndim != 2 or logits.shape[1] != 2 or len(logits) == 0 or logits.dtype != torch.float32:
        raise ArtifactError(f"{str(path)!r}: expected float32 logits (N, 2), came {logits.dtype} {tuple(logits.shape)}")
    if not torch.isfinite(logits).all():
        raise ArtifactError(f"{str(path)!r}: logits hold values that are not finite")
    return logits


def validate_labels(path: Path, *, n: int) -> Tensor:
    """The (n,) int64 labels of 0 and 1 in `path`; raises ArtifactError otherwise."""
    labels = load_tensor(path)
    if labels.shape != (n,) or labels.dtype != torch.int64:
        raise ArtifactError(f"{str(path)!r}: expected int64 labels ({n},), came {labels.dtype} {tuple(labels.shape)}")
    if not ((labels == 0) | (labels == 1)).all():
        raise ArtifactError(f"{str(path)!r}: labels must be 0 or 1")
    return labels


def load_state(path: Path) -> dict[str, Tensor]:
    """The state dict in `path` (.safetensors or a torch file), on the CPU; raises ArtifactError otherwise."""
    value = _load(path)
    if not isinstance(value, dict) or not all(isinstance(v, Tensor) for v in value.values()):
        raise ArtifactError(f"{str(path)!r} should hold a state dict: a mapping from names to tensors")
    return {str(name): tensor for name, tensor in value.items()}


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The plain values and tensors in a checkpoint, on the CPU; raises ArtifactError when it holds anything else."""
    value = _load(path)
    if not isinstance(value, dict):
        raise ArtifactError(f"{str(path)!r} should hold a checkpoint and holds a {type(value).__name__}")
    return value


def load_into(module: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Fill `module` from `state`; raises ArtifactError that names keys that are missing, unexpected or misshapen."""
    expected = module.state_dict()
    check_keys(expected, state, source=source)
    wrong = [k for k, v in expected.items() if v.shape != state[k].shape]
    if wrong:
        shapes = (f"{k} {tuple(state[k].shape)}, expected {tuple(expected[k].shape)}" for k in wrong)
        raise ArtifactError(f"{source} does not fit: {_some(list(shapes))}", CHECK_PAIR)
    module.load_state_dict(dict(state), strict=True)


def check_keys(expected: Iterable[str], found: Iterable[str], *, source: str) -> None:
    """Raise ArtifactError that names the missing and unexpected keys unless both sets are the same."""
    wanted, given = set(expected), set(found)
    parts = []
    if missing := sorted(wanted - given):
        parts.append(f"missing {_some(missing)}")
    if unexpected := sorted(given - wanted):
        parts.append(f"unexpected {_some(unexpected)}")
    if parts:
        raise ArtifactError(f"{source} does not fit: {'; '.join(parts)}", CHECK_PAIR)


def _load(path: Path) -> object:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _check_unpacked(path)
        value: object = torch.load(path, map_location="cpu", weights_only=True)
        for tensor in _tensors_in(value):
            _check_plain(tensor)
        return value
    except OSError as error:
        raise ArtifactError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except Exception as error:  # on damaged bytes, the readers raise nearly every type there is
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise ArtifactError(f"{str(path)!r} is damaged or not a tensor file: {reason}") from error


def _check_unpacked(path: Path) -> None:
    """Raise unless the file holds its bytes as they are: torch writes them so, and packed ones may be far more."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is compressed")


def _tensors_in(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors_in(part)


def _check_plain(tensor: Tensor) -> None:
    """Raise for a tensor that torch would rather stumble over later, or that claims more values than came with it."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
        raise ValueError("it holds a tensor that is sparse, quantized, complex or without values")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError("it holds a tensor of more values than were stored")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN_KEYS} more" if len(names) > SHOWN_KEYS else ""
    return ", ".join(names[:SHOWN_KEYS]) + more
