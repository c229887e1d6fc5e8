"""Images in files, folders, tars and Parquet, listed once each and read where they lie."""

import io
import tarfile
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streetvision.contracts.errors import DataError
from streetvision.data.config import DecodeLimits
from streetvision.data.decode import UndecodableImage
from streetvision.data.sources.image_stream import list_image_refs, read_image_refs
from streetvision.data.sources.parquet_index import IndexParts

PICTURES = {f"{letter}.jpg": letter.encode() * 7 for letter in "abcdefghij"}


def contents(*sources, limits=None):
    """Name -> bytes, or the reason why not."""
    items = list(list_image_refs(sources))
    read = list(read_image_refs(items, **({"limits": limits} if limits else {})))
    assert [item for item, _ in read] == items
    names = [item.name for item in items]
    assert len(set(names)) == len(names)
    return {item.name: data.reason if isinstance(data, UndecodableImage) else data for item, data in read}


def write_tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_parquet(path, images, *, rows_a_group=3):
    pq.write_table(pa.table({"label": [0] * len(images), "image": images}), path, row_group_size=rows_a_group)
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


def test_a_tar_gives_the_bytes_of_each_picture_and_never_unpacks(tmp_path):
    extra = {"../../evil.jpg": b"outside", "a.json": b"{}", "dir/._a.jpg": b"junk"}
    tar = write_tar(tmp_path / "x.tar", PICTURES | extra)
    found = contents(tar)
    assert found == {f"{tar}/{name}": data for name, data in PICTURES.items()} | {f"{tar}/../../evil.jpg": b"outside"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.tar"]


@pytest.mark.parametrize("as_struct", [True, False])
def test_parquet_gives_the_bytes_of_each_row(tmp_path, as_struct):
    images = list(PICTURES.values())
    rows = [{"bytes": data, "path": "p"} for data in images] if as_struct else images
    file = write_parquet(tmp_path / "x.parquet", rows)
    assert contents(file) == {f"{file}#{row}": data for row, data in enumerate(images)}


@given(first=st.integers(0, 9), last=st.integers(0, 9), step=st.integers(1, 4), rows_a_group=st.integers(1, 12))
def test_any_rows_of_a_parquet_file_are_read(tmp_path_factory, first, last, step, rows_a_group):
    file = write_parquet(
        tmp_path_factory.mktemp("rows") / "x.parquet", list(PICTURES.values()), rows_a_group=rows_a_group
    )
    items = list(list_image_refs([file]))[first : last + 1 : step]
    assert [data for _, data in read_image_refs(items)] == [list(PICTURES.values())[item.offset] for item in items]


def test_folders_hold_tars_and_parquet_too_and_tables_without_images_are_passed_over(folder):
    tar = write_tar(folder / "x.tar", {"k.png": b"k"})
    file = write_parquet(folder / "y.parquet", [b"l"])
    pq.write_table(pa.table({"price": [1]}), folder / "prices.parquet")
    found = contents(folder)
    assert found[f"{tar}/k.png"] == b"k"
    assert found[f"{file}#0"] == b"l"
    assert len(found) == len(PICTURES) + 2


def test_an_index_is_the_files_that_it_names(folder, tmp_path):
    row = {"label": 0, "sha256": "", "bytes": 1, "columns": []}
    parts = IndexParts(tmp_path / "import")
    named = [{"path": "images/a.jpg", **row}, {"path": str(folder / "b.jpg"), **row}]
    (tmp_path / "import" / "images").mkdir(parents=True)
    (tmp_path / "import" / "images" / "a.jpg").write_bytes(b"A")
    (parts.parts / "part-of-someone.parquet").parent.mkdir()
    (parts.parts / "part-of-someone.parquet").write_bytes(b"")
    gone = [{"path": name, **row} for name in ("images/gone.jpg", "images/a\0.jpg")]
    parts.append([*named, *gone], until=4, left_out={})
    assert parts.done() == 4
    parts.finish()
    found = list(contents(tmp_path / "import" / "index.parquet").values())
    assert found == [b"A", PICTURES["b.jpg"], "is not there", "is not there"]
    assert len(contents(tmp_path / "import")) == 1


def test_what_cannot_be_read_is_told_and_the_rest_is_read(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", {"a.jpg": b"a" * 600, "b.jpg": b"b" * 2000}).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:2500])
    (tmp_path / "none.tar").write_bytes(b"no tar at all" * 100)
    (tmp_path / "none.parquet").write_bytes(b"no Parquet")
    (tmp_path / "empty.parquet").write_bytes(b"")
    write_parquet(tmp_path / "holes.parquet", [b"l", None, b"m"])
    found = {
        name.removeprefix(f"{tmp_path}/"): told for name, told in contents(tmp_path).items() if "whole" not in name
    }
    assert found["cut.tar/a.jpg"] == b"a" * 600
    assert found["cut.tar"].startswith("cannot be read as an uncompressed tar")
    assert found["none.tar"].startswith("cannot be read as an uncompressed tar")
    assert found["none.parquet"].startswith("cannot be read as Parquet")
    assert found["empty.parquet"].startswith("cannot be read as Parquet")
    assert [found[f"holes.parquet#{row}"] for row in range(3)] == [b"l", "has no bytes", b"m"]


def test_what_has_changed_since_it_was_listed_is_told(tmp_path):
    tar, file = write_tar(tmp_path / "x.tar", PICTURES), write_parquet(tmp_path / "x.parquet", [b"l", b"m"])
    (tmp_path / "a.jpg").write_bytes(b"a")
    items = sorted(list_image_refs([tmp_path]), key=lambda item: item.kind)
    tar.write_bytes(tar.read_bytes()[:600])
    write_parquet(file, [b"l"])
    (tmp_path / "a.jpg").unlink()
    told = {item.name.removeprefix(f"{tmp_path}/"): data for item, data in read_image_refs(items)}
    assert told["a.jpg"].reason == "is not there"
    assert told["x.tar/b.jpg"].reason == "is truncated"
    assert told["x.parquet#0"] == b"l"
    assert "Parquet" in told["x.parquet#1"].reason


def test_images_over_the_limit_are_not_read(tmp_path):
    tar, file = write_tar(tmp_path / "x.tar", PICTURES), write_parquet(tmp_path / "x.parquet", [b"123456789"])
    found = contents(tar, file, limits=DecodeLimits(max_megabytes=1e-6))
    assert len(found) == 11
    assert all("the limit is 1e-06" in told for told in found.values())


def test_each_image_has_one_source(folder, tmp_path):
    with pytest.raises(DataError, match="named twice"):
        contents(folder, folder / "a.jpg")
    with pytest.raises(DataError, match="named twice"):
        contents(folder, folder)
    with pytest.raises(DataError, match="there is no"):
        contents(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        contents(tmp_path / "empty")
    pq.write_table(pa.table({"price": [1]}), tmp_path / "prices.parquet")
    with pytest.raises(DataError, match=r"no column 'image' of bytes.*price"):
        contents(tmp_path / "prices.parquet")


def test_a_listing_is_never_whole_in_memory(tmp_path):
    tar = write_tar(tmp_path / "x.tar", {f"{number:05d}.jpg": b"" for number in range(3000)})
    tracemalloc.start()
    assert sum(1 for _ in list_image_refs([tar])) == 3000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 500_000, "3,000 members kept take over a megabyte"
