import json
import os
from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError

from streetvision.contracts.errors import DataError
from streetvision.contracts.progress import Silent
from streetvision.contracts.split_contracts import Split
from streetvision.data.config import DEFAULT_LIMITS, DataConfig, GroupingConfig
from streetvision.data.records import ImageListing, ImageRecord, RejectedFile, group_warnings, parse_label
from streetvision.data.scan import scan_images
from streetvision.data.sources.discovery import class_names_warning, is_dataset, list_images, list_unlabeled
from streetvision.data.sources.unlabeled import scan_unlabeled, select_unlabeled

NAMES = ("None", "Roadwork")
REAL_DATA = os.environ.get("STREETVISION_REAL_DATA")


def listing_of(root, **options):
    return list_images(str(root), class_names=NAMES, import_to=Path(root).parent / "imported", **options)


def error_of(root, **options) -> DataError:
    with pytest.raises(DataError) as caught:
        listing_of(root, **options)
    return caught.value


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def write_csv(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "index.csv"
    path.write_bytes(text.encode(encoding))
    return path


class TestConfig:
    def test_defaults(self):
        config = DataConfig()
        assert config.fractions == {
            Split.TRAIN: 0.60,
            Split.VAL_SELECT: 0.15,
            Split.VAL_CALIB: 0.15,
            Split.VAL_TEST: 0.10,
        }
        assert config.class_names == NAMES

    def test_fractions_are_keyed_by_split_name(self):
        fractions = {"train": 0.4, "val_select": 0.2, "val_calib": 0.2, "val_test": 0.2}
        assert DataConfig(fractions=fractions).fractions[Split.TRAIN] == 0.4

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"fractions": {"train": 0.5, "val_select": 0.2, "val_calib": 0.2, "val_test": 0.2}}, "sum to 1, not 1.1"),
            ({"fractions": {"train": 1.0}}, "each of train, val_select, val_calib, val_test"),
            ({"fractions": {"train": 0.8, "val_select": 0.2, "val_calib": 0, "val_test": 0}}, "a share above 0"),
            ({"class_names": ("Roadwork", "roadwork ")}, "two different names"),
            ({"class_names": ("", "roadwork")}, "two different names"),
            ({"max_invalid_fraction": 1.5}, "less than or equal to 1"),
            ({"max_bad": 0.1}, "Extra inputs"),
        ],
    )
    def test_invalid_settings_are_rejected(self, change, message):
        with pytest.raises(ValidationError, match=message):
            DataConfig(**change)


class TestFolders:
    def test_class_folders_in_any_case_and_at_any_depth(self, tmp_path):
        touch(tmp_path, "NONE/b.JPG", "NONE/a.png", "roadwork/day1/c.webp")
        assert listing_of(tmp_path).images == (
            ImageRecord("NONE/a.png", 0),
            ImageRecord("NONE/b.JPG", 0),
            ImageRecord("roadwork/day1/c.webp", 1),
        )
        assert listing_of(tmp_path).root == tmp_path

    def test_skipped_files_are_reported_and_system_files_are_not(self, tmp_path):
        touch(tmp_path, "none/a.png", "none/notes.txt", "roadwork/b.png", "unsure/c.png", "loose.jpg")
        touch(tmp_path, "none/.DS_Store", "none/Thumbs.db", "none/.cache/d.png", ".git/e.png", "desktop.ini")
        assert [image.path for image in listing_of(tmp_path).images] == ["none/a.png", "roadwork/b.png"]
        assert set(listing_of(tmp_path).skipped) == {
            RejectedFile("loose.jpg", "is not in a class folder"),
            RejectedFile("none/notes.txt", "does not have the suffix of an image"),
            RejectedFile("unsure", "is not a class folder (images in it: 1)"),
        }

    @pytest.mark.parametrize("name", ["None/1.jpg", "None/1.heic"])
    def test_a_class_in_a_format_that_is_not_read(self, tmp_path, name):
        touch(tmp_path, name, "Roadwork/.a.heic", "Roadwork/a.txt", "Roadwork/b.heic")
        first = "Roadwork/b.heic" if name.endswith("jpg") else name
        assert error_of(tmp_path).hint.startswith(f"{first} has a format that is not read (HEIC)")
        with pytest.raises(DataError) as caught:
            list_unlabeled([tmp_path / "Roadwork"])
        assert caught.value.hint.startswith(f"{tmp_path}/Roadwork/b.heic has a format that is not read (HEIC)")

    def test_a_missing_class_is_reported_with_the_folders_found(self, tmp_path):
        touch(tmp_path, "none/a.png", "none/b.png", "works/c.png", "roadwork/readme.txt")
        error = error_of(tmp_path)
        found = "found: none 2, roadwork 0, works 1"
        assert error.message == f"data.root {str(tmp_path)!r} has no images of class 'Roadwork' ({found})"
        assert "'data.class_names=[none,works]'" in error.hint

    def test_one_class_is_accepted_unless_another_folder_may_be_the_other_one(self, tmp_path):
        touch(tmp_path, "roadwork/a.png", "notes/readme.txt")
        assert [image.label for image in listing_of(tmp_path, one_class=True).images] == [1]
        touch(tmp_path, "clear/b.png")
        error = error_of(tmp_path, one_class=True)
        assert "no images of class 'None'" in error.message
        assert "'data.class_names=[clear,roadwork]'" in error.hint
        assert len(listing_of(tmp_path, one_class=True, other_folders=True).images) == 1
        touch(tmp_path, "none/c.png")
        assert len(listing_of(tmp_path, one_class=True).images) == 2

    @pytest.mark.parametrize("name", ["labels.parquet", "features.parquet", "data/features.parquet"])
    def test_parquet_files_next_to_class_folders(self, tmp_path, name):
        touch(tmp_path, "None/a.png", "roadwork/b.png", name)
        assert [image.path for image in listing_of(tmp_path).images] == ["None/a.png", "roadwork/b.png"]
        assert not is_dataset(str(tmp_path), NAMES)

    @pytest.mark.parametrize(("name", "expected"), [("labels.parquet", False), ("train.parquet", True)])
    def test_a_table_of_labels_is_not_a_dataset(self, tmp_path, name, expected):
        touch(tmp_path, "Roadwork/b.png", name)
        assert is_dataset(str(tmp_path), NAMES) is expected

    def test_an_empty_folder(self, tmp_path):
        assert "has no images of class 'None' (found: nothing)" in error_of(tmp_path).message

    def test_a_group_column_of_folders_is_rejected(self, tmp_path):
        touch(tmp_path, "none/a.png", "roadwork/b.png")
        assert "has no column 'track'" in error_of(tmp_path, group_column="track").message

    def test_a_folder_that_does_not_exist(self, tmp_path):
        assert error_of(tmp_path / "gone").message == f"data.root {str(tmp_path / 'gone')!r} does not exist"
        (tmp_path / "street_photos").mkdir()
        assert str(tmp_path / "street_photos") in error_of(tmp_path / "street_fotos").hint

    def test_a_file_of_another_kind(self, tmp_path):
        touch(tmp_path, "images.zip")
        assert "is a file, but not .csv" in error_of(tmp_path / "images.zip").message


class TestCsv:
    def test_labels_by_number_and_name_with_group_and_source(self, tmp_path):
        path = write_csv(
            tmp_path, "path,label,group,source\na.png,0,ride 1,bus\n/far/b.png,ROADWORK,,\n./c.png,none,,x\n"
        )
        expected = (
            ImageRecord("a.png", 0, "ride 1", "bus"),
            ImageRecord("/far/b.png", 1),
            ImageRecord("c.png", 0, None, "x"),
        )
        assert listing_of(path).images == expected
        assert listing_of(tmp_path).images == expected
        assert listing_of(path).root == tmp_path

    def test_byte_order_mark_header_case_blank_lines_and_other_columns(self, tmp_path):
        write_csv(tmp_path, "Label,PATH,Weather\r\n0,a.png, rain\r\n\r\n1,b.png,\r\n", encoding="utf-8-sig")
        expected = (ImageRecord("a.png", 0, columns={"weather": "rain"}), ImageRecord("b.png", 1))
        assert listing_of(tmp_path).images == expected

    def test_quoted_names(self, tmp_path):
        write_csv(tmp_path, 'path,label\n"a, b.png",0\nc.png,1\n')
        assert listing_of(tmp_path).images[0].path == "a, b.png"

    def test_the_csv_is_preferred_to_class_folders(self, tmp_path):
        touch(tmp_path, "none/a.png", "roadwork/b.png")
        write_csv(tmp_path, "path,label,group\nnone/a.png,0,g\nroadwork/b.png,1,h\n")
        assert [image.group for image in listing_of(tmp_path).images] == ["g", "h"]

    @pytest.mark.parametrize("name", ["index.csv", "labels.json"])
    def test_images_that_a_table_of_the_folder_does_not_list_are_warned_of(self, tmp_path, name):
        touch(tmp_path, *(f"{folder}/{number}.png" for folder in ("none", "roadwork") for number in range(3)))
        touch(tmp_path, "none/notes.txt", "none/.hidden.png", "run/splits.json", "run/curve.png", "__MACOSX/a.png")
        paths = [str(tmp_path / "none" / "0.png"), "./none/1.png", "none/../roadwork/0.png"]
        entries = [{"filename": path, "label": int("roadwork" in path)} for path in paths]
        table = tmp_path / name
        if name == "labels.json":
            table.write_text(json.dumps(entries))
        else:
            table.write_text("".join(["path,label\n", *(f"{e['filename']},{e['label']}\n" for e in entries)]))
        (warning,) = listing_of(tmp_path).warnings
        assert warning.startswith("3 images ")
        assert "none/2.png" in warning
        assert listing_of(table).warnings == ()
        touch(tmp_path, "more/a.png")
        assert listing_of(tmp_path).warnings[0].startswith("4 images ")

    def test_a_table_that_lists_every_image_has_no_warning(self, tmp_path, monkeypatch):
        touch(tmp_path, "none/a.png", "roadwork/b.png")
        write_csv(tmp_path, "path,label\nnone/a.png,0\nroadwork/b.png,1\n")
        monkeypatch.chdir(tmp_path / "none")
        assert listing_of("..").warnings == ()

    def test_a_group_column_of_another_name(self, tmp_path):
        write_csv(tmp_path, "path,label,Track,group\na.png,0,t1,g\nb.png,1,t2,g\n")
        images = listing_of(tmp_path, group_column="track").images
        assert [image.group for image in images] == ["t1", "t2"]
        assert [image.columns for image in images] == [{"group": "g"}] * 2

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "index.csv line 1: there is no column 'path' (found: nothing)"),
            ("path|label\na.png|0\n", "index.csv line 1: there is no column 'path' (found: path|label)"),
            ("path,class\na.png,0\n", "index.csv line 1: there is no column 'label' (found: path, class)"),
            ("path,label,path\n", "index.csv line 1: a column occurs twice (found: path, label, path)"),
            ("path,label\na.png,0\nb.png\n", "index.csv line 3: 1 fields, but the header has 2"),
            ("path,label\na.png,0\n ,1\n", "index.csv line 3: the file name is empty"),
            ("path,label\na.png,0\nb.png,2\n", "index.csv line 3: label '2' is not 0, 1, 'None' or 'Roadwork'"),
            ("path,label\na.png,0\nb.png,\n", "index.csv line 3: the label is empty"),
            ("path,label\na.png,0\n./a.png,1\n", "index.csv line 3: './a.png' is already listed above"),
            ('path,label\n"a.png,0\n', "index.csv line 2: unexpected end of data"),
        ],
    )
    def test_errors_name_line_and_field(self, tmp_path, text, message):
        write_csv(tmp_path, text)
        assert error_of(tmp_path).message == message

    def test_labels_that_are_not_a_class_are_listed(self, tmp_path):
        write_csv(tmp_path, "path,label\na.png,clear\nb.png,works\nc.png,other\n")
        assert error_of(tmp_path).hint == (
            "names are set by 'data.class_names=[None,Roadwork]'; labels in this file: clear, other, works"
        )

    @pytest.mark.parametrize("label", ["ja", ""])
    def test_two_labels_that_are_not_a_class_are_proposed_as_names(self, tmp_path, label):
        write_csv(tmp_path, f"path,label\nx.png,{label}\na.png,ja\nb.png,Nein\nc.png,nein\n")
        assert "'data.class_names=[ja,nein]'" in error_of(tmp_path).hint

    @pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
    def test_csv_that_is_not_utf8(self, tmp_path, encoding):
        write_csv(tmp_path, "path,label\nStraße.png,0\n", encoding=encoding)
        error = error_of(tmp_path)
        assert "cannot be read as UTF-8 text" in error.message
        assert "CSV UTF-8" in error.hint

    @pytest.mark.parametrize("mark", [";", "\t"])
    def test_a_csv_with_other_separators(self, tmp_path, mark):
        lines = [["path", "label", "group"], ["a, b.png", "0", "g"], ["c.png", "1", ""]]
        write_csv(tmp_path, "\r\n".join(map(mark.join, lines)), encoding="utf-8-sig")
        assert listing_of(tmp_path).images == (ImageRecord("a, b.png", 0, "g"), ImageRecord("c.png", 1))

    def test_lines_of_commas_and_columns_without_a_name_are_ignored(self, tmp_path):
        write_csv(tmp_path, ",path,label,,\n0,a.png,0,,\n1,b.png,1,,\n,,,,\n,,\n")
        assert listing_of(tmp_path).images == (ImageRecord("a.png", 0), ImageRecord("b.png", 1))

    @pytest.mark.parametrize(
        ("labels", "expected"), [("0 1", "0 and 1"), ("No Yes", "No and Yes"), ("True False", "False and True")]
    )
    def test_labels_without_names_are_named_in_the_warning(self, tmp_path, labels, expected):
        write_csv(tmp_path, "path,label\n" + "".join(f"{label}.png,{label}\n" for label in labels.split()))
        assert expected in class_names_warning(listing_of(tmp_path), NAMES)
        write_csv(tmp_path, "path,label\na.png,no\nb.png,Roadwork\n")
        assert class_names_warning(listing_of(tmp_path), NAMES) is None

    def test_one_class_only(self, tmp_path):
        write_csv(tmp_path, "path,label\na.png,0\nb.png,0\n")
        assert error_of(tmp_path).message.endswith("has no images of class 'Roadwork' (found: None 2)")

    def test_a_requested_column_that_does_not_exist(self, tmp_path):
        write_csv(tmp_path, "path,label\na.png,0\nb.png,1\n")
        assert error_of(tmp_path, source_column="camera").message == (
            "index.csv has no column 'camera', which is set by data.source_column (columns: path, label)"
        )


class TestSpellings:
    @pytest.mark.parametrize(
        ("negative", "positive"),
        [("0.0", "1.0"), ("False", "True"), ("no", "YES"), ("0.", "1.00"), ("none", "Roadwork")],
    )
    def test_labels(self, tmp_path, negative, positive):
        write_csv(tmp_path, f"path,label\na.png,{negative}\nb.png,{positive}\n")
        assert [image.label for image in listing_of(tmp_path).images] == [0, 1]

    def test_a_class_name_takes_precedence(self):
        assert parse_label("yes", class_names=("yes", "no"), where="") == 0
        assert parse_label("true", class_names=("True", "False"), where="") == 0

    @pytest.mark.parametrize("label", ["", "nan", "NaN", "<NA>", "null"])
    def test_a_missing_label_is_named_as_such(self, tmp_path, label):
        write_csv(tmp_path, f"path,label\na.png,0\nb.png,{label}\n")
        assert "line 3: the label is empty" in error_of(tmp_path).message

    @pytest.mark.parametrize("label", ["2", "0.5", "1.5", "10", "-1", "1e3", "maybe"])
    def test_other_labels_are_refused(self, tmp_path, label):
        write_csv(tmp_path, f"path,label\na.png,0\nb.png,{label}\n")
        assert f"label '{label}' is not" in error_of(tmp_path).message

    def test_booleans_and_decimals_in_json(self, tmp_path):
        entries = [{"filename": "a.png", "label": False}, {"filename": "b.png", "label": 1.0}]
        (tmp_path / "labels.json").write_text(json.dumps(entries))
        assert [image.label for image in listing_of(tmp_path).images] == [0, 1]

    def test_a_missing_group_is_no_group(self, tmp_path):
        groups = ["", "nan", "NaN", "NA", "None", "<NA>", "null", "ride"]
        rows = [f"{number}.png,{number % 2},{group}" for number, group in enumerate(groups)]
        write_csv(tmp_path, "\n".join(["path,label,group", *rows]))
        images = listing_of(tmp_path).images
        assert [image.group for image in images] == [None] * 7 + ["ride"]
        assert "7 of 8 images have no group" in group_warnings(images)[0]

    def test_a_large_group_is_warned_of(self):
        images = [ImageRecord(f"{n}.png", n % 2, group="a" if n < 4 else f"g{n}") for n in range(10)]
        assert ["40%" in warning for warning in group_warnings(images)] == [True]
        assert group_warnings([ImageRecord(f"{n}.png", n % 2, group=f"g{n // 2}") for n in range(10)]) == []

    def test_the_columns_of_a_hugging_face_folder(self, tmp_path):
        (tmp_path / "metadata.csv").write_text("file_name,label\na.png,0\nb.png,1\n")
        assert [image.path for image in listing_of(tmp_path / "metadata.csv").images] == ["a.png", "b.png"]


class TestLayoutHints:
    """The hint of a data set in another layout names the setting that reads it."""

    @pytest.mark.parametrize("table", ["labels.csv", "metadata.csv", "train.csv"])
    def test_images_beside_a_table(self, tmp_path, table):
        touch(tmp_path, "a.png", "b.png")
        (tmp_path / table).write_text("path,label\na.png,0\nb.png,1\n")
        error = error_of(tmp_path)
        assert "images outside of class folders 2" in error.message
        assert f"data.root={tmp_path / table}" in error.hint
        assert len(listing_of(tmp_path / table).images) == 2

    @pytest.mark.parametrize("names", [("train", "val"), ("Train", "test", "dev"), ("photos",)])
    def test_folders_of_splits_or_an_inner_folder(self, tmp_path, names):
        for name in names:
            touch(tmp_path, f"{name}/None/a.png", f"{name}/Roadwork/b.png")
        assert f"data.root={tmp_path / names[0]}" in error_of(tmp_path).hint

    def test_two_folders_of_other_names(self, tmp_path):
        touch(tmp_path, "clear road/a.png", "works/b.png")
        assert "'data.class_names=[clear road,works]'" in error_of(tmp_path).hint

    @pytest.mark.parametrize(
        ("folders", "names"), [(("roadwork", "street"), "street,roadwork"), (("none", "clear"), "none,clear")]
    )
    def test_a_known_class_keeps_its_place(self, tmp_path, folders, names):
        for folder in folders:
            touch(tmp_path, f"{folder}/a.png")
        assert f"'data.class_names=[{names}]'" in error_of(tmp_path).hint

    def test_tars(self, tmp_path):
        touch(tmp_path, "shard-0.tar", "photos.tar.gz")
        for source in (tmp_path, tmp_path / "shard-0.tar", tmp_path / "photos.tar.gz"):
            assert f"streetvision data import {source} --to" in error_of(source).hint

    def test_a_url_is_named(self, tmp_path):
        write_csv(tmp_path, "path,label\nhttps://example.org/a.jpg,0\nb.png,1\n")
        assert "line 2: 'https://example.org/a.jpg' is a URL" in error_of(tmp_path).message

    def test_a_dataset_with_another_split(self, tmp_path, pictures):
        datasets = pytest.importorskip("datasets")
        rows = {"image": [str(path) for path in pictures], "label": [0, 1, 1]}
        dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
        datasets.DatasetDict({"validation": dataset}).save_to_disk(tmp_path / "saved")
        (tmp_path / "hub" / "data").mkdir(parents=True)
        dataset.to_parquet(tmp_path / "hub" / "data" / "validation-00000-of-00001.parquet")
        for folder in ("saved", "hub"):
            assert error_of(tmp_path / folder).hint == "set data.hf_split=validation"

    def test_a_dataset_with_files_of_two_formats(self, tmp_path, pictures):
        datasets = pytest.importorskip("datasets")
        datasets.Dataset.from_dict({"image": ["a.jpg"], "label": [0]}).to_parquet(tmp_path / "mixed" / "train.parquet")
        (tmp_path / "mixed" / "test.csv").write_text("image,label\nb.jpg,1\n")
        assert "cannot be loaded as a dataset" in error_of(tmp_path / "mixed").message


class TestLabelsJson:
    def write(self, folder: Path, entries) -> None:
        (folder / "labels.json").write_text(json.dumps(entries))

    def test_names_are_relative_to_images(self, tmp_path):
        (tmp_path / "images").mkdir()
        self.write(
            tmp_path, [{"filename": "a.png", "label": 0, "group": 7}, {"filename": "b.png", "label": "roadwork"}]
        )
        assert listing_of(tmp_path).images == (ImageRecord("images/a.png", 0, "7"), ImageRecord("images/b.png", 1))
        assert listing_of(tmp_path / "labels.json").root == tmp_path

    def test_names_may_have_the_folder_images(self, tmp_path):
        touch(tmp_path, "images/b.png")
        names = ["images/a.png", "images/b.png"]
        self.write(tmp_path, [{"filename": name, "label": label} for label, name in enumerate(names)])
        assert [image.path for image in listing_of(tmp_path).images] == names

    def test_names_are_relative_to_the_file_without_images(self, tmp_path):
        self.write(tmp_path, [{"filename": "a.png", "label": 0}, {"filename": "b.png", "label": 1, "source": None}])
        assert [image.path for image in listing_of(tmp_path).images] == ["a.png", "b.png"]

    def test_other_single_values_are_kept_as_text(self, tmp_path):
        extras = {"Speed": 31.5, "night": True, "note": None, "boxes": [1, 2], "gps": {"lat": 1}}
        self.write(tmp_path, [{"filename": "a.png", "label": 0, **extras}, {"filename": "b.png", "label": 1}])
        first, second = listing_of(tmp_path).images
        assert (first.columns, second.columns) == ({"speed": "31.5", "night": "True"}, {})

    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            ({"a.png": 0}, "labels.json holds one dict, not a list"),
            (["a.png"], "labels.json entry 1: 'a.png' is not an object"),
            ([{"label": 0}], "labels.json entry 1: the file name is empty"),
            ([{"filename": "a.png", "label": [1]}], "labels.json entry 1: 'label' is [1], neither text nor a"),
            ([{"filename": ["a.png"], "label": 0}], "labels.json entry 1: 'path' is ['a.png'], neither text nor a"),
            ([{"filename": "a.png", "label": 1, "Label": 0}], "labels.json entry 1: a field occurs twice"),
            ([{"filename": "a.png", "path": "b.png", "label": 1}], "labels.json entry 1: a field occurs twice"),
            ([{"filename": "a.png", "label": 5}], "labels.json entry 1: label '5' is not 0, 1"),
            ([], "has no images of class 'None' (found: nothing)"),
        ],
    )
    def test_errors_name_entry_and_field(self, tmp_path, entries, message):
        self.write(tmp_path, entries)
        assert message in error_of(tmp_path).message

    def test_labels_json_that_is_not_json(self, tmp_path):
        (tmp_path / "labels.json").write_text("[{")
        assert "cannot be read as JSON" in error_of(tmp_path).message


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / "a.png", folder / "b.png", folder / "c.png"]
    for path, color in zip(paths, ("red", "lime", "blue"), strict=True):
        Image.new("RGB", (8, 8), color).save(path)
    return paths


class TestDataset:
    def save(self, folder: Path, pictures: list[Path], *, labels, names=None, **columns):
        datasets = pytest.importorskip("datasets")
        label = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
        features = {"image": datasets.Image(), "label": label}
        features |= {column: datasets.Value("string") for column in columns}
        rows = {"image": [str(path) for path in pictures], "label": labels, **columns}
        dataset = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
        datasets.disable_progress_bars()
        return dataset, folder

    def test_images_are_written_once_under_their_digest(self, tmp_path, pictures):
        dataset, folder = self.save(tmp_path / "set", pictures, labels=[0, 1, 0], group=["g", "h", None])
        dataset.save_to_disk(folder)
        listing = listing_of(folder)
        assert listing.root == tmp_path / "imported"
        assert [(image.label, image.group) for image in listing.images] == [(0, "g"), (1, "h"), (0, None)]
        written = [listing.root / image.path for image in listing.images]
        assert [path.read_bytes() for path in written] == [path.read_bytes() for path in pictures]
        before = [path.stat().st_mtime_ns for path in written]
        assert listing_of(folder) == listing
        assert [path.stat().st_mtime_ns for path in written] == before

    @pytest.mark.parametrize("names", [None, ["None", "Roadwork"]])
    def test_a_missing_label_is_refused_with_its_row(self, tmp_path, pictures, names):
        dataset, folder = self.save(tmp_path / "set", pictures, labels=[0, 1, None], names=names)
        dataset.save_to_disk(folder)
        with pytest.raises(DataError, match="row 2"):
            listing_of(folder)

    def test_parquet_in_the_layout_of_the_hub(self, tmp_path, pictures, monkeypatch):
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        dataset, folder = self.save(tmp_path / "set", pictures, labels=[0, 1, 1])
        (folder / "data").mkdir(parents=True)
        dataset.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
        assert [image.label for image in listing_of(folder).images] == [0, 1, 1]

    def test_the_dataset_s_own_order_of_names_does_not_matter(self, tmp_path, pictures):
        dataset, folder = self.save(tmp_path / "set", pictures, labels=[0, 1, 1], names=["roadwork", "none"])
        dataset.save_to_disk(folder)
        assert [image.label for image in listing_of(folder).images] == [1, 0, 0]

    def test_further_features_are_kept_as_text(self, tmp_path, pictures):
        dataset, folder = self.save(tmp_path / "set", pictures, labels=[0, 1, 1], weather=["rain", None, "sun"])
        dataset.save_to_disk(folder)
        assert [image.columns for image in listing_of(folder).images] == [{"weather": "rain"}, {}, {"weather": "sun"}]

    def test_a_label_that_is_not_a_class(self, tmp_path, pictures):
        dataset, folder = self.save(tmp_path / "set", pictures, labels=[0, 1, 2])
        dataset.save_to_disk(folder)
        assert error_of(folder).message.endswith("row 2: label '2' is not 0, 1, 'None' or 'Roadwork'")

    def test_a_further_class_label_without_a_name_is_left_out(self, tmp_path, pictures):
        datasets = pytest.importorskip("datasets")
        dataset, _ = self.save(tmp_path, pictures, labels=[0, 1, 1], names=["None", "Roadwork"])
        weather = datasets.ClassLabel(names=["rain", "sun"])
        dataset.add_column("weather", [0, -1, 1]).cast_column("weather", weather).save_to_disk(tmp_path / "set")
        columns = [image.columns for image in listing_of(tmp_path / "set").images]
        assert columns == [{"weather": "rain"}, {}, {"weather": "sun"}]

    @pytest.mark.parametrize("label", [-1, 2])
    def test_a_label_without_a_name_is_refused_with_its_row(self, tmp_path, pictures, label, monkeypatch):
        dataset, folder = self.save(tmp_path / "set", pictures, labels=[0, 1, 1], names=["None", "Roadwork"])
        dataset.save_to_disk(folder)
        rows = [{"image": {"bytes": b"x", "path": None}, "label": value} for value in (0, 1, label)]
        monkeypatch.setattr("streetvision.data.sources.huggingface._examples", lambda *_: iter(rows))
        assert f"row 2: label {label}" in error_of(folder).message

    def test_rows_with_the_same_bytes_are_reported(self, tmp_path, pictures):
        dataset, folder = self.save(tmp_path / "set", [*pictures[:2], *pictures[:2]], labels=[0, 1, 0, 0])
        dataset.save_to_disk(folder)
        listing = listing_of(folder)
        assert listing.skipped == (RejectedFile("row 2", "is the same image as row 0"),)
        scan = scan_images(listing, class_names=NAMES)  # rows 1 and 3 have both labels
        assert (len(scan.index.rows), len(scan.invalid), scan.skipped) == (1, 1, listing.skipped)

    def test_a_feature_that_is_missing(self, tmp_path, pictures):
        dataset, folder = self.save(tmp_path / "set", pictures, labels=[0, 1, 1])
        dataset.rename_column("image", "photo").save_to_disk(folder)
        assert "has no feature 'image' (found: photo, label)" in error_of(folder).message

    def test_a_split_that_is_missing(self, tmp_path, pictures):
        datasets = pytest.importorskip("datasets")
        dataset, folder = self.save(tmp_path / "set", pictures, labels=[0, 1, 1])
        datasets.DatasetDict({"train": dataset}).save_to_disk(folder)
        assert len(listing_of(folder).images) == 3
        assert error_of(folder, hf_split="test").hint == "set data.hf_split=train"

    def test_a_split_of_a_dataset_that_was_saved_without_splits(self, tmp_path, pictures):
        dataset, folder = self.save(tmp_path / "set", pictures, labels=[0, 1, 1])
        dataset.save_to_disk(folder)
        assert "data.hf_split" in error_of(folder, hf_split="test").hint

    def test_a_split_without_a_hugging_face_dataset(self, scenes):
        assert "is not a Hugging Face dataset" in error_of(scenes, hf_split="test").message

    def test_a_name_that_cannot_be_loaded(self, monkeypatch):
        datasets = pytest.importorskip("datasets")

        def offline(root, split, streaming):
            raise ConnectionError("no network\nat all")

        monkeypatch.setattr(datasets, "load_dataset", offline)
        with pytest.raises(DataError) as caught:
            list_images("hf://some-owner/some-set", class_names=NAMES, import_to=Path("unused"))
        assert caught.value.message == (
            "data.root 'some-owner/some-set' is not a folder of images, and cannot be loaded as a dataset: no network"
        )

    def test_a_mistyped_folder_does_not_use_the_network(self, monkeypatch):
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("used the network"))
        assert error_of("my/photoss").message == "data.root 'my/photoss' does not exist"


@pytest.mark.skipif(not REAL_DATA, reason="STREETVISION_REAL_DATA is not set: no real photographs on this machine")
def test_real_traffic_signs_have_their_tracks():
    root = Path(REAL_DATA or "") / "gtsrb_roadwork"
    listing = list_images(str(root), class_names=("no_roadwork", "roadwork"), import_to=Path("unused"))
    assert sum(image.label for image in listing.images) == 480
    assert len({image.group for image in listing.images}) == 182
    assert len(listing.images) == 1980


def test_the_plots_of_a_run_are_not_listed(tmp_path):
    touch(tmp_path, "None/a.jpg", "Roadwork/b.jpg", "Roadwork/run/evaluation/roc_curve.png", "Roadwork/run/splits.json")
    assert [record.path for record in listing_of(tmp_path).images] == ["None/a.jpg", "Roadwork/b.jpg"]


def test_invalid_names_and_links_to_folders_are_skipped_with_their_reasons(tmp_path):
    touch(tmp_path, "None/a.jpg", "Roadwork/b.jpg", "elsewhere/c.jpg")
    os.close(os.open(os.fsencode(tmp_path / "Roadwork") + b"/caf\xe9.jpg", os.O_CREAT))
    (tmp_path / "Roadwork" / "more").symlink_to(tmp_path / "elsewhere")
    listing = listing_of(tmp_path)
    assert [record.path for record in listing.images] == ["None/a.jpg", "Roadwork/b.jpg"]
    assert {file.path: file.reason for file in listing.skipped if file.path != "elsewhere"} == {
        r"Roadwork/caf\udce9.jpg": "has a name that is not UTF-8",
        "Roadwork/more": "is a link to a folder, which is not followed",
    }


def test_labels_with_the_text_of_a_missing_value_are_named(tmp_path, pictures):
    for text, expected in (("None", 1), ("0", 0)):
        (tmp_path / "index.csv").write_text(f"path,label\n{pictures[0]},{text}\n{pictures[1]},Roadwork\n")
        assert len(listing_of(tmp_path / "index.csv").warnings) == expected


@pytest.fixture
def rides(tmp_path, pictures):
    """A folder of unlabeled images, two with the same bytes, and a table with the group of the first."""
    folder = tmp_path / "rides"
    folder.mkdir()
    for name, picture in (("a", 0), ("b", 1), ("c", 1)):
        (folder / f"{name}.png").write_bytes(pictures[picture].read_bytes())
    (tmp_path / "r.csv").write_text("path,group\nrides/a.png,ride7\n")
    return folder


@pytest.mark.parametrize("table_first", [True, False])
def test_the_group_of_an_unlabeled_image_does_not_depend_on_the_order(rides, tmp_path, table_first):
    sources = [tmp_path / "r.csv", rides]
    images = list_unlabeled(sources if table_first else sources[::-1]).images
    assert {Path(image.path).name: image.group for image in images} == {"a.png": "ride7", "b.png": None, "c.png": None}


def test_two_groups_of_an_unlabeled_image_are_refused(rides, tmp_path):
    (tmp_path / "s.csv").write_text("path,group\nrides/a.png,ride8\n")
    with pytest.raises(DataError, match="ride7"):
        list_unlabeled([tmp_path / "r.csv", tmp_path / "s.csv"])


def test_unlabeled_images_with_the_same_content_are_named(rides):
    scan = scan_unlabeled([rides], limits=DEFAULT_LIMITS, progress=Silent())
    roles = [Split.TRAIN] * len(scan.index.rows)
    selected = select_unlabeled(scan, scan, roles, GroupingConfig())
    assert [Path(row.path).name for row in selected.rows] == ["a.png", "b.png"]
    assert {Path(path).name: Path(reason).name for path, reason in selected.excluded.items()} == {"c.png": "b.png"}


@pytest.mark.parametrize("pattern", [r"([^/]+)_\d+\.\w+$", r"^([^/]+?)[_/]"])
def test_the_group_of_an_unlabeled_image_by_its_name(pictures, tmp_path, pattern):
    """Images of a held-out ride are left out; a group of a table has priority over the name."""
    for name, picture in (("photos/ride7_1", 0), ("more/ride7_2", 1), ("more/ride8_1", 2)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.png").write_bytes(pictures[picture].read_bytes())
    table = tmp_path / "more" / "list.csv"
    table.write_text("path,group\nride8_1.png,ride 8\n")
    listing = ImageListing(tmp_path, (ImageRecord("photos/ride7_1.png", 0, group="ride7"),))
    labeled = scan_images(listing, class_names=NAMES, with_hashes=True)
    scan = scan_unlabeled([table, tmp_path / "more"], limits=DEFAULT_LIMITS, group_pattern=pattern, progress=Silent())
    selected = select_unlabeled(scan, labeled, [Split.VAL_TEST], GroupingConfig())
    assert [(Path(row.path).name, row.group) for row in selected.rows] == [("ride8_1.png", "ride 8")]


def test_groups_that_equal_bytes_join_are_all_linked_to_unlabeled_images(pictures, tmp_path):
    """One image is in the groups r1 and r2, which are one: an unlabeled image of r2 is left out."""
    names = [f"{name}.png" for name in "abcd"]
    for name, picture in zip(names, (0, 0, 1, 2), strict=True):
        (tmp_path / name).write_bytes(pictures[picture].read_bytes())
    both = [ImageRecord(name, 0, group=group) for name, group in zip(names, ("r1", "r2"), strict=False)]
    held_out, further = [ImageRecord("c.png", 0, group="r2")], [ImageRecord("d.png", 0, group="r2")]
    for labeled, unlabeled in ((both, held_out), (held_out, both), (both, further)):
        scans = [
            scan_images(ImageListing(tmp_path, tuple(images)), class_names=NAMES, with_hashes=True)
            for images in (labeled, unlabeled)
        ]
        roles = [Split.VAL_TEST] * len(labeled)
        selected = select_unlabeled(scans[1], scans[0], roles, GroupingConfig())
        assert selected.rows == ()
