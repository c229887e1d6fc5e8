"""Decoded images as tensors, and the resize of every model.

Shapes: H and W are pixels, after EXIF orientation.
"""

from pathlib import Path

import torch

from streetvision.contracts.split_contracts import Row
from streetvision.data.config import DEFAULT_LIMITS, DecodeLimits
from streetvision.data.image_file import Pixels, UndecodableImage, decode_file, decode_pixels, read_file, read_recorded
from streetvision.io.resize import DecodeSize


def decode_image(data: bytes, *, limits: DecodeLimits = DEFAULT_LIMITS) -> torch.Tensor:
    """Decode one image file.

    Returns:
        (3, H, W) uint8 RGB, channels last in memory: a resize is fastest on this layout.

    Raises:
        UndecodableImage: See `decode_pixels`.
    """
    return as_tensor(decode_pixels(data, limits=limits))


def read_image(
    path: Path, *, limits: DecodeLimits = DEFAULT_LIMITS, decode_size: DecodeSize | None = None
) -> torch.Tensor:
    """Decode the image file `path` to (3, H, W) uint8 RGB; see `decode_file` for the arguments.

    Raises:
        UndecodableImage: See `decode_file`; the message names the path.
    """
    return as_tensor(read_file(path, limits=limits, decode_size=decode_size).pixels)


def as_tensor(pixels: Pixels) -> torch.Tensor:
    """Return pixels (H, W, 3) as a tensor (3, H, W) that shares their memory."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


def read_row(
    root: Path, row: Row, *, limits: DecodeLimits = DEFAULT_LIMITS, decode_size: DecodeSize | None = None
) -> torch.Tensor:
    """Decode the image of a row to (3, H, W) uint8 RGB, after its bytes were compared with the recorded digest.

    See `decode_file` for the arguments.

    Raises:
        UndecodableImage: See `decode_file`, or the file is missing or has changed; the message names the path.
    """
    data = read_recorded(root, row, limits=limits)
    try:
        return as_tensor(decode_file(data, limits=limits, decode_size=decode_size).pixels)
    except UndecodableImage as error:
        raise UndecodableImage(error.reason, name=repr(str(root / row.path))) from error
