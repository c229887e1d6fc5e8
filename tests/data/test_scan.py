import io
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from streetvision.contracts.errors import DataError
from streetvision.contracts.progress import Silent
from streetvision.contracts.split_contracts import Row
from streetvision.data import scan as scan_module
from streetvision.data.config import DecodeLimits, LoaderConfig
from streetvision.data.decode import decode_image
from streetvision.data.grouping.perceptual_hash import compute_hash
from streetvision.data.records import ImageListing, ImageRecord, RejectedFile
from streetvision.data.scan import check_invalid_fraction, mean_luminance, scan_images
from streetvision.data.sources.discovery import list_images
from streetvision.data.sources.unlabeled import scan_unlabeled
from streetvision.synthetic.scenes import SceneConfig, draw_scene

NAMES = ("None", "Roadwork")
REAL_DATA = os.environ.get("STREETVISION_REAL_DATA")

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")


def picture(shade: int, *, kind: str = "PNG", size: tuple[int, int] = (8, 6), **options) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size, shade).save(buffer, kind, **options)
    return buffer.getvalue()


def scan_of(folder: Path, images: list[tuple[ImageRecord, bytes | None]], **options):
    for record, data in images:
        if data is not None:
            (folder / record.path).write_bytes(data)
    listing = ImageListing(folder, tuple(record for record, _ in images))
    return scan_images(listing, class_names=NAMES, **options)


def test_rows_have_digest_size_and_the_listed_metadata(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated = picture(9, kind="JPEG", exif=exif)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "b.png").write_bytes(picture(1))
    absolute = str(elsewhere / "b.png")
    record = ImageRecord("a.jpg", 1, "ride", "bus", {"sky": "blue"})
    scan = scan_of(tmp_path, [(record, rotated), (ImageRecord(absolute, 0), None)])
    assert scan.index.rows == (
        Row("a.jpg", 1, sha256(rotated).hexdigest(), 6, 8, 0.0353, "ride", "bus", {"sky": "blue"}),
        Row(absolute, 0, sha256(picture(1)).hexdigest(), width=8, height=6, brightness=0.0039),
    )
    assert scan.index.root == tmp_path
    assert scan.index.class_names == NAMES
    assert (scan.invalid, scan.duplicates) == ((), 0)


def test_brightness_is_the_mean_luminance():
    colors = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], dtype=torch.uint8)
    assert [mean_luminance(color.view(3, 1, 1)) for color in colors] == [0.299, 0.587, 0.114, 1.0]
    half = torch.tensor([0, 255], dtype=torch.uint8).expand(3, 4, 2)
    assert mean_luminance(half) == 0.5


def test_rows_keep_the_order_of_the_listing(tmp_path):
    images = [(ImageRecord(f"{number}.png", number % 2), picture(number)) for number in (5, 3, 9, 0, 7)]
    rows = scan_of(tmp_path, images).index.rows
    assert [row.path for row in rows] == ["5.png", "3.png", "9.png", "0.png", "7.png"]


def test_the_root_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    index = scan_of(Path(), [(ImageRecord("a.png", 0), picture(1))]).index
    assert index.root == tmp_path
    assert len(index.rows) == 1


def test_invalid_files_are_reported_with_their_reason(tmp_path):
    images = [
        (ImageRecord("good.png", 0), picture(1)),
        (ImageRecord("cut.jpg", 0), picture(2, kind="JPEG")[:-9]),
        (ImageRecord("gone.png", 1), None),
        (ImageRecord("large.png", 1), picture(3, size=(100, 100))),
    ]
    scan = scan_of(tmp_path, images, limits=LoaderConfig(max_megapixels=0.025).limits)
    assert [row.path for row in scan.index.rows] == ["good.png"]
    cut, gone, large = scan.invalid
    assert cut == RejectedFile("cut.jpg", "is truncated")
    assert gone == RejectedFile("gone.png", "does not exist")
    assert large.path == "large.png"
    assert "0.01 megapixels" in large.reason
    assert "loader.max_megapixels" in large.reason
    assert scan.invalid_fraction == 0.75


def test_damaged_images_are_named_and_left_out_or_used(tmp_path, capfd):
    buffer = io.BytesIO()
    Image.effect_noise((96, 96), 90).save(buffer, "JPEG")
    cut = buffer.getvalue()[:2000] + b"\xff\xd9"
    images = [(ImageRecord("good.jpg", 0), buffer.getvalue()), (ImageRecord("cut.jpg", 1), cut)]
    scan = scan_of(tmp_path, images)
    assert [row.path for row in scan.index.rows] == ["good.jpg"]
    assert [file.path for file in scan.damaged] == ["cut.jpg"]
    assert scan.invalid == scan.damaged
    assert scan.invalid_fraction == 0.5
    assert [file["path"] for file in scan.report()["damaged"]] == ["cut.jpg"]
    with pytest.raises(DataError) as caught:
        check_invalid_fraction(scan, max_invalid_fraction=0.05, report=Path("unused"))
    assert "data.damaged_images=use" in caught.value.hint
    used = scan_of(tmp_path, images, damaged_images="use")
    assert [row.path for row in used.index.rows] == ["good.jpg", "cut.jpg"]
    assert used.damaged == scan.damaged
    assert (used.invalid, used.invalid_fraction) == ((), 0)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_file_that_ends_before_its_last_pixel_is_never_used(tmp_path, kind):
    whole = picture(90, kind=kind, size=(96, 96))
    images = [(ImageRecord("whole", 0), whole), (ImageRecord("cut", 1), whole[: len(whole) // 2])]
    scan = scan_of(tmp_path, images, damaged_images="use")
    assert [row.path for row in scan.index.rows] == ["whole"]
    assert [file.path for file in scan.invalid] == ["cut"]
    assert scan.damaged == ()


class TestCopies:
    def groups(self, tmp_path, *images: tuple[str, int, str | None]) -> dict[str, str | None]:
        """Scan images given as (name, shade, group) and return the group of each."""
        records = [(ImageRecord(name, 0, group), picture(shade)) for name, shade, group in images]
        return {row.path: row.group for row in scan_of(tmp_path, records).index.rows}

    def test_copies_without_a_group_get_one(self, tmp_path):
        groups = self.groups(tmp_path, ("a", 1, None), ("b", 1, None), ("c", 2, None))
        assert groups["a"] == groups["b"] == f"copies of {sha256(picture(1)).hexdigest()[:12]}"
        assert groups["c"] is None

    def test_a_copy_joins_the_group_of_the_other(self, tmp_path):
        groups = self.groups(tmp_path, ("a", 1, None), ("b", 1, "ride"), ("c", 2, "ride"))
        assert groups == {"a": "ride", "b": "ride", "c": "ride"}

    def test_groups_joined_in_a_chain_become_one(self, tmp_path):
        groups = self.groups(
            tmp_path, ("a", 1, "z"), ("b", 1, "y"), ("c", 2, "y"), ("d", 2, "x"), ("e", 3, "z"), ("f", 4, "w")
        )
        assert groups == {"a": "x", "b": "x", "c": "x", "d": "x", "e": "x", "f": "w"}

    def test_a_joined_group_keeps_the_name_that_sorts_first(self, tmp_path):
        groups = self.groups(tmp_path, ("a", 1, "x"), ("b", 1, "z"), ("c", 2, "y"), ("d", 2, "z"))
        assert set(groups.values()) == {"x"}

    def test_the_order_of_the_listing_does_not_matter(self, tmp_path):
        images = [("a", 1, "z"), ("b", 1, "y"), ("c", 2, "y"), ("d", 2, "x"), ("e", 3, "z"), ("f", 3, None)]
        assert self.groups(tmp_path, *images) == self.groups(tmp_path, *reversed(images))

    def test_a_path_that_is_listed_twice_becomes_one_row(self, tmp_path):
        assert self.groups(tmp_path, ("a", 1, "y"), ("a", 1, "x"), ("b", 2, "y")) == {"a": "x", "b": "x"}

    def test_duplicates_are_counted(self, tmp_path):
        images = [(ImageRecord(name, 0), picture(shade)) for name, shade in [("a", 1), ("b", 1), ("c", 1), ("d", 2)]]
        assert scan_of(tmp_path, images).duplicates == 2

    def test_equal_bytes_with_both_labels_are_all_invalid(self, tmp_path):
        images = [(ImageRecord(name, label), picture(1)) for name, label in [("a", 0), ("b", 1), ("c", 1)]]
        scan = scan_of(tmp_path, [*images, (ImageRecord("d", 1), picture(2))])
        assert [row.path for row in scan.index.rows] == ["d"]
        assert scan.invalid == (
            RejectedFile("a", "is the same image as b, which has the other label"),
            RejectedFile("b", "is the same image as a, which has the other label"),
            RejectedFile("c", "is the same image as a, which has the other label"),
        )


def scene_jpeg(size: tuple[int, int], **options) -> bytes:
    buffer = io.BytesIO()
    scene = Image.fromarray(draw_scene(3, SceneConfig()).image).resize(size, Image.Resampling.BICUBIC)
    scene.save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_reduced_and_its_row_describes_the_whole_image(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = scene_jpeg((2400, 1600), exif=exif)
    scan = scan_of(tmp_path, [(ImageRecord("large.jpg", 1), data)], with_hashes=True)
    row, pixels = scan.index.rows[0], decode_image(data)
    assert (row.height, row.width) == tuple(pixels.shape[1:])
    assert row.brightness == pytest.approx(mean_luminance(pixels), abs=0.002)
    whole = compute_hash(pixels)
    for found, expected in zip(scan.hashes.hashes[0].tolist(), whole.hashes, strict=True):
        assert (found ^ expected).bit_count() <= 2
    assert np.abs(scan.hashes.thumbnails[0].astype(int) - whole.thumbnail).mean() < 1


def test_damage_at_the_end_of_a_large_jpeg_is_found(tmp_path):
    data = bytearray(scene_jpeg((2400, 1600)))
    data[-len(data) // 50 : -200] = b"\xff\x00" * ((len(data) // 50 - 200) // 2)
    scan = scan_of(tmp_path, [(ImageRecord("large.jpg", 1), bytes(data)), (ImageRecord("b.png", 0), picture(0))])
    assert [file.path for file in (*scan.damaged, *scan.invalid)][:1] == ["large.jpg"]


def test_too_many_invalid_files_raise_and_name_the_report(tmp_path):
    images = [(ImageRecord(f"bad{number}.png", 0), b"no image") for number in range(5)]
    scan = scan_of(tmp_path, [*images, (ImageRecord("good.png", 0), picture(1))])
    with pytest.raises(DataError) as caught:
        check_invalid_fraction(scan, max_invalid_fraction=0.05, report=Path("run/data_report.json"))
    reason = "is not a JPEG, PNG, WebP, BMP, GIF or TIFF image"
    assert caught.value.message == (
        f"5 of 6 images of data.root {str(tmp_path)!r} cannot be used (83.3%; the limit is 5.0%): "
        f"bad0.png {reason}; bad1.png {reason}; bad2.png {reason}; and 2 more"
    )
    assert "run/data_report.json" in caught.value.hint
    assert "damaged_images" not in caught.value.hint


def test_the_limit_of_invalid_files_is_inclusive(tmp_path):
    scan = scan_of(tmp_path, [(ImageRecord("bad.png", 0), b""), (ImageRecord("good.png", 0), picture(1))])
    check_invalid_fraction(scan, max_invalid_fraction=0.5, report=Path("unused"))
    with pytest.raises(DataError):
        check_invalid_fraction(scan, max_invalid_fraction=0.49, report=Path("unused"))


def test_the_report_is_json_and_names_every_file(tmp_path):
    (tmp_path / "good.png").write_bytes(picture(1))
    listing = ImageListing(
        tmp_path,
        (ImageRecord("good.png", 0), ImageRecord("gone.png", 1)),
        (RejectedFile("notes.txt", "does not have the suffix of an image"),),
    )
    report = json.loads(json.dumps(scan_images(listing, class_names=NAMES).report()))
    assert report["invalid"] == [{"path": "gone.png", "reason": "does not exist"}]
    assert report["skipped"] == [{"path": "notes.txt", "reason": "does not have the suffix of an image"}]
    assert (report["rows"], report["duplicates"], report["invalid_fraction"]) == (1, 0, 0.5)


def test_skipped_files_among_unlabeled_images_are_reported(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(picture(3))
    (photos / "notes.txt").write_text("")
    (photos / "more").symlink_to(tmp_path)
    scan = scan_unlabeled([photos], limits=DecodeLimits(), progress=Silent())
    assert [row.path for row in scan.index.rows] == [str(photos / "a.png")]
    assert {file.path: file.reason for file in scan.skipped} == {
        str(photos / "notes.txt"): "does not have the suffix of an image",
        str(photos / "more"): "is a link to a folder, which is not followed",
    }


def test_progress_counts_every_image(tmp_path):
    class Counting:
        def track(self, items, *, total, label):
            self.total, self.count = total, 0
            for item in items:
                self.count += 1
                yield item

    progress = Counting()
    scan_of(tmp_path, [(ImageRecord(f"{shade}.png", 0), picture(shade)) for shade in range(7)], progress=progress)
    assert (progress.total, progress.count) == (7, 7)


def test_an_interrupt_does_not_wait_for_queued_images(tmp_path, monkeypatch):
    started = []

    def slow(record, *, root, limits, with_hash):
        started.append(record.path)
        time.sleep(0.01)
        return RejectedFile(record.path, "is slow")

    class Interrupting:
        def track(self, items, *, total, label):
            yield next(iter(items))
            raise KeyboardInterrupt

    monkeypatch.setattr(scan_module, "_scan_one", slow)
    monkeypatch.setattr(scan_module, "ThreadPoolExecutor", lambda _: ThreadPoolExecutor(2))
    with pytest.raises(KeyboardInterrupt):
        scan_of(tmp_path, [(ImageRecord(f"{number}.png", 0), None) for number in range(300)], progress=Interrupting())
    assert len(started) < 30


@pytest.mark.skipif(not REAL_DATA, reason="STREETVISION_REAL_DATA is not set: no real photographs on this machine")
def test_real_traffic_signs_all_decode():
    root = Path(REAL_DATA or "") / "gtsrb_roadwork"
    listing = list_images(str(root), class_names=("no_roadwork", "roadwork"), import_to=Path("unused"))
    scan = scan_images(listing, class_names=("no_roadwork", "roadwork"))
    assert len(scan.index.rows) == 1980
    assert scan.invalid == ()
    first = scan.index.rows[0]
    assert Image.open(root / first.path).size == (first.width, first.height)
