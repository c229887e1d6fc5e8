import io
import json
import os
import tarfile
from hashlib import sha256
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from streetvision.contracts.errors import DataError
from streetvision.contracts.progress import Silent
from streetvision.data.config import CocoConfig, DataConfig
from streetvision.data.records import RejectedFile
from streetvision.data.sources import importer
from streetvision.data.sources.discovery import list_images
from streetvision.data.sources.exif import read_exif
from streetvision.data.sources.importer import Consistency, import_images
from streetvision.data.sources.webdataset import TarSample, read_shard

CONFIG = DataConfig()
BERLIN = {1: "N", 2: (52.0, 31.0, 12.0), 3: "E", 4: (13.0, 24.0, 18.0)}


def photo(shade: int, *, gps: dict | None = None, taken: str | None = None) -> bytes:
    exif = Image.Exif()
    if taken:
        exif.get_ifd(0x8769)[0x9003] = taken
    if gps:
        exif.get_ifd(0x8825).update(gps)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, 0, 0)).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def natix_like(n: int) -> datasets.Dataset:
    """The features of natix-network-org/roadwork: image, label and scene_description; places are in the EXIF."""
    texts = ("an empty road", "cones next to a digger")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.Value("int64"), "scene_description": datasets.Value("string")}
    )
    rows = [
        {
            "image": {"bytes": photo(9 * number, gps=BERLIN), "path": f"{number}.jpg"},
            "label": number % 2,
            "scene_description": texts[number % 2],
        }
        for number in range(n)
    ]
    return datasets.Dataset.from_list(rows, features=features)


def listed(folder, **columns):
    return list_images(str(folder), class_names=CONFIG.class_names, import_to=Path("unused"), **columns)


def run(source, folder, **options):
    counts = import_images(str(source), folder, config=CONFIG, progress=Silent(), **options)
    listing = listed(folder)
    assert counts["rows"] == len(listing.images)
    return counts, listing


def write_tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def samples(fields):
    """The files of one sample for each dict of fields."""
    files = {}
    for number, values in enumerate(fields):
        files[f"{number}.jpg"] = photo(9 * number)
        files[f"{number}.json"] = json.dumps({"label": number % 2} | values).encode()
    return files


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    for name in CONFIG.class_names:
        (root / name).mkdir(parents=True)
        for number in range(5):
            (root / name / f"{number}.jpg").write_bytes(photo(40 * number + len(name)))
    return root


class TestExif:
    def test_time_and_position(self):
        data = photo(1, gps=BERLIN, taken="2026:05:01 08:30:00")
        assert read_exif(data) == {"taken": "2026-05-01T08:30:00", "latitude": "52.5200000", "longitude": "13.4050000"}

    def test_south_and_west_are_negative(self):
        found = read_exif(photo(1, gps=BERLIN | {1: "S", 3: "W"}))
        assert (found["latitude"], found["longitude"]) == ("-52.5200000", "-13.4050000")

    @pytest.mark.parametrize(
        "gps",
        [
            {2: (52.0, 31.0, 12.0)},
            BERLIN | {2: (91.0, 0.0, 0.0)},
            {1: "N", 2: (0.0, 0.0, 0.0), 3: "E", 4: (0.0, 0.0, 0.0)},
        ],
    )
    def test_an_incomplete_or_impossible_position_is_left_out(self, gps):
        assert read_exif(photo(1, gps=gps)) == {}

    @pytest.mark.parametrize("data", [b"", b"no image", photo(1)[:40], photo(1, taken="yesterday")])
    def test_missing_or_damaged_exif_is_left_out(self, data):
        assert read_exif(data) == {}


class TestSources:
    def test_files_of_folders_are_not_copied(self, photos, tmp_path):
        counts, listing = run(photos, tmp_path / "index")
        assert counts["rows"] == 10
        assert listing.images[0].path == str(photos / "None" / "0.jpg")
        assert {(image.label, Path(image.path).parent.name) for image in listing.images} == {
            (0, "None"),
            (1, "Roadwork"),
        }
        assert not (tmp_path / "index" / "images").exists()

    def test_digest_and_size_are_those_of_the_file(self, photos, tmp_path):
        run(photos, tmp_path / "index")
        row = pq.read_table(tmp_path / "index" / "index.parquet").to_pylist()[0]
        content = Path(row["path"]).read_bytes()
        assert (row["sha256"], row["bytes"]) == (sha256(content).hexdigest(), len(content))

    def test_a_folder_with_its_own_index_is_not_read_from_it(self, photos):
        assert run(photos, photos)[0]["rows"] == 10
        (photos / "None" / "new.jpg").write_bytes(photo(7))
        with pytest.raises(DataError):
            run(photos, photos)
        (photos / "index.parquet").unlink()
        assert run(photos, photos)[0]["rows"] == 11

    def test_copies_have_the_same_bytes_and_can_be_moved(self, photos, tmp_path):
        run(photos, tmp_path / "index", copy=True)
        listing = listed((tmp_path / "index").rename(tmp_path / "moved"))
        for image in listing.images:
            assert sha256((listing.root / image.path).read_bytes()).hexdigest() == Path(image.path).stem

    def test_a_csv_keeps_group_source_and_further_columns(self, photos, tmp_path):
        rows = ["path,label,group,source,weather", "None/0.jpg,0,ride,bus,rain", "Roadwork/1.jpg,1,,,"]
        (photos / "index.csv").write_text("\n".join(rows))
        first, second = run(photos, tmp_path / "index")[1].images
        assert (first.group, first.source, first.columns) == ("ride", "bus", {"weather": "rain"})
        assert (second.group, second.source, second.columns) == (None, None, {})

    def test_labels_json(self, photos, tmp_path):
        entries = [{"filename": "None/0.jpg", "label": 0}, {"filename": "Roadwork/0.jpg", "label": 1}]
        (photos / "labels.json").write_text(json.dumps(entries))
        assert run(photos, tmp_path / "index")[0]["rows"] == 2

    @pytest.mark.parametrize("saved", [True, False])
    def test_a_dataset(self, tmp_path, saved):
        dataset = natix_like(6)
        if saved:
            dataset.save_to_disk(str(tmp_path / "set"))
        else:
            (tmp_path / "set" / "data").mkdir(parents=True)
            dataset.to_parquet(str(tmp_path / "set" / "data" / "train-00000.parquet"))
        _, listing = run(tmp_path / "set", tmp_path / "index")
        assert [image.label for image in listing.images] == [0, 1] * 3
        assert listing.images[1].columns["scene_description"] == "cones next to a digger"
        assert float(listing.images[0].columns["latitude"]) == pytest.approx(52.52)
        assert (listing.root / listing.images[0].path).is_file()

    def test_tars(self, tmp_path):
        shards = tmp_path / "shards"
        shards.mkdir()
        for shard in range(2):
            with tarfile.open(shards / f"{shard}.tar", "w") as archive:
                for number in range(3):
                    metadata = {"weather": "fog", "group": f"ride {shard}", "boxes": [1, 2]}
                    parts = {"jpg": photo(shard * 90 + number), "cls": b"1" if number else b"0"}
                    for suffix, content in (parts | {"json": json.dumps(metadata).encode()}).items():
                        hidden = tarfile.TarInfo(f"a/._{number}.{suffix}")
                        archive.addfile(hidden)
                        info = tarfile.TarInfo(f"../../{number}.{suffix}")
                        info.size = len(content)
                        archive.addfile(info, io.BytesIO(content))
        _, listing = run(shards, tmp_path / "index")
        assert [image.label for image in listing.images] == [0, 1, 1] * 2
        assert [image.group for image in listing.images] == ["ride 0"] * 3 + ["ride 1"] * 3
        assert listing.images[0].columns == {"weather": "fog"}
        assert all((listing.root / image.path).parent == tmp_path / "index" / "images" for image in listing.images)

    def test_the_columns_of_tars_match_in_any_case(self, tmp_path):
        tar = write_tar(tmp_path / "a.tar", samples([{"Ride": "r1", "Source": "bus"}, {"ride": "r2"}, {}]))
        config = CONFIG.model_copy(update={"group_column": "RIDE"})
        import_images(str(tar), tmp_path / "index", config=config, progress=Silent())
        images = listed(tmp_path / "index").images
        assert [image.group for image in images] == ["r1", "r2", None]
        assert [image.source for image in images] == ["bus", None, None]
        assert all(image.columns == {} for image in images)

    @pytest.mark.parametrize("fields", [{"ride": "r"}, {}])
    @pytest.mark.parametrize("setting", ["group_column", "source_column"])
    def test_a_column_that_no_sample_of_the_tars_has(self, tmp_path, setting, fields):
        tar = write_tar(tmp_path / "a.tar", samples([fields] * 3))
        config = CONFIG.model_copy(update={setting: "track"})
        with pytest.raises(DataError, match="'track'") as raised:
            import_images(str(tar), tmp_path / "index", config=config, progress=Silent())
        assert f"data.{setting}" in raised.value.hint
        assert not (tmp_path / "index" / "index.parquet").exists()

    def test_tars_next_to_other_labeled_images_are_refused(self, photos, tmp_path):
        tar = write_tar(photos / "old.tar", {"1.jpg": photo(1), "1.cls": b"1"})
        with pytest.raises(DataError, match=r"old\.tar.*None"):
            run(photos, tmp_path / "index")
        (photos / "index.csv").write_text("path,label\nNone/0.jpg,0\n")
        with pytest.raises(DataError, match=r"old\.tar.*index\.csv"):
            run(photos, tmp_path / "index")
        tar.rename(photos / "._old.tar")
        (photos / "index.csv").unlink()
        assert run(photos, tmp_path / "index")[0]["rows"] == 10

    def test_suffixes_of_tars_in_any_case(self, tmp_path):
        (tmp_path / "shards" / "Roadwork").mkdir(parents=True)
        files = {"0.jpg": photo(1), "0.cls": b"0", "1.jpg": photo(2), "1.cls": b"1"}
        write_tar(tmp_path / "shards" / "A.TAR", files)
        assert run(tmp_path / "shards", tmp_path / "index")[0]["rows"] == 2

    def test_invalid_unicode_in_json(self, tmp_path):
        write_tar(tmp_path / "a.tar", {"1.jpg": photo(1), "1.json": b'{"label": 0, "place": "\\ud800"}'})
        with pytest.raises(DataError, match=r"a\.tar/1\.json is not valid JSON"):
            run(tmp_path / "a.tar", tmp_path / "index")

    @pytest.mark.parametrize("content", [b"no tar", b"\x1f\x8b\x08broken"])
    def test_a_damaged_tar(self, tmp_path, content):
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(DataError, match="cannot be read as a tar"):
            run(tmp_path / "a.tar", tmp_path / "index")


@pytest.mark.parametrize(
    ("kind", "setting"),
    [("folder", "coco"), ("folder", "hf_split"), ("tar", "coco"), ("tar", "hf_split"), ("dataset", "coco")],
)
def test_a_setting_of_another_kind_of_source_is_refused(photos, tmp_path, kind, setting):
    source = photos
    if kind == "tar":
        source = write_tar(tmp_path / "a.tar", samples([{}] * 2))
    elif kind == "dataset":
        source = tmp_path / "set"
        natix_like(2).save_to_disk(str(source))
    value = "test" if setting == "hf_split" else CocoConfig(min_area=0.1)
    config = CONFIG.model_copy(update={setting: value})
    with pytest.raises(DataError, match=rf"data\.{setting}"):
        import_images(str(source), tmp_path / "index", config=config, progress=Silent())
    assert import_images(str(source), tmp_path / "index", config=CONFIG, progress=Silent())["rows"]


def test_images_with_the_same_bytes_in_the_index_are_reported(tmp_path):
    files = samples([{}] * 4) | {"4.jpg": photo(0), "4.json": b'{"label": 0}', "5.jpg": photo(9), "5.cls": b"0"}
    listing = run(write_tar(tmp_path / "a.tar", files), tmp_path / "index")[1]
    assert listing.skipped == (RejectedFile("row 4", "is the same image as row 0"),)  # row 5 has another label


def test_images_whose_text_contradicts_the_label_are_skipped(photos, tmp_path):
    rows = ["None/0.jpg,0,a road", "None/1.jpg,0,Cones!", "Roadwork/0.jpg,1,a CONE", "Roadwork/1.jpg,1,a road"]
    (photos / "index.csv").write_text("\n".join(["path,label,text", *rows, "Roadwork/2.jpg,1,"]))
    counts, listing = run(photos, tmp_path / "index", consistency=Consistency("text", ("cone", "digger")))
    assert [Path(image.path).parent.name for image in listing.images] == ["None", "Roadwork", "Roadwork"]
    assert (counts["rows"], counts["inconsistent"]) == (3, 2)


@pytest.mark.parametrize(
    ("settings", "column"), [({}, "Scene_Text"), ({}, "Group"), ({"group_column": "RIDE"}, "Ride")]
)
def test_the_column_of_the_text_matches_in_any_case_and_may_be_the_group(photos, tmp_path, settings, column):
    rows = ["None/0.jpg,0,a road", "None/1.jpg,0,cones", "Roadwork/0.jpg,1,cones"]
    (photos / "index.csv").write_text("\n".join([f"path,label,{column}", *rows]))
    config = CONFIG.model_copy(update=settings)
    consistency = Consistency(column, ("cone",))
    counts = import_images(str(photos), tmp_path / "index", config=config, consistency=consistency, progress=Silent())
    assert (counts["rows"], counts["inconsistent"]) == (2, 1)


@pytest.mark.parametrize("source", ["tar", "folder"])
def test_a_column_of_the_text_that_no_image_has(photos, tmp_path, source):
    if source == "tar":
        photos = write_tar(tmp_path / "a.tar", samples([{"text": "a road"}, {"text": "cones"}]))
    with pytest.raises(DataError, match="'txet'"):
        run(photos, tmp_path / "index", consistency=Consistency("txet", ("cone",)))
    assert not (tmp_path / "index" / "index.parquet").exists()


def test_unreadable_files_are_counted_and_named(photos, tmp_path):
    (photos / "None" / "empty.jpg").write_bytes(b"")
    (photos / "None" / "a.heic").write_bytes(b"")
    warnings, progress = [], Silent()
    progress.warn = warnings.append
    config = CONFIG.model_copy(update={"max_invalid_fraction": 0.2})
    counts = import_images(str(photos), tmp_path / "index", config=config, progress=progress)
    assert counts["unreadable"] == 1
    assert any("empty.jpg is empty" in warning for warning in warnings)
    assert any("a.heic" in warning for warning in warnings)


def test_an_import_of_too_few_readable_files_is_an_error(photos, tmp_path):
    (photos / "None" / "empty.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="1 of 11 images"):
        run(photos, tmp_path / "index")


def test_the_samples_of_a_tar_with_any_suffix_and_dots_in_names(tmp_path):
    names = ["1.jfif", "1.cls", "2.heic", "2.cls", "IMG.24.01.jpg", "IMG.24.01.cls", "IMG.24.02.jpg", "IMG.24.02.cls"]
    names += ["4.cls", "4.depth.jpg", "4.depth.npy", "4.jpg", "5.depth.png", "5.jpg", "5.seg.png", "5.txt"]
    names += ["6.5.jpg", "6.5.txt", "6.jpg", "6.txt", "7.heic", "7.json", "stray.json"]
    contents = {".cls": b"1", ".txt": b"1", ".npy": bytes(2**20 + 1), ".json": b'{"label": 1}'}
    files = {name: contents.get(Path(name).suffix, name.encode()) for name in names} | {"stray.json": b"{}"}
    found = list(read_shard(write_tar(tmp_path / "x.tar", files)))
    images = {entry.name: entry.image.decode() for entry in found if isinstance(entry, TarSample)}
    expected = ["1.jfif", "IMG.24.01.jpg", "IMG.24.02.jpg", "4.jpg", "5.jpg", "6.5.jpg", "6.jpg"]
    assert images == {f"x.tar/{name.rpartition('.')[0]}": name for name in expected}
    assert [entry.path for entry in found if isinstance(entry, RejectedFile)] == ["x.tar/2", "x.tar/7"]


def test_a_source_without_images(tmp_path):
    with pytest.raises(DataError):
        run(write_tar(tmp_path / "a.tar", {}), tmp_path / "index")
    tar = write_tar(tmp_path / "b.tar", samples([{"text": "cones"}]))
    with pytest.raises(DataError):
        run(tar, tmp_path / "index", consistency=Consistency("text", ("cone",)))


@pytest.mark.parametrize(
    "names",
    [
        ["1.caption.txt", "1.cls", "1.jpg", "2.caption.txt", "2.cls", "2.jpg"],
        ["1.cls", "1.depth.txt", "1.jpg", "2.cls", "2.depth.txt", "2.jpg"],
        ["1.caption.txt", "1.depth.png", "1.edges.png", "1.jpg", "1.cls", "2.jpg", "2.meta.json", "2.cls"],
        ["a.b/1.caption.txt", "a.b/1.cls", "a.b/1.jpg", "a.b/2.cls", "a.b/2.jpg", "a.b/2.seg.png"],
    ],
)
def test_further_files_of_a_sample_are_neither_its_image_nor_its_label(tmp_path, names):
    labels = {".cls": b"1", ".txt": b"a digger", ".json": b"{}"}
    files = {name: labels.get(Path(name).suffix, name.encode()) for name in names}
    found = list(read_shard(write_tar(tmp_path / "x.tar", files)))
    assert [(entry.image.decode(), entry.fields["label"]) for entry in found] == [
        (name, "1") for name in names if name.endswith(".jpg")
    ]


@pytest.mark.parametrize("last", [[], ["b.cls", "b.jpg"]])
def test_samples_with_dots_in_their_names_need_image_and_label(tmp_path, last):
    names = ["i.1.cls", "i.1.jpg", "i.2.cls", "i.3.cls", "i.3.jpg", *last]
    found = list(read_shard(write_tar(tmp_path / "x.tar", dict.fromkeys(names, b"1"))))
    assert [entry.path for entry in found if isinstance(entry, RejectedFile)] == ["x.tar/i.2"]
    assert sum(isinstance(entry, TarSample) for entry in found) == 2 + len(last) // 2
    tar = write_tar(tmp_path / "y.tar", dict.fromkeys(["i.1.jpg", "i.1.cls", "i.2.jpg", *last], b"1"))
    with pytest.raises(DataError, match=r"i\.2 has no label"):
        list(read_shard(tar))


class TestResume:
    @pytest.fixture
    def interrupted(self, photos, tmp_path, monkeypatch):
        """The paths that are read after an import was interrupted at its eighth image, after two complete parts."""
        monkeypatch.setattr(importer, "PART_SIZE", 3)
        read, paths = importer.read_image_bytes, []

        def stop(path):
            if len(paths) == 7:
                raise KeyboardInterrupt
            paths.append(path)
            return read(path)

        monkeypatch.setattr(importer, "read_image_bytes", stop)
        with pytest.raises(KeyboardInterrupt):
            run(photos, tmp_path / "index")
        paths.clear()
        return paths

    def test_it_resumes_and_gives_the_same_index(self, interrupted, photos, tmp_path):
        _, listing = run(photos, tmp_path / "index")
        assert len(interrupted) == 4
        assert [Path(image.path).name for image in listing.images] == [f"{number}.jpg" for number in range(5)] * 2
        assert not (tmp_path / "index" / "parts").exists()

    def test_an_interruption_while_the_parts_are_removed_loses_no_rows(self, photos, tmp_path, monkeypatch):
        monkeypatch.setattr(importer, "PART_SIZE", 3)
        unlink, removed = os.unlink, []

        def stop(path, *arguments, **options):
            if "part-" in os.fspath(path) and not os.fspath(path).endswith(".tmp"):
                removed.append(path)
                if len(removed) == 3:
                    raise KeyboardInterrupt
            unlink(path, *arguments, **options)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "unlink", stop)
            run(photos, tmp_path / "index")
        assert len(list((tmp_path / "index" / "parts").iterdir())) == 2
        assert run(photos, tmp_path / "index")[0]["rows"] == 10

    def test_a_source_that_changed_is_rejected(self, interrupted, photos, tmp_path):
        (photos / "None" / "00.jpg").write_bytes(photo(3))
        with pytest.raises(DataError, match="unfinished import"):
            run(photos, tmp_path / "index")

    @pytest.mark.parametrize("columns", ["group", "source", "weather"])
    def test_metadata_that_changed_are_rejected(self, photos, tmp_path, monkeypatch, columns):
        monkeypatch.setattr(importer, "PART_SIZE", 3)

        def write(value):
            rows = [f"{name}/{number}.jpg,{name},{value}" for name in CONFIG.class_names for number in range(5)]
            (photos / "index.csv").write_text("\n".join([f"path,label,{columns}", *rows]))

        write("a")
        append, appended = importer.IndexParts.append, []

        def stop(*arguments, **options):
            if appended:
                raise KeyboardInterrupt
            appended.append(append(*arguments, **options))

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(importer.IndexParts, "append", stop)
            run(photos, tmp_path / "index")
        write("b")
        with pytest.raises(DataError, match="unfinished import"):
            run(photos, tmp_path / "index")
        write("a")
        assert run(photos, tmp_path / "index")[0]["rows"] == 10

    def test_columns_and_groups_of_earlier_parts_count(self, tmp_path, monkeypatch):
        monkeypatch.setattr(importer, "PART_SIZE", 2)
        tar = write_tar(tmp_path / "a.tar", samples([{"ride": "r"}] * 4 + [{}] * 4))
        config = CONFIG.model_copy(update={"group_column": "ride"})
        warnings, progress = [], Silent()
        progress.warn = warnings.append
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            append, appended = importer.IndexParts.append, []

            def stop(*arguments, **options):
                if len(appended) == 3:
                    raise KeyboardInterrupt
                appended.append(append(*arguments, **options))

            patch.setattr(importer.IndexParts, "append", stop)
            import_images(str(tar), tmp_path / "index", config=config, progress=progress)
        counts = import_images(str(tar), tmp_path / "index", config=config, progress=progress)
        assert counts["rows"] == 8
        assert "4 of 8 images have no group" in warnings[0] and "50%" in warnings[1]

    def test_a_damaged_archive_is_still_an_error(self, tmp_path, monkeypatch):
        monkeypatch.setattr(importer, "PART_SIZE", 3)
        (tmp_path / "shards").mkdir()
        for name in ("a", "b"):
            parts = [(f"{n}.jpg", photo(n)) for n in range(6)] + [(f"{n}.cls", b"%d" % (n % 2)) for n in range(6)]
            write_tar(tmp_path / "shards" / f"{name}.tar", dict(sorted(parts)))
        whole = (tmp_path / "shards" / "a.tar").read_bytes()
        (tmp_path / "shards" / "a.tar").write_bytes(whole[: whole.index(b"5.jpg")])
        append, appended = importer.IndexParts.append, []

        def stop(*arguments, **options):
            if len(appended) == 3:
                raise KeyboardInterrupt
            appended.append(append(*arguments, **options))

        monkeypatch.setattr(importer.IndexParts, "append", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "shards", tmp_path / "index")
        monkeypatch.setattr(importer.IndexParts, "append", append)
        with pytest.raises(DataError, match=r"a\.tar.*to its end"):
            run(tmp_path / "shards", tmp_path / "index")
        assert len(listed(tmp_path / "index").images) == 11


@pytest.mark.parametrize("column", ["ride", "Ride"])
def test_a_column_of_an_index_with_empty_values_may_be_the_group(photos, tmp_path, column):
    rows = ["None/0.jpg,0,r1", "None/1.jpg,0,", "Roadwork/0.jpg,1,r2"]
    (photos / "index.csv").write_text("\n".join(["path,label,ride", *rows]))
    run(photos, tmp_path / "index")
    images = listed(tmp_path / "index", group_column=column).images
    assert [(image.group, image.columns) for image in images] == [("r1", {}), (None, {}), ("r2", {})]


def test_the_group_and_the_source_of_an_index_are_columns_of_it(photos, tmp_path):
    (photos / "index.csv").write_text("path,label,Group,source\nNone/0.jpg,0,r1,bus\nRoadwork/0.jpg,1,r2,\n")
    plain = run(photos, tmp_path / "index")[1].images
    assert listed(tmp_path / "index", group_column="group", source_column="Source").images == plain
    assert [image.group for image in listed(tmp_path / "index", group_column="source").images] == ["bus", None]


class TestDamagedIndex:
    def test_a_file_that_is_not_an_index(self, tmp_path):
        (tmp_path / "index.parquet").write_bytes(b"no parquet")
        with pytest.raises(DataError, match="cannot be read as Parquet"):
            listed(tmp_path)
        pq.write_table(natix_like(2).data.table, tmp_path / "index.parquet")
        with pytest.raises(DataError, match="is not an index: its columns are image, label"):
            listed(tmp_path)

    def test_a_requested_column_that_does_not_exist(self, photos, tmp_path):
        run(photos, tmp_path / "index")
        with pytest.raises(DataError, match="has no column 'ride'"):
            listed(tmp_path / "index", group_column="ride")


def test_the_exif_of_a_png_is_read_without_decoding_pixels(monkeypatch):
    exif = Image.Exif()
    exif[0x132] = "2026:05:04 03:02:01"
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG", exif=exif.tobytes())
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda *_: pytest.fail("unpacked"))
    assert read_exif(buffer.getvalue())["taken"] == "2026-05-04T03:02:01"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("secret.txt", "is not an image"),
        (None, "without bytes or path"),
        ("/dev/zero", "is not a file"),
        ("a\0b", "name"),
    ],
)
def test_a_dataset_cannot_copy_files_of_this_machine_that_are_not_images(tmp_path, path, message):
    (tmp_path / "secret.txt").write_text("s3cret")
    stored_path = None if path is None else str(tmp_path / path)
    images = pa.array(
        [{"bytes": None, "path": stored_path}], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    (tmp_path / "set" / "data").mkdir(parents=True)
    table = pa.table({"image": images, "label": pa.array([1])})
    pq.write_table(table, tmp_path / "set" / "data" / "train-00000.parquet")
    with pytest.raises(DataError, match=message):
        run(tmp_path / "set", tmp_path / "index")
    assert not list((tmp_path / "index").rglob("*.txt"))
