"""One conversion of everything that holds an image to the pixels of its file. Does not import torch.

Shapes: H and W are pixels.
"""

import os
import sys
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np
from PIL import Image

from streetvision.contracts.errors import DataError
from streetvision.data.config import DEFAULT_LIMITS, DecodeLimits
from streetvision.data.image_file import (
    DecodedImage,
    Pixels,
    check_area,
    decode_file,
    decode_pillow,
    read_file,
)
from streetvision.io.resize import DecodeSize
from streetvision.io.user_paths import user_path

if TYPE_CHECKING:
    from torch import Tensor

ImageInput: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | Pixels | Tensor"
"""A path, an encoded image, a Pillow image, or uint8 pixels: an array (H, W, 3) or a tensor (3, H, W)."""
ARRAY_HINT = "pass arrays as (H, W, 3) and tensors as (3, H, W), with values from 0 to 255"


def is_single_image(value: object) -> "TypeGuard[ImageInput]":
    """Whether a value is one image, and not several."""
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray)
    return isinstance(value, kinds) or _is_tensor(value)


def decode_input(
    image: object, *, limits: DecodeLimits = DEFAULT_LIMITS, decode_size: DecodeSize | None = None
) -> DecodedImage:
    """Return the pixels of an image.

    Args:
        image: An ImageInput.
        limits: Largest accepted image.
        decode_size: Smallest size to which a JPEG may be reduced; None: it is not reduced. Loaded pixels never are.

    Raises:
        UndecodableImage: A file or a Pillow image cannot be decoded or exceeds the limits; it is a DataError.
        DataError: A value is not an image, or an array has another shape or type.
        MachineError: A decoder does not work on this machine.
    """
    if isinstance(image, str | os.PathLike):
        return read_file(user_path(os.fsdecode(image)), limits=limits, decode_size=decode_size)
    if isinstance(image, bytes | bytearray | memoryview):
        return decode_file(bytes(image), limits=limits, decode_size=decode_size)
    if isinstance(image, Image.Image):
        return decode_pillow(image, limits=limits, decode_size=decode_size)
    if _is_tensor(image):
        return _whole(_tensor_pixels(image, limits))
    if isinstance(image, np.ndarray):
        return _whole(_array_pixels(image, limits, shape=image.shape))
    raise DataError(f"expected an image, got a value of type {type(image).__name__}", ARRAY_HINT)


def _whole(pixels: Pixels) -> DecodedImage:
    return DecodedImage(pixels, pixels.shape[:2])


def _tensor_pixels(tensor: "Tensor", limits: DecodeLimits) -> Pixels:
    import torch

    usual = not tensor.is_meta and tensor.layout is torch.strided and not tensor.is_nested
    if not usual or tensor.dtype != torch.uint8 or tensor.ndim != 3:
        shape = "" if tensor.is_nested else f" {tuple(tensor.shape)}"
        kind = "without values" if tensor.is_meta else "sparse or nested" if not usual else str(tensor.dtype)
        raise DataError(f"expected a uint8 image with three channels, got a tensor {kind}{shape}", ARRAY_HINT)
    return _array_pixels(tensor.cpu().numpy().transpose(1, 2, 0), limits, shape=tuple(tensor.shape))


def _array_pixels(array: "np.ndarray[Any, Any]", limits: DecodeLimits, *, shape: tuple[int, ...]) -> Pixels:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise DataError(f"expected a uint8 image with three channels, got {array.dtype} {shape}", ARRAY_HINT)
    if np.ma.is_masked(array):
        raise DataError("expected an image, got an array with masked pixels", "fill them first")
    check_area(array.shape[0] * array.shape[1], limits, plain=True)
    pixels: Pixels = np.asarray(array)
    # PyTorch needs writable memory and positive strides, which views of other arrays may not have.
    return pixels if pixels.flags.writeable and min(pixels.strides) > 0 else pixels.copy()


def _is_tensor(value: object) -> "TypeGuard[Tensor]":
    """Whether a value is a torch tensor. Does not import torch: if nothing has imported it, there are no tensors."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)
