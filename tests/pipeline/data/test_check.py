"""`streetvision data check` on folders with each kind of problem."""

import re
import shlex
import shutil

import datasets
import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def photos(scenes, tmp_path):
    """Eighty scenes, a near-duplicate of one under the other label, and a file that is not an image."""
    folder = shutil.copytree(scenes, tmp_path / "photos")
    header, *rows = (folder / "index.csv").read_text().splitlines()
    rows = rows[:80]
    path, label, *_ = rows[0].split(",")
    Image.open(folder / path).resize((120, 90)).save(folder / "again.jpg", quality=70)
    (folder / "<b>broken.jpg").write_bytes(b"no image")
    other = {"0": "1", "1": "0"}[label]
    (folder / "index.csv").write_text("\n".join([header, *rows, f"again.jpg,{other},,", "<b>broken.jpg,0,,"]))
    return folder


def test_every_problem_is_printed_and_on_the_page(command, photos, tmp_path):
    page = tmp_path / "page.html"
    code, out, err = command("data", "check", photos, "--page", page)
    assert code == 0, err
    assert "copies        2 images in 1 clusters" in out
    assert "1 clusters of copies have both labels" in err
    assert "<b>broken.jpg is not a JPEG" in out
    assert re.search(r"size and brightness alone: ROC-AUC 0\.\d\d", out)
    html = page.read_text()
    assert "Copies with both labels" in html
    assert html.count("data:image/jpeg;base64,") == 2
    assert "&lt;b&gt;broken.jpg" in html
    assert "<b>broken" not in html
    assert "<script" not in html
    assert "http" not in html.replace("http-equiv", "")


def test_copies_with_both_labels_are_unusable_as_for_train(command, photos, tmp_path):
    limit = "data.max_invalid_fraction=0.02"
    train = ["train", f"data.root={photos}", f"run_dir={tmp_path / 'run'}", "pipeline.phases=[data]"]
    for arguments in (["data", "check", photos, "--page", tmp_path / "page.html"], train):
        code, _, err = command(*arguments, limit)
        assert code == 2
        assert "3 of 82 images" in err
    code, out, _ = command("data", "check", photos, "--page", tmp_path / "page.html")
    assert code == 0
    assert re.search(r"^images\s+79:", out, re.MULTILINE)
    assert re.search(r"^unusable\s+3$", out, re.MULTILINE)
    assert "79 usable images" in (tmp_path / "page.html").read_text()


def test_the_page_shows_the_images_of_a_dataset_that_is_exported(command, photos, tmp_path):
    rows = [line.split(",")[:2] for line in (photos / "index.csv").read_text().splitlines()[1:-1]]
    images = [{"bytes": (photos / path).read_bytes(), "path": path} for path, _ in rows]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    content = {"image": images, "label": [int(label) for _, label in rows]}
    datasets.Dataset.from_dict(content, features=features).save_to_disk(tmp_path / "hub")
    page = tmp_path / "page.html"
    code, _, err = command("data", "check", tmp_path / "hub", "--page", page)
    assert code == 0, err
    assert page.read_text().count("data:image/jpeg;base64,") == 2


def test_a_class_of_dark_photos_is_confounded(command, tmp_path):
    rng = np.random.default_rng(0)
    for name, level in (("None", 60), ("Roadwork", 180)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(12):
            pixels = rng.normal(level, 20, (70, 90, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    _, out, err = command("data", "check", tmp_path / "photos", "--page", tmp_path / "page.html")
    assert "ROC-AUC 1.00" in out
    assert "size or brightness reveals the label" in err
    assert "a model may learn" in (tmp_path / "page.html").read_text()


def test_a_set_of_which_too_little_is_usable_ends_with_an_error(command, scenes, tmp_path):
    lines = (scenes / "index.csv").read_text().splitlines()
    rows = [line.replace(".jpg", ".JPG") for line in lines[1:]]
    (tmp_path / "photos").symlink_to(scenes)
    (scenes / "other.csv").write_text("\n".join([lines[0], *rows]))
    code, _, err = command("data", "check", tmp_path / "photos" / "other.csv", "--page", tmp_path / "page.html")
    (scenes / "other.csv").unlink()
    assert code == 2
    assert "160 of 160 images" in err
    assert ".jpg does" in err
    assert (tmp_path / "page.html").is_file()


def test_swapped_labels_are_suspicious(command, scenes, tmp_path):
    folder = shutil.copytree(scenes, tmp_path / "photos")
    lines = (folder / "index.csv").read_text().splitlines()
    path = lines[5].split(",")[0]
    # A picture full of a color that only the other class has, many times over.
    for number, row in enumerate(lines[1:], start=1):
        name, given, *_ = row.split(",")
        color = (250, 120, 0) if (given == "1") != (number == 5) else (40, 90, 200)
        noise = np.random.default_rng(number).integers(0, 40, (72, 96, 3))
        Image.fromarray((np.array(color) - noise).clip(0, 255).astype(np.uint8)).save(folder / name, quality=95)
    page = tmp_path / "page.html"
    settings = ["data.grouping.by=[column]", "model.image_size=64"]
    code, out, err = command("data", "check", folder, *settings, "--labels", "--page", page)
    assert code == 0, err
    assert "labels        1 are suspicious" in out
    assert f"{path} is " in out
    assert "Suspicious labels" in page.read_text()


def test_embeddings_are_compared_with_near_duplicates(command, photos, tmp_path):
    """A mirrored copy has another hash, and nearly the features of the original."""
    header, *rows = (photos / "index.csv").read_text().splitlines()
    for n, row in enumerate(rows[4:12]):
        path, label, *_ = row.split(",")
        Image.open(photos / path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(photos / f"mirrored_{n}.png")
        rows.append(f"mirrored_{n}.png,{label},,")
    (photos / "index.csv").write_text("\n".join([header, *rows]))
    page = tmp_path / "page.html"
    code, out, err = command("data", "check", photos, "--embeddings", "--page", page)
    assert code == 0, err
    assert "among near-duplicates" in out
    assert re.search(r"and mirrored_\d.png: 0\.\d\d", out)
    assert "Similar, but not near-duplicates" in page.read_text()
    assert "labels" not in re.findall(r"^(\w+)", out, re.MULTILINE)


def test_embeddings_need_near_duplicates(command, photos):
    code, _, err = command("data", "check", photos, "--embeddings", "data.grouping.by=[column]")
    assert code == 2
    assert "does not contain near_duplicates" in err


@pytest.mark.parametrize("names", [("0", "1"), ("007", "1.50"), ("no", "yes"), ("Off", "on"), ("a, b: c", "null")])
def test_class_folders_of_any_name_are_read_as_the_hint_says(command, tmp_path, names):
    rng = np.random.default_rng(0)
    for name in names:
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(4):
            image = Image.fromarray(rng.integers(0, 255, (16, 24, 3), dtype=np.uint8))
            image.save(tmp_path / "photos" / name / f"{number}.png")
    arguments = ["data", "check", tmp_path / "photos", "--page", tmp_path / "page.html"]
    code, _, err = command(*arguments)
    assert code == 2
    settings = [word for word in shlex.split(" ".join(err.split())) if word.startswith("data.class_names=")]
    for setting, (zero, one) in zip(settings, (names, names[::-1]), strict=True):
        code, out, err = command(*arguments, setting)
        assert code == 0, err
        assert out.splitlines()[0].split(maxsplit=1) == ["classes", f"0 = {zero}, 1 = {one} (data.class_names)"]


@pytest.fixture
def potholes(tmp_path):
    """A CSV with labels 0 and 1, and frames of eight rides, one after the other."""
    rng = np.random.default_rng(0)
    lines = ["path,label"]
    for ride in range(8):
        for frame in range(3):
            name = f"ride{ride}_{frame:03d}.png"
            Image.fromarray(rng.integers(0, 255, (70, 90, 3), dtype=np.uint8)).save(tmp_path / name)
            lines.append(f"{name},{frame % 2}")
    (tmp_path / "index.csv").write_text("\n".join(lines))
    return tmp_path


def test_labels_without_names_are_warned_of(command, potholes, tmp_path):
    arguments = ["data", "check", potholes, "--page", tmp_path / "page.html"]
    code, out, err = command(*arguments)
    assert code == 0, err
    assert out.splitlines()[0].split() == ["classes", "0", "=", "None,", "1", "=", "Roadwork", "(data.class_names)"]
    assert "data.class_names=[" in out + err
    _, out, err = command(*arguments, "data.class_names=[road,pothole]")
    assert "1 = pothole" in out
    assert "data.class_names=[" not in out + err


def test_images_that_the_index_does_not_list_are_warned_of(command, potholes, tmp_path):
    header, *rows = (potholes / "index.csv").read_text().splitlines()
    (potholes / "index.csv").write_text("\n".join([header, *rows[2:]]))
    train = ["train", f"data.root={potholes}", f"run_dir={tmp_path / 'run'}", "pipeline.phases=[data]"]
    for arguments in (["data", "check", potholes, "--page", tmp_path / "page.html"], train):
        code, _, err = command(*arguments)
        assert code == 0, err
        assert "2 images in " in err
        assert rows[0].split(",")[0] in err


@pytest.mark.parametrize(("positives", "warned"), [(3, True), (4, False)])
def test_too_few_images_of_a_class_for_train_are_warned_of(command, potholes, tmp_path, positives, warned):
    rows = [line.split(",")[0] for line in (potholes / "index.csv").read_text().splitlines()[1:]]
    lines = [f"{path},{int(number < positives)}" for number, path in enumerate(rows)]
    (potholes / "index.csv").write_text("\n".join(["path,label", *lines]))
    train = ["train", f"data.root={potholes}", f"run_dir={tmp_path / 'run'}", "pipeline.phases=[data]"]
    code, _, err = command("data", "check", potholes, "--page", tmp_path / "page.html")
    assert code == 0
    assert ("at least 4 are needed" in err) == warned
    assert command(*train)[0] == (2 if warned else 0)


def test_a_page_that_cannot_be_written_is_an_error_about_its_setting(command, potholes, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = command("data", "check", potholes, "--page", tmp_path / "file" / "page.html")
    assert code == 2
    assert "--page" in err
    assert "run_dir" not in err


def test_sequences_of_names_suggest_groups_that_the_setting_gives(command, potholes, tmp_path):
    arguments = ["data", "check", potholes, "--page", tmp_path / "page.html"]
    _, out, _ = command(*arguments)
    (setting, n_groups) = re.search(r"'(data\.group_pattern=.+)' gives (\d+) groups", out).groups()
    assert n_groups == "8"
    _, out, _ = command(*arguments, setting)
    assert re.search(r"^groups\s+8, of 24 images$", out, re.MULTILINE)
    assert "gives" not in out


def test_large_groups_are_not_taken_for_missing_groups(command, potholes, tmp_path):
    arguments = ["data", "check", potholes, "--page", tmp_path / "page.html"]
    assert "data.group_pattern" in command(*arguments)[2]
    assert "data.group_pattern" not in command(*arguments, "data.group_pattern=(ride)")[2]


def test_copies_do_not_hide_the_suggestion_of_groups(command, potholes, tmp_path):
    shutil.copy(potholes / "ride0_000.png", potholes / "ride0_003.png")
    with (potholes / "index.csv").open("a") as index:
        index.write("\nride0_003.png,0")
    _, out, _ = command("data", "check", potholes, "--page", tmp_path / "page.html")
    assert re.search(r"'(data\.group_pattern=.+)' gives 8 groups", out)


def test_positions_suggest_places(command, potholes, tmp_path):
    header, *rows = (potholes / "index.csv").read_text().splitlines()
    lines = [f"{row},{50 + number // 6},10" for number, row in enumerate(rows)]
    (potholes / "index.csv").write_text("\n".join([f"{header},latitude,longitude", *lines]))
    _, out, _ = command("data", "check", potholes, "--page", tmp_path / "page.html")
    assert "'data.grouping.by=[column,near_duplicates,place]' gives 4 places" in out
    (potholes / "index.csv").write_text("\n".join([f"{header},latitude,longitude", *lines[:-1], f"{rows[-1]},52'5,10"]))
    code, out, err = command("data", "check", potholes, "--page", tmp_path / "invalid.html")
    assert code == 0
    assert "'data.grouping.by" not in out
    assert rows[-1].split(",")[0] in err
    assert (tmp_path / "invalid.html").is_file()


@pytest.mark.parametrize("arguments", [["check"], ["import", "--to", "imported"]])
def test_settings_of_other_data_and_of_phases_are_reported(arguments, command, scenes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    verb, *options = arguments
    code, _, err = command("data", verb, scenes, *options, f"data.root={tmp_path}")
    assert code == 2
    assert "data.root" in err
    assert list(tmp_path.iterdir()) == []
    code, _, err = command(
        "data", verb, scenes, *options, "phase5.folds=3", "phase2.n_resamples=200", "data.protocol=split"
    )
    assert code == 0, err
    assert f"data.protocol, phase2.n_resamples, phase5.folds have no effect on data {verb}" in " ".join(err.split())


def test_import_reports_settings_of_the_data_without_effect(command, scenes, tmp_path):
    settings = ["data.seed=3", "data.grouping.radius=9", "data.max_invalid_fraction=0.1"]
    code, _, err = command("data", "import", scenes, "--to", tmp_path / "imported", *settings)
    assert code == 0, err
    assert "data.grouping.radius, data.seed have no effect on data import" in " ".join(err.split())


def test_scenes_report_settings_without_effect(command, tmp_path):
    size = ["scenes.count=8", "scenes.width=64", "scenes.height=64"]
    code, _, err = command("data", "scenes", tmp_path / "scenes", *size, "phase5.folds=3")
    assert code == 0, err
    assert "phase5.folds has no effect on data scenes" in " ".join(err.split())


def test_the_command_after_an_import_has_its_class_names(command, potholes, tmp_path):
    for names in ([], ['data.class_names=["no",pothole]']):
        code, out, err = command("data", "import", potholes, "--to", tmp_path / f"imported{len(names)}", *names)
        assert code == 0, err
        following = shlex.split(out.splitlines()[-1])
        assert following[following.index("check") :] == ["check", str(tmp_path / f"imported{len(names)}"), *names]
