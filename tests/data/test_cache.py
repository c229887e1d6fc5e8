import io
import shutil

import pytest
import torch
from PIL import Image

from streetvision.contracts.progress import Silent
from streetvision.contracts.split_contracts import Row
from streetvision.data.cache import ImageCache
from streetvision.data.config import DEFAULT_LIMITS
from streetvision.data.decode import read_image
from streetvision.data.image_file import UndecodableImage
from streetvision.io.atomic import sha256_file
from streetvision.io.resize_tensor import fit_tensor
from tests.data.test_datamodule import rows_of


@pytest.fixture
def rows(scenes):
    return [
        Row(path=row.path, label=row.label, sha256=sha256_file(scenes / row.path), width=96, height=72, brightness=0.5)
        for row in rows_of(scenes)
    ]


def build(cache, rows, root, workers=2):
    return cache.build(rows, root=root, limits=DEFAULT_LIMITS, workers=workers, progress=Silent())


def test_copies_are_small_and_similar_to_the_originals(scenes, rows, tmp_path):
    cache = ImageCache(tmp_path, pixels=36)
    assert build(cache, rows, scenes) == len(rows)
    for row in rows:
        copy = read_image(cache.path(row, root=scenes))
        assert copy.shape == (3, 36, 48)
        original = fit_tensor(read_image(scenes / row.path), (32, 32))
        assert (fit_tensor(copy, (32, 32)).int() - original.int()).abs().float().mean() < 6


def test_only_missing_copies_are_made(scenes, rows, tmp_path):
    cache = ImageCache(tmp_path, pixels=36)
    build(cache, rows[:5], scenes)
    existing = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")}
    assert build(cache, rows, scenes) == len(rows) - 5
    assert all(path.stat().st_mtime_ns == time for path, time in existing.items())
    assert build(cache, rows, scenes) == 0


def test_equal_content_at_another_path_shares_the_copy(scenes, rows, tmp_path):
    cache = ImageCache(tmp_path / "cache", pixels=36)
    build(cache, rows, scenes)
    moved = tmp_path / "moved"
    shutil.copytree(scenes, moved)
    assert build(cache, rows, moved) == 0


def test_copies_depend_on_the_size_and_not_on_the_workers(scenes, rows, tmp_path):
    first, second = (ImageCache(tmp_path / name, pixels=36) for name in "ab")
    build(first, rows, scenes, workers=1)
    build(second, rows, scenes, workers=4)
    for row in rows:
        assert first.path(row, root=scenes).read_bytes() == second.path(row, root=scenes).read_bytes()
    assert first.path(rows[0], root=scenes) != ImageCache(tmp_path / "a", pixels=40).path(rows[0], root=scenes)


def test_a_small_image_is_read_from_the_original(scenes, rows, tmp_path):
    cache = ImageCache(tmp_path, pixels=72)
    assert build(cache, rows, scenes) == 0
    assert cache.path(rows[0], root=scenes) == scenes / rows[0].path


def test_a_photo_is_upright_in_its_copy(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    jpeg = io.BytesIO()
    Image.new("RGB", (80, 40), "red").save(jpeg, "JPEG", exif=exif)
    (tmp_path / "photo.jpg").write_bytes(jpeg.getvalue())
    row = Row(
        path="photo.jpg", label=0, sha256=sha256_file(tmp_path / "photo.jpg"), width=40, height=80, brightness=0.5
    )
    cache = ImageCache(tmp_path / "cache", pixels=20)
    build(cache, [row], tmp_path)
    assert read_image(cache.path(row, root=tmp_path)).shape == (3, 40, 20)


def test_no_copy_is_made_of_a_file_that_has_changed(rows, scenes, tmp_path):
    changed = shutil.copytree(scenes, tmp_path / "photos")
    (changed / rows[0].path).write_bytes((changed / rows[0].path).read_bytes() + b"x")
    with pytest.raises(UndecodableImage, match="has changed since") as caught:
        build(ImageCache(tmp_path / "cache", pixels=36), rows[:1], changed)
    assert rows[0].path in caught.value.message


def test_the_error_names_a_missing_image(rows, tmp_path):
    with pytest.raises(UndecodableImage, match="does not exist"):
        build(ImageCache(tmp_path, pixels=36), rows[:1], tmp_path / "nowhere")
    assert not torch.tensor([path.suffix == ".jpg" for path in tmp_path.rglob("*")]).any()
