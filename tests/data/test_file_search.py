"""The one listing of images that every command uses."""

import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from streetvision.bundle.batch.files import list_files
from streetvision.contracts.errors import DataError
from streetvision.data.config import DataConfig
from streetvision.data.file_search import LeftOut, existing_name, missing_reason, search_folder
from streetvision.data.records import RejectedFile
from streetvision.data.sources.discovery import list_images, list_unlabeled
from streetvision.data.sources.image_stream import list_image_refs

NAMES = ("None", "Roadwork")


@pytest.fixture
def photos(tmp_path):
    """A class folder with everything that file systems, cameras and operating systems leave in one."""
    root = tmp_path / "photos"
    folder = root / "Roadwork"
    for name in (
        "a.jpg",
        "b.JPE",
        "deep/er/c.png",
        "folder.jpg/d.jpg",
        "._a.jpg",
        ".thumbnails/a.jpg",
        "__MACOSX/a.jpg",
        "@eaDir/a.jpg",
        "Thumbs.db",
        ".DS_Store",
        "e.HEIC",
        "f.avif",
        "notes.txt",
        "old.zip",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.jpg").touch()
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    (folder / "link.jpg").symlink_to(tmp_path / "elsewhere" / "x.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (root / "None").mkdir()
    (root / "None" / "g.jpg").touch()
    return root


USED = {"a.jpg", "b.JPE", "c.png", "d.jpg", "link.jpg", "loop.jpg"}
LEFT_OUT = {"e.HEIC", "f.avif", "notes.txt", "old.zip", "more"}


def test_all_commands_list_the_same_images(photos):
    folder = photos / "Roadwork"
    train = list_images(str(photos), class_names=NAMES, import_to=photos)
    predict, shards = LeftOut(), LeftOut()
    listed = list_files([folder], predict)
    refs = list(list_image_refs([folder], left_out=shards))
    unlabeled = list_unlabeled([folder])
    assert {Path(image.path).name for image in train.images} == USED | {"g.jpg"}
    assert {Path(name).name for name, _ in listed} == {Path(ref.name).name for ref in refs} == USED
    assert {Path(image.path).name for image in unlabeled.images} == USED
    for files in (train.skipped, predict.first, shards.first, unlabeled.skipped):
        assert {Path(file.path).name for file in files} == LEFT_OUT
    assert [name for name, _ in listed] == sorted(name for name, _ in listed)


def test_the_reasons_name_format_and_link(photos):
    reasons = {Path(file.path).name: file.reason for file in search_folder(photos / "Roadwork") if file.reason}
    assert "HEIC" in reasons["e.HEIC"] and "convert" in reasons["e.HEIC"]
    assert "link" in reasons["more"]


def test_a_hidden_folder_that_is_named_is_searched(tmp_path):
    (tmp_path / ".frames").mkdir()
    (tmp_path / ".frames" / "a.jpg").touch()
    assert [name for name, _ in list_files([tmp_path / ".frames"], LeftOut())] == [str(tmp_path / ".frames" / "a.jpg")]


def test_the_error_of_a_folder_without_images_lists_its_files(tmp_path):
    with pytest.raises(DataError) as caught:
        list_files([tmp_path], LeftOut())
    assert caught.value.hint is None
    for name in ("a.txt", "b.zip"):
        (tmp_path / name).touch()
    with pytest.raises(DataError) as caught:
        list_files([tmp_path], LeftOut())
    files = caught.value.hint.partition("left out: ")[2].split("; ")
    assert sorted(file.split()[0] for file in files) == [str(tmp_path / "a.txt"), str(tmp_path / "b.zip")]


@pytest.fixture
def closed_folder(photos, monkeypatch):
    """A sub-folder that may not be read, also for root."""
    closed = photos / "Roadwork" / "closed"
    closed.mkdir()
    scandir, stat = os.scandir, os.stat

    def refuse_scandir(path):
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    def refuse_stat(path, **options):
        if isinstance(path, str | Path) and closed in Path(path).parents:
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(os, "scandir", refuse_scandir)
    monkeypatch.setattr(os, "stat", refuse_stat)
    return closed


def test_a_folder_that_cannot_be_read_is_never_left_out(photos, closed_folder):
    with pytest.raises(DataError, match=r"closed.*cannot be read: Permission denied"):
        list_images(str(photos), class_names=NAMES, import_to=photos)
    with pytest.raises(DataError, match="closed"):
        list_unlabeled([photos])
    listed = dict(list_files([photos / "Roadwork"], LeftOut()))
    assert listed[str(closed_folder)].reason == "cannot be read: Permission denied"
    refs = {ref.name: ref for ref in list_image_refs([photos / "Roadwork"])}
    assert refs[str(closed_folder)].reason == "cannot be read: Permission denied"
    assert len(listed) == len(refs) == len(USED) + 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
def test_a_data_root_that_cannot_be_read_is_a_data_error(tmp_path):
    # In a process of another user, because root may read everything.
    root = Path("/tmp") / f"streetvision-closed-{os.getpid()}"  # noqa: S108 (tmp_path is closed to other users)
    root.mkdir(mode=0o700)
    code = (
        "import os, pathlib; from streetvision.data.sources.discovery import list_images; os.setuid(65534)\n"
        f"try: list_images({str(root)!r}, class_names=('None', 'Roadwork'), import_to=pathlib.Path('.'))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    finally:
        shutil.rmtree(root)
    assert done.stdout.startswith("DataError") and "cannot be read" in done.stdout


def test_deep_folders_do_not_exhaust_the_stack(tmp_path):
    here, depth = tmp_path, 300
    for _ in range(depth):
        here = here / "d"
        here.mkdir()
    (here / "a.jpg").touch()
    sys.setrecursionlimit(max(250, len(__import__("inspect").stack()) + 100))
    try:
        assert len(list(list_image_refs([tmp_path]))) == 1
    finally:
        sys.setrecursionlimit(1000)


def test_a_path_that_is_too_long_is_listed_for_its_error(tmp_path):
    (tmp_path / "a.jpg").touch()
    given = [Path("x" * 300 + ".jpg"), tmp_path / "a.jpg"]
    assert [path for _, path in list_files(given, LeftOut())] == given
    with pytest.raises(DataError, match="cannot be read"):
        list(list_image_refs(given))


class TestUnicode:
    @pytest.mark.parametrize("in_table", ["NFC", "NFD"])
    @pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
    def test_names_of_files_and_folders_match_in_any_form(self, tmp_path, in_table, on_disk):
        name = unicodedata.normalize(on_disk, "Straße é/Café.jpg")
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
        (tmp_path / "b.jpg").touch()
        listed = unicodedata.normalize(in_table, "Straße é/Café.jpg")
        (tmp_path / "index.csv").write_text(f"path,label\n{listed},0\nb.jpg,1\n", encoding="utf-8")
        images = list_images(str(tmp_path), class_names=NAMES, import_to=tmp_path).images
        assert (tmp_path / images[0].path).exists()
        assert existing_name(Path("/"), f"{tmp_path}/{listed}") == f"{tmp_path}/{name}"

    def test_both_forms_on_disk_are_two_files(self, tmp_path):
        names = [unicodedata.normalize(form, "é.jpg") for form in ("NFC", "NFD")]
        for name in names:
            (tmp_path / name).touch()
        assert [existing_name(tmp_path, name) for name in names] == names

    def test_class_names_match_in_any_form(self, tmp_path):
        composed, decomposed = (unicodedata.normalize(form, "Chaussée") for form in ("NFC", "NFD"))
        for folder in ("None", decomposed):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "a.jpg").touch()
        images = list_images(str(tmp_path), class_names=("None", composed), import_to=tmp_path).images
        assert {image.label for image in images} == {0, 1}
        with pytest.raises(ValueError, match="two different names"):
            DataConfig(class_names=(composed, decomposed))


@pytest.mark.parametrize(
    ("listed", "exists", "expected"),
    [
        ("images\\a.jpg", "images/a.jpg", "write /"),
        ("images/a.JPG", "images/a.jpg", "images/a.jpg"),
        ("images/a", "images/a.jpg", "images/a.jpg"),
        ("a.jpg", "images/a.jpg", "images/a.jpg"),
        ("day/a.jpg", "images/day/a.jpg", "images/day/a.jpg"),
        ("C:\\photos\\a.jpg", "a.jpg", "another computer"),
    ],
)
def test_a_missing_file_is_reported_with_what_lies_there(tmp_path, listed, exists, expected):
    (tmp_path / exists).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / exists).touch()
    assert expected in missing_reason(tmp_path, listed)


def test_left_out_files_are_counted_and_the_first_are_named():
    left_out = LeftOut()
    assert left_out.lines() == []
    for number in range(70):
        left_out.add(RejectedFile(f"{number}.txt", "is text"))
    lines = left_out.lines()
    assert "70" in lines[0] and "0.txt is text" in lines[1] and "20 more" in lines[-1]
