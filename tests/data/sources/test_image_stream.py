"""Images in files, folders, tars and Parquet files, listed once each and read without unpacking."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streetvision.contracts.errors import DataError
from streetvision.data.config import DecodeLimits
from streetvision.data.file_search import LeftOut, search_folder
from streetvision.data.image_file import UndecodableImage
from streetvision.data.sources.image_stream import list_image_refs, read_image_refs
from streetvision.data.sources.parquet_index import IndexParts

PICTURES = {f"{letter}.jpg": letter.encode() * 7 for letter in "abcdefghij"}


def contents(*sources, limits=None):
    """Name -> bytes, or the reason why there are none."""
    refs = list(list_image_refs(sources))
    read = list(read_image_refs(refs, **({"limits": limits} if limits else {})))
    assert [ref for ref, _ in read] == refs
    names = [ref.name for ref in refs]
    assert len(set(names)) == len(names)
    return {ref.name: data.reason if isinstance(data, UndecodableImage) else data for ref, data in read}


def write_tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_parquet(path, images, *, rows_per_group=3):
    pq.write_table(pa.table({"label": [0] * len(images), "image": images}), path, row_group_size=rows_per_group)
    return path


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    (root / "deep" / "er").mkdir(parents=True)
    for name, data in PICTURES.items():
        (root / ("deep/er" if name > "d" else ".") / name).write_bytes(data)
    (root / "notes.txt").write_text("no image")
    (root / ".hidden.jpg").write_bytes(b"x")
    return root


def test_a_folder_is_searched_to_any_depth(folder):
    found = contents(folder)
    assert {Path(name).name: data for name, data in found.items()} == PICTURES
    assert all(Path(name).is_absolute() for name in found)


def test_a_tar_gives_the_bytes_of_each_image_and_is_not_unpacked(tmp_path):
    extra = {"../../evil.jpg": b"outside", "a.json": b"{}", "dir/._a.jpg": b"junk"}
    tar = write_tar(tmp_path / "x.tar", PICTURES | extra)
    found = contents(tar)
    assert found == {f"{tar}/{name}": data for name, data in PICTURES.items()} | {f"{tar}/../../evil.jpg": b"outside"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.tar"]


@pytest.mark.parametrize("source", [".", "x.tar"])
def test_images_of_other_formats_in_a_tar_are_left_out_with_a_reason(tmp_path, source):
    write_tar(tmp_path / "x.tar", {"x.heic": b"x", "y.jpg": b"y", "y.cls": b"1", "._z.heic": b"z"})
    left_out = LeftOut()
    assert [ref.size for ref in list_image_refs([tmp_path / source], left_out=left_out)] == [1]
    (file,) = left_out.first
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "x.heic").touch()
    assert file.path == str(tmp_path / "x.tar" / "x.heic")
    assert file.reason == next(search_folder(tmp_path / "photos")).reason


@pytest.mark.parametrize("as_struct", [True, False])
def test_parquet_gives_the_bytes_of_each_row(tmp_path, as_struct):
    images = list(PICTURES.values())
    rows = [{"bytes": data, "path": "p"} for data in images] if as_struct else images
    file = write_parquet(tmp_path / "x.parquet", rows)
    assert contents(file) == {f"{file}#{row}": data for row, data in enumerate(images)}


@given(first=st.integers(0, 9), last=st.integers(0, 9), step=st.integers(1, 4), rows_per_group=st.integers(1, 12))
def test_any_rows_of_a_parquet_file_are_read(tmp_path_factory, first, last, step, rows_per_group):
    file = write_parquet(
        tmp_path_factory.mktemp("rows") / "x.parquet", list(PICTURES.values()), rows_per_group=rows_per_group
    )
    refs = list(list_image_refs([file]))[first : last + 1 : step]
    assert [data for _, data in read_image_refs(refs)] == [list(PICTURES.values())[ref.offset] for ref in refs]


def test_folders_may_have_tars_and_parquet_and_tables_without_images_are_ignored(folder):
    tar = write_tar(folder / "x.tar", {"k.png": b"k"})
    file = write_parquet(folder / "y.parquet", [b"l"])
    pq.write_table(pa.table({"price": [1]}), folder / "prices.parquet")
    found = contents(folder)
    assert found[f"{tar}/k.png"] == b"k"
    assert found[f"{file}#0"] == b"l"
    assert len(found) == len(PICTURES) + 2


def test_an_index_gives_the_files_that_it_lists(folder, tmp_path):
    row = {"label": 0, "sha256": "", "bytes": 1, "columns": []}
    parts = IndexParts(tmp_path / "import")
    indexed = [{"path": "images/a.jpg", **row}, {"path": str(folder / "b.jpg"), **row}]
    (tmp_path / "import" / "images").mkdir(parents=True)
    (tmp_path / "import" / "images" / "a.jpg").write_bytes(b"A")
    (parts.parts / "part-of-someone.parquet").parent.mkdir()
    (parts.parts / "part-of-someone.parquet").write_bytes(b"")
    missing = [{"path": name, **row} for name in ("images/missing.jpg", "images/a\0.jpg")]
    too_long = {"path": f"{'x' * 300}.jpg", **row}
    parts.append([too_long, *indexed, *missing], until=5, skipped={})
    assert parts.done() == 5
    parts.finish()
    found = list(contents(tmp_path / "import" / "index.parquet").values())
    assert found.pop(0).startswith("cannot be read: ")
    assert found == [b"A", PICTURES["b.jpg"], "does not exist", "does not exist"]
    assert len(contents(tmp_path / "import")) == 1


def test_a_file_that_is_listed_twice_is_read_twice(folder):
    (ref,) = list_image_refs([folder / "a.jpg"])
    assert [data for _, data in read_image_refs([ref, ref])] == [PICTURES["a.jpg"]] * 2


def test_unreadable_content_is_reported_and_the_rest_is_read(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", {"a.jpg": b"a" * 600, "b.jpg": b"b" * 2000}).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:2500])
    (tmp_path / "none.tar").write_bytes(b"no tar at all" * 100)
    (tmp_path / "none.parquet").write_bytes(b"no Parquet")
    (tmp_path / "empty.parquet").write_bytes(b"")
    write_parquet(tmp_path / "holes.parquet", [b"l", None, b"m"])
    found = {
        name.removeprefix(f"{tmp_path}/"): content
        for name, content in contents(tmp_path).items()
        if "whole" not in name
    }
    assert found["cut.tar/a.jpg"] == b"a" * 600
    assert found["cut.tar"].startswith("cannot be read as an uncompressed tar")
    assert found["none.tar"].startswith("cannot be read as an uncompressed tar")
    assert found["none.parquet"].startswith("cannot be read as Parquet")
    assert found["empty.parquet"].startswith("cannot be read as Parquet")
    assert [found[f"holes.parquet#{row}"] for row in range(3)] == [b"l", "has no bytes", b"m"]


def test_changes_after_the_listing_are_reported(tmp_path):
    tar, file = write_tar(tmp_path / "x.tar", PICTURES), write_parquet(tmp_path / "x.parquet", [b"l", b"m"])
    (tmp_path / "a.jpg").write_bytes(b"a")
    refs = sorted(list_image_refs([tmp_path]), key=lambda ref: ref.kind)
    tar.write_bytes(tar.read_bytes()[:600])
    write_parquet(file, [b"l"])
    (tmp_path / "a.jpg").unlink()
    found = {ref.name.removeprefix(f"{tmp_path}/"): data for ref, data in read_image_refs(refs)}
    assert found["a.jpg"].reason == "does not exist"
    assert found["x.tar/b.jpg"].reason == "is truncated"
    assert found["x.parquet#0"] == b"l"
    assert "Parquet" in found["x.parquet#1"].reason


def test_images_over_the_limit_are_not_read(tmp_path):
    tar, file = write_tar(tmp_path / "x.tar", PICTURES), write_parquet(tmp_path / "x.parquet", [b"123456789"])
    found = contents(tar, file, limits=DecodeLimits(max_megabytes=1e-6))
    assert len(found) == 11
    assert all("the limit is 1e-06" in reason for reason in found.values())


def test_each_image_has_one_source(folder, tmp_path):
    with pytest.raises(DataError, match="given twice"):
        contents(folder, folder / "a.jpg")
    with pytest.raises(DataError, match="given twice"):
        contents(folder, folder)
    with pytest.raises(DataError, match="does not exist"):
        contents(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no images"):
        contents(tmp_path / "empty")
    pq.write_table(pa.table({"price": [1]}), tmp_path / "prices.parquet")
    with pytest.raises(DataError, match=r"no column 'image' of bytes.*price"):
        contents(tmp_path / "prices.parquet")


MEASURE_A_LISTING = """
import sys, tracemalloc
from pathlib import Path
from streetvision.data.sources.image_stream import list_image_refs
next(iter(list_image_refs([Path(sys.argv[1])])))  # imports PyArrow
tracemalloc.start()
members = sum(1 for _ in list_image_refs([Path(sys.argv[1])]))
print(members, tracemalloc.get_traced_memory()[1])
"""


def test_a_listing_is_streamed(tmp_path):
    tar = write_tar(tmp_path / "x.tar", {f"{number:05d}.jpg": b"" for number in range(3000)})
    # In a process of its own: tracemalloc also counts what threads of other tests allocate.
    command = [sys.executable, "-c", MEASURE_A_LISTING, str(tar)]
    members, peak = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert members == 3000
    assert peak < 500_000, "3,000 members kept take over a megabyte"
