"""Batch predictions: the same predictions from every source and executor, once each, also after interruptions."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from streetvision.bundle.batch.executors import EXECUTORS
from streetvision.bundle.batch.files import predict_images
from streetvision.bundle.batch.predict import predict_sources
from streetvision.bundle.batch.shards import lock_folder, open_folder
from streetvision.bundle.format import read_bundle
from streetvision.bundle.predictor import load_bundle
from streetvision.contracts.errors import ArtifactError, ConfigError
from streetvision.data.sources.image_stream import list_image_refs
from streetvision.io.atomic import read_json
from streetvision.pipeline.console import Console
from tests.conftest import edit_bundle_json

SHARD = 7


@pytest.fixture(scope="module")
def export(onnx_bundle):
    return onnx_bundle


@pytest.fixture(scope="module")
def photos(scenes, tmp_path_factory):
    """Thirty images and a damaged one, in a folder, a tar and a Parquet file."""
    root = tmp_path_factory.mktemp("photos")
    (root / "folder" / "deep").mkdir(parents=True)
    for number, path in enumerate(sorted((scenes / "images").iterdir())[:30]):
        shutil.copy(path, root / "folder" / ("deep" if number % 2 else ".") / path.name)
    (root / "folder" / "bad.jpg").write_bytes(b"\xff\xd8\xff no image")
    files = sorted((root / "folder").rglob("*.jpg"))
    with tarfile.open(root / "photos.tar", "w") as archive:
        for path in files:
            archive.add(path, path.name)
    rows = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
    pq.write_table(pa.table({"image": rows}), root / "photos.parquet", row_group_size=10)
    return root


@pytest.fixture(scope="module")
def expected(photos, export):
    """Name of each image -> its prediction by the bundle."""
    files = sorted(path for path in (photos / "folder").rglob("*.jpg") if path.name != "bad.jpg")
    return dict(zip([path.name for path in files], load_bundle(export).predict(files), strict=True))


def read_predictions(out):
    paths = sorted((out / "predictions").iterdir())
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def check_predictions(out, photos, expected):
    """Check that each image of the folder, tar and Parquet file has one prediction, and a damaged one an error."""
    names = [path.name for path in sorted((photos / "folder").rglob("*.jpg"))]
    rows = read_predictions(out)
    assert len({row["image"] for row in rows}) == len(rows) == 3 * len(names)
    for row in rows:
        path, _, number = row["image"].partition("#")
        name = names[int(number)] if number else Path(path).name
        if name == "bad.jpg":
            assert row["error"]
            continue
        prediction = expected[name]
        assert row["probability"] == pytest.approx(prediction.probability, abs=1e-6)
        fields = ("label", "decision", "certified")
        assert [row[field] for field in fields] == [getattr(prediction, field) for field in fields]
    failures = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert failures == [row for row in rows if "error" in row]
    assert len(failures) == read_json(out / "manifest.json")["failures"] == 3


def predict(export, photos, out, **options):
    sources = [photos / "folder", photos / "photos.tar", photos / "photos.parquet"]
    return predict_sources(export, sources, out, **{"workers": 1, "shard_size": SHARD, "console": Console(), **options})


@pytest.fixture(scope="module")
def finished(export, photos, tmp_path_factory):
    """The folder of all predictions, by one worker; tests that change it work on a copy."""
    out = tmp_path_factory.mktemp("finished") / "out"
    predict(export, photos, out)
    return out


@pytest.mark.parametrize("decoders", [1, 3])
def test_predictions_are_in_order_with_any_number_of_decoding_threads(export, photos, expected, decoders):
    files = [(path.name, path) for path in sorted((photos / "folder").rglob("*.jpg"))]
    rows = list(predict_images(load_bundle(export), files, decoders=decoders))
    assert [row["image"] for row in rows] == [name for name, _ in files]
    for row in rows:
        assert row["image"] == "bad.jpg" or row["probability"] == pytest.approx(
            expected[row["image"]].probability, abs=1e-6
        )
        assert ("error" in row) == (row["image"] == "bad.jpg")


def test_folder_tar_and_parquet_have_the_predictions_of_the_bundle(finished, photos, expected):
    check_predictions(finished, photos, expected)
    assert len(list((finished / "predictions").iterdir())) == 14
    assert not list(finished.rglob("*.tmp"))


def test_two_workers_write_the_same_as_one(finished, export, photos, tmp_path):
    predict(export, photos, tmp_path, workers=2)
    one, two = (sorted((out / "predictions").iterdir()) for out in (finished, tmp_path))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_two_workers_predict_with_pytorch(finished_run, photos, tmp_path):
    bundle = finished_run / "export"
    predict(bundle, photos, tmp_path, workers=2)
    files = sorted(path for path in (photos / "folder").rglob("*.jpg") if path.name != "bad.jpg")
    predictions = load_bundle(bundle).predict(files)
    check_predictions(tmp_path, photos, dict(zip([path.name for path in files], predictions, strict=True)))


def test_the_command_line_resumes_and_exits_with_2_if_images_fail(command, finished, export, photos, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    sources = [photos / "folder", photos / "photos.tar", photos / "photos.parquet"]
    deleted, other = (out / "predictions" / name for name in ("00000001.jsonl", "00000000.jsonl"))
    deleted.unlink()
    modified = other.stat().st_mtime_ns
    for n_done in (13, 14):
        code, text, err = command("predict", "--bundle", export, *sources, "--out", out, "--workers", 2)
        assert code == 2, err
        assert f"93 in 14 shards of 7; {n_done} of them are already done" in text
        assert "3 of them failed" in text
        assert "failures.jsonl" in text
    assert deleted.read_bytes() == (finished / "predictions" / deleted.name).read_bytes()
    assert other.stat().st_mtime_ns == modified


def test_damage_is_noted_for_its_image(command, export, photos, tmp_path):
    data = next((photos / "folder" / "deep").iterdir()).read_bytes()
    (tmp_path / "whole.jpg").write_bytes(data)
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) * 2 // 3] + b"\xff\xd9")
    code, text, err = command("predict", "--bundle", export, tmp_path / "whole.jpg", tmp_path / "cut.jpg")
    whole, cut = map(json.loads, text.splitlines())
    assert (code, err) == (0, "")
    assert "note" not in whole
    assert cut["note"]
    assert 0 <= cut["probability"] <= 1
    out = tmp_path / "out"
    predict_sources(export, [tmp_path / "whole.jpg", tmp_path / "cut.jpg"], out, workers=1, console=Console())
    assert ["note" in row for row in read_predictions(out)] == [False, True]


def test_the_limit_of_pixels_is_an_option_that_the_error_names(command, export, tmp_path):
    Image.new("L", (1000, 1000)).save(tmp_path / "large.png")
    arguments = ["predict", "--bundle", export, tmp_path / "large.png"]
    code, text, _ = command(*arguments, "--max-megapixels", 4)
    assert code == 2
    assert "--max-megapixels" in json.loads(text)["error"]
    assert command(*arguments, "--max-megapixels", 5)[0] == 0
    out = ["--out", tmp_path / "out", "--workers", 1]
    assert command(*arguments, *out, "--max-megapixels", 4)[0] == 2
    assert "--max-megapixels" in read_predictions(tmp_path / "out")[0]["error"]
    code, _, err = command(*arguments, *out)
    assert code == 2
    assert "--max-megapixels 4" in err


@pytest.mark.parametrize("name", ["photos.tar", "photos.parquet"])
def test_a_tar_or_a_parquet_file_needs_out(command, export, photos, name):
    code, text, err = command("predict", "--bundle", export, photos / name)
    assert (code, text) == (2, "")
    assert "--out" in err


@pytest.mark.parametrize("name", ["photos.tar.gz", "photos.TGZ", "photos.zip"])
def test_a_compressed_archive_is_refused(command, export, name, tmp_path):
    (tmp_path / name).touch()
    for out in ([], ["--out", tmp_path / "out"]):
        code, text, err = command("predict", "--bundle", export, tmp_path / name, *out)
        assert (code, text) == (2, "")
        assert "compressed archive" in err


def test_a_folder_without_images_is_reported_with_the_files_that_are_left_out(command, export, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.heic").touch()
    for out in ([], ["--out", tmp_path / "out"]):
        code, _, err = command("predict", "--bundle", export, tmp_path / "photos", *out)
        assert code == 2
        assert "HEIC" in err


@pytest.mark.parametrize("limit", ["nan", "inf"])
def test_a_limit_of_pixels_that_is_not_finite_is_refused(limit, command, export, tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "small.png")
    for out in ([], ["--out", tmp_path / "out"]):
        code, _, err = command("predict", "--bundle", export, tmp_path / "small.png", *out, "--max-megapixels", limit)
        assert code == 2
        assert "--max-megapixels" in err


def test_a_killed_run_leaves_no_partial_shard_and_resumes(export, photos, expected, tmp_path):
    out, sources = tmp_path / "out", [photos / "folder", photos / "photos.tar", photos / "photos.parquet"]
    line = [sys.executable, "-m", "streetvision", "predict", "--bundle", export, *sources, "--out", out]
    process = subprocess.Popen([*line, "--workers", "1", "--shard-size", str(SHARD)], stdout=subprocess.DEVNULL)
    while not (out / "predictions").is_dir() or not list((out / "predictions").glob("*.jsonl")):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    complete = {path: path.stat().st_mtime_ns for path in (out / "predictions").glob("*.jsonl")}
    assert all(len(path.read_text().splitlines()) == SHARD for path in complete)
    predict(export, photos, out)
    check_predictions(out, photos, expected)
    assert all(path.stat().st_mtime_ns == modified for path, modified in complete.items())


def test_an_incomplete_listing_is_written_again(photos, tmp_path):
    (tmp_path / "listing").mkdir()
    (tmp_path / "listing" / "00000099.jsonl").write_text("partial")
    (tmp_path / ".lock").write_text("process 1")
    (tmp_path / ".temp.99999999-0123abcd.tmp").write_text("partial")
    with lock_folder(tmp_path):
        open_folder(tmp_path, [photos], bundle="0" * 64, shard_size=50)
    assert sorted(path.name for path in (tmp_path / "listing").iterdir()) == ["00000000.jsonl", "00000001.jsonl"]
    assert not (tmp_path / ".temp.99999999-0123abcd.tmp").exists()


def test_names_that_are_not_utf8_are_unchanged(export, photos, tmp_path, command):
    folder = tmp_path / "photos"
    folder.mkdir()
    image = next(photos.rglob("*.jpg")).read_bytes()
    odd = os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jpg")
    Path(odd).write_bytes(image)
    code, _, err = command("predict", "--bundle", export, folder, "--out", tmp_path / "out", "--workers", "1")
    assert code == 0, err
    (line,) = (tmp_path / "out" / "predictions" / "00000000.jsonl").read_text().splitlines()
    assert json.loads(line)["image"] == odd


def test_incomplete_predictions_are_rejected(finished, export, photos, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    shard = out / "predictions" / "00000000.jsonl"
    shard.write_text("".join(shard.read_text().splitlines(keepends=True)[:5]))
    with pytest.raises(ArtifactError, match="has 5 predictions, expected 7"):
        predict(export, photos, out)
    shard.write_text("[]\n" * SHARD)
    with pytest.raises(ArtifactError, match="line 1 must be an object, not list"):
        predict(export, photos, out)


def test_a_broken_link_does_not_affect_other_images(photos, tmp_path):
    folder = shutil.copytree(photos / "folder", tmp_path / "folder")
    names = {item.name for item in list_image_refs([folder])}
    (folder / "loop.jpg").symlink_to("loop.jpg")
    assert {item.name for item in list_image_refs([folder])} == names | {str(folder / "loop.jpg")}


class Killer(Console):
    """Kills a worker when one shard is done."""

    killed = None

    def track(self, items, **_):
        for item in items:
            yield item
            if self.killed is not None:
                continue
            worker = multiprocessing.active_children()[0]
            self.killed = worker.pid
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()


def test_a_worker_that_dies_is_reported_with_its_shard(finished, export, photos, tmp_path):
    console = Killer()
    with pytest.raises(ArtifactError, match=r"worker process \d+ was killed by SIGKILL on shard \d+") as caught:
        predict(export, photos, tmp_path, workers=2, console=console)
    assert str(console.killed) in caught.value.message
    assert not multiprocessing.active_children()
    complete = list((tmp_path / "predictions").glob("*.jsonl"))
    assert complete
    assert all(path.read_bytes() == (finished / "predictions" / path.name).read_bytes() for path in complete)


def test_the_error_of_a_worker_is_reported(finished, export, photos, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    (out / "listing" / "00000003.jsonl").unlink()
    (out / "predictions" / "00000003.jsonl").unlink()
    with pytest.raises(ArtifactError, match=r"cannot read .*00000003\.jsonl"):
        predict(export, photos, out)


def test_predictions_of_another_bundle_or_shard_size_are_not_mixed(finished, export, photos, tmp_path):
    other = shutil.copytree(export, tmp_path / "export")
    edit_bundle_json(other, lambda bundle: bundle.update(data_fingerprint="0" * 64))
    with pytest.raises(ArtifactError, match="predictions of another bundle"):
        predict(other, photos, finished)
    with pytest.raises(ConfigError, match="has shards of 7 images, not 8"):
        predict(export, photos, finished, shard_size=8)
    assert predict(export, photos, finished, shard_size=None).shard_size == SHARD


def test_predictions_of_other_images_are_not_mixed(export, photos, tmp_path):
    bad = shutil.copy(photos / "folder" / "bad.jpg", tmp_path)
    out = tmp_path / "out"
    digest = read_bundle(export).manifest.digest
    open_folder(out, [tmp_path], bundle=digest, shard_size=None)
    open_folder(out, [tmp_path], bundle=digest, shard_size=None)
    shutil.copy(bad, tmp_path / "more.jpg")
    with pytest.raises(ArtifactError, match="other images: 1 before, 2 now"):
        open_folder(out, [tmp_path], bundle=digest, shard_size=None)
    (tmp_path / "more.jpg").unlink()
    Path(bad).write_bytes(b"of another size")
    with pytest.raises(ArtifactError, match="other images: 1 before, 1 now"):
        open_folder(out, [tmp_path], bundle=digest, shard_size=None)


def test_files_of_the_system_in_the_folder_do_not_count(photos, tmp_path):
    (tmp_path / "Thumbs.db").write_text("")
    with lock_folder(tmp_path):
        (tmp_path / ".DS_Store").write_text("")
    with lock_folder(tmp_path):  # the lock of the run before is there
        open_folder(tmp_path, [photos], bundle="0" * 64, shard_size=None)


def test_a_folder_with_other_contents_is_not_changed(export, photos, tmp_path):
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        predict(export, photos, tmp_path)
    assert (tmp_path / "predictions" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", 2], "--workers needs --out"),
        (["--engine", "ray"], "--engine needs --out"),
        (["--shard-size", 9], "--shard-size needs --out"),
        (["--out", "x", "--format", "csv"], "--format has no effect with --out"),
        (["--out", "x", "--explain", "y"], "--explain has no effect with --out"),
        (["--out", "x", "--workers", 0], "--workers 0"),
        (["--out", "x", "--shard-size", 0], "--shard-size 0"),
    ],
)
def test_no_option_is_ignored(command, export, photos, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = command("predict", "--bundle", export, photos / "folder", *options)
    assert code == 2
    assert message in err
    assert not any(tmp_path.iterdir())


class TestRay:
    @pytest.fixture(scope="class")
    def cluster(self):
        """Ray on this machine, with two workers."""
        ray = pytest.importorskip("ray", reason="the extra ray is not installed")
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (spelled by Ray); the default lowers the priority of workers
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield ray
        ray.shutdown()

    def test_two_workers_write_the_same_predictions_and_report_errors(
        self, cluster, export, photos, expected, tmp_path
    ):
        out = tmp_path / "out"
        predict(export, photos, out, engine="ray", workers=2)
        check_predictions(out, photos, expected)
        deleted = out / "predictions" / "00000003.jsonl"
        before = deleted.read_bytes()
        deleted.unlink()
        predict(export, photos, out, engine="ray", workers=2)
        assert deleted.read_bytes() == before
        deleted.unlink()
        (out / "listing" / "00000003.jsonl").unlink()
        with pytest.raises(ArtifactError, match=r"cannot read .*00000003\.jsonl"):
            predict(export, photos, out, engine="ray", workers=2)

    def test_without_ray_the_error_names_the_extra(self, export, photos, tmp_path, monkeypatch):
        monkeypatch.setattr("streetvision.bundle.batch.executors.find_spec", lambda _: None)
        with pytest.raises(ConfigError, match=r"streetvision\[ray\]"):
            predict(export, photos, tmp_path / "out", engine="ray")


def test_a_ray_cluster_without_cpus_or_that_cannot_be_reached_is_a_user_error(export, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"memory": 1.0})
    with pytest.raises(ConfigError):
        next(EXECUTORS["ray"](read_bundle(export), tmp_path, [0], None))

    def fail(**_):
        raise ConnectionError("Ray cannot connect")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(ConfigError):
        next(EXECUTORS["ray"](read_bundle(export), tmp_path, [0], None))
