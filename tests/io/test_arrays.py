import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from streetvision.contracts.errors import ArtifactError
from streetvision.io.arrays import read_arrays


def read(path, **options):
    return read_arrays(path, name="the file", hint="write it again", **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint64, torch.int8, torch.bool])
def test_arrays_and_metadata_are_read(dtype, tmp_path):
    tensor = torch.tensor([[0, 1], [1, 0]]).to(dtype)
    save_file({"a": tensor}, tmp_path / "file", {"header": "text"})
    arrays, metadata = read(tmp_path / "file")
    np.testing.assert_array_equal(arrays["a"], tensor.numpy(), strict=True)
    assert metadata == {"header": "text"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e8m0fnu, torch.complex64])
def test_arrays_of_other_types_are_refused(dtype, tmp_path):
    save_file({"a": torch.zeros(3), "b": torch.zeros(3).to(dtype)}, tmp_path / "file")
    with pytest.raises(ArtifactError):
        read(tmp_path / "file")


def test_files_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "damaged").write_bytes(b"damaged")
    save_file({"a": torch.zeros(3)}, tmp_path / "large")
    for name, limit in (("missing", None), ("damaged", None), ("large", 10), (".", None)):
        with pytest.raises(ArtifactError):
            read(tmp_path / name, limit=limit)
