"""User errors end with an error line and a hint, exit code 2, no traceback and no partial files."""

import errno
import os
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.io.atomic import read_json, write_json_atomic
from tests.conftest import TINY_MODEL, edit_bundle_json


@pytest.fixture
def fails(command):
    """Run a command that must fail with a user error; returns its error output."""

    def run(*arguments):
        code, _, err = command(*arguments)
        assert code == 2, err
        assert "Traceback" not in err
        assert "\nerror: " in f"\n{err}"  # warnings may come first
        return err

    return run


def draw(folder, n, *, seed=0, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(n):
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(folder / f"{i}{suffix}")


@pytest.fixture
def photos(tmp_path):
    """Two class folders of twelve images each."""
    root = tmp_path / "photos"
    draw(root / "None", 20, seed=1)
    draw(root / "Roadwork", 20, seed=2)
    return root


class TestData:
    def test_a_missing_root(self, fails, tmp_path):
        err = fails("train", f"data.root={tmp_path / 'photos'}", f"run_dir={tmp_path / 'run'}")
        assert "does not exist" in err
        assert not (tmp_path / "run").exists()

    def test_an_empty_folder(self, fails, tmp_path):
        (tmp_path / "photos").mkdir()
        err = fails("train", f"data.root={tmp_path / 'photos'}", f"run_dir={tmp_path / 'run'}")
        assert "has no images of class 'None' (found: nothing)" in err

    def test_one_class_only(self, fails, tmp_path):
        draw(tmp_path / "photos" / "None", 5)
        err = fails("train", f"data.root={tmp_path / 'photos'}", f"run_dir={tmp_path / 'run'}")
        assert "has no images of class 'Roadwork' (found: None 5)" in err
        assert "data.class_names=[None,Roadwork]" in shlex.split(err.rpartition("names are set by ")[2])

    def test_a_label_that_is_not_a_class(self, fails, photos, tmp_path):
        (photos / "index.csv").write_text("path,label\nNone/0.png,0\nRoadwork/0.png,maybe\n")
        err = fails("train", f"data.root={photos}", f"run_dir={tmp_path / 'run'}")
        assert "maybe" in err
        assert "line 3" in err

    def test_fewer_groups_than_splits(self, fails, photos, tmp_path):
        rows = [f"{c}/{i}.png,{c},track{c}{i % 3}" for c in ("None", "Roadwork") for i in range(12)]
        (photos / "index.csv").write_text("\n".join(["path,label,group", *rows]))
        err = fails("train", f"data.root={photos}", f"run_dir={tmp_path / 'run'}")
        assert "at least 4 are needed" in err
        assert not (tmp_path / "run" / "splits.json").exists()

    def test_too_many_bad_files(self, fails, photos, tmp_path):
        for i in range(8):
            (photos / "None" / f"{i}.png").write_bytes(b"no image")
        err = fails("train", f"data.root={photos}", f"run_dir={tmp_path / 'run'}")
        assert "8 of 40 images" in err
        assert "data_report.json" in err
        assert len(read_json(tmp_path / "run" / "data_report.json")["invalid"]) == 8

    def test_unusual_files_are_decoded_or_reported_and_the_run_continues(self, command, scenes, tmp_path):
        photos = shutil.copytree(scenes, tmp_path / "photos")
        index = (photos / "index.csv").read_text().splitlines()
        pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        image.convert("CMYK").save(photos / "cmyk.jpg")
        image.convert("P").save(photos / "palette.png")
        image.convert("RGBA").save(photos / "alpha.png")
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(photos / "deep.png")
        turned = Image.Exif()
        turned[0x0112] = 6
        image.save(photos / "turned.jpg", exif=turned)
        other = Image.fromarray(255 - pixels)
        image.save(photos / "moving.gif", save_all=True, append_images=[other])
        good = ["cmyk.jpg", "palette.png", "alpha.png", "deep.png", "turned.jpg", "moving.gif"]
        (photos / "empty.jpg").write_bytes(b"")
        (photos / "text.jpg").write_text("no image")
        jpeg = (photos / index[1].split(",")[0]).read_bytes()
        (photos / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
        bad = ["empty.jpg", "text.jpg", "cut.jpg"]
        rows = [f"{name},1,odd{i},odd" for i, name in enumerate(good + bad)]  # copies must have one label
        (photos / "index.csv").write_text("\n".join([*index, *rows]))
        schema = ArtifactSchema(tmp_path / "run")
        settings = [f"data.root={photos}", f"run_dir={schema.output_dir}", "pipeline.phases=[phase1]", *TINY_MODEL]
        code, _, err = command("train", *settings)
        assert code == 0, err
        assert "3 unusable images" in err
        assert sorted(file["path"] for file in read_json(schema.data_report_json)["invalid"]) == sorted(bad)
        rows = {row["path"]: row for row in read_json(schema.splits_json)["rows"]}
        assert set(good) <= set(rows)
        assert (rows["turned.jpg"]["width"], rows["turned.jpg"]["height"]) == (40, 60)

    def test_an_image_that_vanishes_after_the_index_is_named(self, fails, command, photos, tmp_path):
        run = [f"run_dir={tmp_path / 'run'}", *TINY_MODEL, "phase5.folds=2"]
        assert command("train", f"data.root={photos}", *run, "pipeline.phases=[data]")[0] == 0
        stamp = (photos / "None").stat()
        for path in photos.rglob("*.png"):
            path.write_bytes(path.read_bytes()[:20] + b"x")
        assert stamp
        err = fails("train", f"data.root={photos}", *run, "pipeline.phases=[phase1]")
        assert "cannot be used" in err


class TestSettings:
    def test_an_unknown_key_suggests_the_nearest(self, fails):
        err = fails("train", "training.epoch=3")
        assert "training.epoch is not a setting" in err
        assert "training.epochs?" in err

    def test_a_value_that_is_not_allowed(self, fails):
        assert "training.epochs=0: input should be greater" in fails("train", "training.epochs=0")

    @pytest.mark.parametrize(
        ("setting", "nearest"),
        [
            ("training.mode=frosen", "there is no training.mode 'frosen'; did you mean 'frozen'?"),
            ("phase5.method=isotoonic", "there is no phase5.method 'isotoonic'; did you mean 'isotonic'?"),
            ("training.loss.name=hinge", "choose one of: cross_entropy, focal, weighted_cross_entropy"),
            ("model.backbone.source=tim", "there is no backbone source 'tim'; did you mean 'timm'?"),
        ],
    )
    def test_a_name_that_is_not_allowed_suggests_the_nearest(self, fails, setting, nearest):
        assert nearest in fails("train", setting)

    def test_an_unknown_phase(self, fails, tmp_path):
        err = fails("train", "pipeline.phases=[phase9]", f"run_dir={tmp_path / 'run'}")
        assert "there is no phase 'phase9'" in err
        assert "phase1, phase2" in err

    def test_an_unknown_model(self, fails):
        assert "random_small" in fails("train", "model=resnet")

    @pytest.mark.parametrize("text", ["a: [", "- 1\n- 2", "\tx: 1", "training: {epoch: 3}"])
    def test_bad_yaml(self, fails, tmp_path, text):
        (tmp_path / "my.yaml").write_text(text)
        fails("train", "--config", tmp_path / "my.yaml")

    def test_a_class_name_that_yaml_reads_as_a_boolean(self, fails):
        assert 'data.class_names=["no","yes"]' in fails("train", "data.class_names=[no,yes]")

    def test_a_seed_out_of_range(self, fails):
        assert "training.seed=4294967296: input should be less" in fails("train", "training.seed=4294967296")

    def test_an_argument_or_a_root_that_is_empty(self, fails):
        assert "one of the arguments is empty" in fails("predict", "--bundle", "export", "")
        assert "data.root=''" in fails("train", "data.root=")

    def test_a_text_with_nul(self, fails, tmp_path):
        (tmp_path / "my.yaml").write_text('run_dir: "a\\0b"')
        assert "contains the character NUL" in fails("train", "--config", tmp_path / "my.yaml")

    def test_a_missing_config_file(self, fails, tmp_path):
        assert "cannot read" in fails("train", "--config", tmp_path / "my.yaml")

    def test_missing_weights(self, fails, photos, tmp_path):
        weights = ["model=deit_tiny", f"model.backbone.weights={tmp_path / 'w.pth'}"]
        assert "w.pth" in fails("train", f"data.root={photos}", f"run_dir={tmp_path / 'run'}", *weights)

    def test_a_phase_without_what_it_needs(self, fails, tmp_path):
        err = fails("train", "pipeline.phases=[phase2]", f"run_dir={tmp_path / 'run'}")
        assert "phase2 needs phase1/val_calib_logits.pt of phase1, which this run does not have" in err
        assert "pipeline.phases=[phase1,phase2]" in err

    def test_a_run_folder_of_other_data(self, fails, finished_run, photos, tmp_path):
        run = shutil.copytree(finished_run, tmp_path / "run")
        assert "belongs to data.root" in fails("train", f"data.root={photos}", f"run_dir={run}")


class TestDisk:
    def test_a_name_that_is_too_long(self, fails, photos, finished_run, tmp_path):
        long = tmp_path / ("a" * 300)
        assert "File name too long" in fails("train", f"data.root={photos}", f"run_dir={long}")
        assert "File name too long" in fails("predict", "--bundle", finished_run / "export", photos, "--out", long)

    def test_a_folder_where_a_file_should_be(self, fails, finished_run, tmp_path):
        run = shutil.copytree(finished_run, tmp_path / "run")
        manifest = ArtifactSchema(run).manifest("phase2")
        manifest.unlink()
        manifest.mkdir()
        assert "Is a directory" in fails("train", f"run_dir={run}", "pipeline.phases=[phase2]")

    def test_a_manifest_without_its_data(self, fails, finished_run, tmp_path):
        run = shutil.copytree(finished_run, tmp_path / "run")
        path = ArtifactSchema(run).manifest("data")
        write_json_atomic(path, {**read_json(path), "config": {}})
        assert "does not record the settings of this run" in fails("train", f"run_dir={run}")

    def test_a_run_folder_that_cannot_be_made(self, fails, photos, tmp_path):
        (tmp_path / "file").write_text("")
        assert "cannot be created" in fails("train", f"data.root={photos}", f"run_dir={tmp_path / 'file' / 'run'}")

    def test_a_full_disk(self, fails, photos, tmp_path, monkeypatch):
        def refuse(_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("streetvision.io.atomic.os.fsync", refuse)
        assert "No space left" in fails("train", f"data.root={photos}", f"run_dir={tmp_path / 'run'}")
        assert not (tmp_path / "run").exists()


class TestBundle:
    def test_a_missing_bundle(self, fails, tmp_path):
        for verb in (["predict", "--bundle", tmp_path, tmp_path], ["evaluate", "--bundle", tmp_path]):
            assert "there is no bundle" in fails(*verb)

    @pytest.mark.parametrize("name", ["model.pth", "model_config.json", "scrc_params.json", "scrc_params.pkl"])
    def test_one_byte_changed_or_a_file_gone_names_the_file(self, fails, finished_run, scenes, tmp_path, name):
        export = shutil.copytree(finished_run / "export", tmp_path / "export")
        content = bytearray((export / name).read_bytes())
        content[len(content) // 2] ^= 1
        (export / name).write_bytes(content)
        assert name in fails("predict", "--bundle", export, scenes)
        (export / name).unlink()
        assert name in fails("predict", "--bundle", export, scenes)

    def test_a_bundle_of_another_data_set_is_not_evaluated(self, fails, finished_run, tmp_path):
        run = shutil.copytree(finished_run, tmp_path / "run")
        edit_bundle_json(run / "export", lambda bundle: bundle.update(data_fingerprint="0" * 64))
        assert "fingerprint" in fails("evaluate", "--bundle", run / "export")

    def test_an_unreadable_image_is_reported_and_the_others_are_predicted(
        self, command, finished_run, scenes, tmp_path
    ):
        (tmp_path / "bad.jpg").write_bytes(b"no image")
        good = sorted(scenes.rglob("*.jpg"))[0]
        code, out, _ = command("predict", "--bundle", finished_run / "export", tmp_path / "bad.jpg", good)
        assert code == 2
        first, second = out.splitlines()
        assert '"error"' in first
        assert '"probability"' in second
