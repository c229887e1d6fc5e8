"""Read the arrays of a safetensors file with NumPy. Does not import torch."""

from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from streetvision.contracts.errors import ArtifactError
from streetvision.io.atomic import check_regular

NUMPY_TYPES = {"BOOL", "U8", "I8", "U16", "I16", "F16", "U32", "I32", "F32", "U64", "I64", "F64"}
"""Types of safetensors that NumPy has."""


class ArrayFile(NamedTuple):
    """The content of a safetensors file."""

    arrays: dict[str, NDArray[Any]]
    metadata: dict[str, str]


def read_arrays(path: Path, *, name: str, hint: str, limit: int | None = None) -> ArrayFile:
    """Read all arrays of a safetensors file, and its metadata.

    Args:
        path: The file.
        name: What the file is, for the message.
        hint: Hint of the error.
        limit: Largest size of the file in bytes.

    Raises:
        ArtifactError: The file is missing, damaged or too large, or has an array of a type that NumPy does not have.
    """
    try:
        check_regular(path, limit=limit)
        with safe_open(path, framework="numpy") as file:
            types = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
            if other := next((key for key, kind in types.items() if kind not in NUMPY_TYPES), None):
                raise ArtifactError(f"cannot read {name} {str(path)!r}: {other} has type {types[other]}", hint)
            return ArrayFile({key: file.get_tensor(key) for key in types}, file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"cannot read {name} {str(path)!r}: {str(error).splitlines()[0]}", hint) from error
