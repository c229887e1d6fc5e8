"""Safe reading and writing of tensors and state dicts: no pickle code is executed, no key is ignored."""

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from streetvision.contracts.errors import ArtifactError
from streetvision.io.atomic import check_regular, open_atomic

MAX_LISTED_KEYS = 5
MAX_DEPTH = 32
"""Levels of lists and mappings in a checkpoint; those of optimizers have about five."""
MISMATCH_HINT = "use weights and a configuration of the same model"


def save_tensors(path: Path, value: Tensor | Mapping[str, Tensor]) -> None:
    """Write a tensor or a state dict atomically. Equal tensors give equal bytes for any file name."""
    content = value if isinstance(value, Tensor) else dict(value)
    # torch.save stores the file name in the archive when it gets a path, but not when it gets a handle.
    with open_atomic(path) as handle:
        try:
            torch.save(content, handle)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch wraps the error of a full disk
                raise error.__context__ from error
            raise


def load_tensor(path: Path) -> Tensor:
    """Return the tensor in `path`, on the CPU; raises ArtifactError for any other content."""
    value = _load(path)
    if not isinstance(value, Tensor):
        raise ArtifactError(f"{str(path)!r} must contain one tensor, not a {type(value).__name__}")
    return value


def validate_logits(path: Path) -> Tensor:
    """Return the finite float32 logits (N, 2) in `path`; raises ArtifactError for any other content."""
    logits = load_tensor(path)
    if logits.ndim != 2 or logits.shape[1] != 2 or len(logits) == 0 or logits.dtype != torch.float32:
        raise ArtifactError(f"{str(path)!r}: expected float32 logits (N, 2), got {logits.dtype} {tuple(logits.shape)}")
    if not torch.isfinite(logits).all():
        raise ArtifactError(f"{str(path)!r}: logits must be finite; some values are not finite")
    return logits


def validate_labels(path: Path, *, n: int) -> Tensor:
    """Return the int64 labels (n,) of 0 and 1 in `path`; raises ArtifactError for any other content."""
    labels = load_tensor(path)
    if labels.shape != (n,) or labels.dtype != torch.int64:
        raise ArtifactError(f"{str(path)!r}: expected int64 labels ({n},), got {labels.dtype} {tuple(labels.shape)}")
    if not ((labels == 0) | (labels == 1)).all():
        raise ArtifactError(f"{str(path)!r}: labels must be 0 or 1")
    return labels


def load_state(path: Path) -> dict[str, Tensor]:
    """Return the state dict in `path` (.safetensors or torch format), on the CPU; raises ArtifactError otherwise."""
    value = _load(path)
    if not isinstance(value, dict) or not all(isinstance(v, Tensor) for v in value.values()):
        raise ArtifactError(f"{str(path)!r} must contain a state dict: a mapping from names to tensors")
    return {str(name): tensor for name, tensor in value.items()}


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return the dict of plain values and tensors in `path`, on the CPU; raises ArtifactError for any other content."""
    value = _load(path)
    if not isinstance(value, dict):
        raise ArtifactError(f"{str(path)!r} must contain a checkpoint, not a {type(value).__name__}")
    return value


def load_into(module: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load `state` into `module`.

    Args:
        module: the module to fill.
        state: its complete state dict.
        source: name of the weights in error messages.

    Raises:
        ArtifactError: a key is missing, unexpected or has another shape.
    """
    expected = module.state_dict()
    check_keys(expected, state, source=source)
    mismatches = [
        f"{name} {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if tensor.shape != state[name].shape
    ]
    if mismatches:
        raise ArtifactError(f"{source} does not fit: {_first_keys(mismatches)}", MISMATCH_HINT)
    module.load_state_dict(dict(state), strict=True)


def check_keys(expected: Iterable[str], found: Iterable[str], *, source: str) -> None:
    """Raise ArtifactError that lists missing and unexpected keys, unless both sets of keys are equal."""
    expected_keys, found_keys = set(expected), set(found)
    problems = []
    if missing := sorted(expected_keys - found_keys):
        problems.append(f"missing {_first_keys(missing)}")
    if unexpected := sorted(found_keys - expected_keys):
        problems.append(f"unexpected {_first_keys(unexpected)}")
    if problems:
        raise ArtifactError(f"{source} does not fit: {'; '.join(problems)}", MISMATCH_HINT)


def _load(path: Path) -> object:
    try:
        check_regular(path)
        if path.suffix == ".safetensors":
            return load_file(path)
        # torch writes uncompressed archives; a compressed one may expand to far more than its file size, and so may one
        # whose entries share their bytes.
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                    raise ValueError("it is compressed")
                if sum(entry.file_size for entry in entries) > path.stat().st_size:
                    raise ValueError("its entries are larger than the file")
        value: object = torch.load(path, map_location="cpu", weights_only=True)
        _check_dense(value)
        return value
    except ArtifactError:
        raise
    except OSError as error:
        raise ArtifactError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except Exception as error:  # the readers raise many types on damaged files
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise ArtifactError(f"{str(path)!r} is damaged or not a tensor file: {reason}") from error


def _check_dense(value: object) -> None:
    """Raise ValueError unless all tensors in `value` are ordinary dense tensors with their full storage.

    Every container is visited once: a pickle may contain one list in many places, and itself.
    """
    pending, seen = [(value, 0)], set[int]()
    while pending:
        item, depth = pending.pop()
        if isinstance(item, Tensor):
            if item.layout is not torch.strided or item.is_quantized or item.is_complex() or item.is_meta:
                raise ValueError("it contains a tensor that is sparse, quantized, complex or without values")
            if item.numel() * item.element_size() > item.untyped_storage().nbytes():
                raise ValueError("it contains a tensor with more values than its storage")
        if not isinstance(item, Mapping | list | tuple | set | frozenset):
            continue
        if id(item) in seen:
            continue
        seen.add(id(item))
        if depth == MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
        pending += [(child, depth + 1) for child in (item.values() if isinstance(item, Mapping) else item)]


def _first_keys(names: list[str]) -> str:
    more = f" and {len(names) - MAX_LISTED_KEYS} more" if len(names) > MAX_LISTED_KEYS else ""
    return ", ".join(names[:MAX_LISTED_KEYS]) + more
