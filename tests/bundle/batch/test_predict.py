"""Any number of images into a folder of answers: the same answers by every way, once each, whatever is killed."""

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

from streetvision.bundle.batch.predict import predict_sources
from streetvision.bundle.batch.shards import claim, open_folder
from streetvision.bundle.format import read_bundle
from streetvision.bundle.predictor import load_bundle
from streetvision.contracts.errors import ArtifactError, ConfigError, StreetVisionError
from streetvision.data.sources.image_stream import list_image_refs
from streetvision.io.atomic import read_json
from streetvision.pipeline.console import Console
from tests.conftest import edit_bundle_json

SHARD = 7


@pytest.fixture(scope="module")
def export(finished_run):
    return finished_run / "export"


@pytest.fixture(scope="module")
def photos(scenes, tmp_path_factory):
    """Thirty images in a folder, a tar and a Parquet file, in each also one that is none."""
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
    """Digest-free truth: the name of each image -> what the bundle says of it."""
    files = sorted(path for path in (photos / "folder").rglob("*.jpg") if path.name != "bad.jpg")
    return dict(zip([path.name for path in files], load_bundle(export).predict(files), strict=True))


def read_answers(out):
    return [json.loads(line) for path in sorted((out / "answers").iterdir()) for line in path.read_text().splitlines()]


def check_answers(out, photos, expected):
    """Every image of the folder, tar and Parquet file has one answer, the bundle's own; bad ones have a reason."""
    names = [path.name for path in sorted((photos / "folder").rglob("*.jpg"))]
    answers = read_answers(out)
    assert len({answer["image"] for answer in answers}) == len(answers) == 3 * len(names)
    for answer in answers:
        place, _, row = answer["image"].partition("#")
        name = names[int(row)] if row else Path(place).name
        if name == "bad.jpg":
            assert answer["error"]
            continue
        truth = expected[name]
        assert answer["probability"] == pytest.approx(truth.probability, abs=1e-6)
        assert (answer["label"], answer["decision"], answer["certified"]) == (
            truth.label,
            truth.decision,
            truth.certified,
        )
    failures = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert failures == [answer for answer in answers if "error" in answer]
    assert len(failures) == read_json(out / "manifest.json")["failures"] == 3


def answer(export, photos, out, **options):
    sources = [photos / "folder", photos / "photos.tar", photos / "photos.parquet"]
    return predict_sources(export, sources, out, **{"workers": 1, "shard_size": SHARD, "console": Console(), **options})


@pytest.fixture(scope="module")
def answered(export, photos, tmp_path_factory):
    """The folder of all answers, by one worker; tests that change it work on a copy."""
    out = tmp_path_factory.mktemp("answered") / "out"
    answer(export, photos, out)
    return out


def test_folder_tar_and_parquet_get_the_answers_of_the_bundle(answered, photos, expected):
    check_answers(answered, photos, expected)
    assert len(list((answered / "answers").iterdir())) == 14
    assert not list(answered.rglob("*.tmp"))


def test_two_workers_write_what_one_does(answered, export, photos, tmp_path):
    answer(export, photos, tmp_path, workers=2)
    one, two = (sorted((out / "answers").iterdir()) for out in (answered, tmp_path))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_the_command_line_goes_on_and_leaves_with_two_where_images_fail(command, answered, export, photos, tmp_path):
    out = shutil.copytree(answered, tmp_path / "out")
    sources = [photos / "folder", photos / "photos.tar", photos / "photos.parquet"]
    lost, kept = (out / "answers" / name for name in ("00000001.jsonl", "00000000.jsonl"))
    lost.unlink()
    then = kept.stat().st_mtime_ns
    for there in (13, 14):
        code, told, err = command("predict", "--bundle", export, *sources, "--out", out, "--workers", 2)
        assert code == 2, err
        assert f"93 in 14 shards of 7, {there} of them there already" in told
        assert "3 of them failures" in told
        assert "failures.jsonl" in told
    assert lost.read_bytes() == (answered / "answers" / lost.name).read_bytes()
    assert kept.stat().st_mtime_ns == then


def test_a_killed_run_leaves_no_half_shard_and_goes_on(export, photos, expected, tmp_path):
    out, sources = tmp_path / "out", [photos / "folder", photos / "photos.tar", photos / "photos.parquet"]
    line = [sys.executable, "-m", "streetvision", "predict", "--bundle", export, *sources, "--out", out]
    process = subprocess.Popen([*line, "--workers", "1", "--shard-size", str(SHARD)], stdout=subprocess.DEVNULL)
    while not (out / "answers").is_dir() or not list((out / "answers").glob("*.jsonl")):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    whole = {path: path.stat().st_mtime_ns for path in (out / "answers").glob("*.jsonl")}
    assert all(len(path.read_text().splitlines()) == SHARD for path in whole)
    answer(export, photos, out)
    check_answers(out, photos, expected)
    assert all(path.stat().st_mtime_ns == then for path, then in whole.items())


def test_a_listing_that_was_cut_off_is_made_anew(photos, tmp_path):
    (tmp_path / "listing").mkdir()
    (tmp_path / "listing" / "00000099.jsonl").write_text("half")
    (tmp_path / ".lock").write_text("process 1")
    (tmp_path / ".left.99999999-0123abcd.tmp").write_text("half")
    with claim(tmp_path):
        open_folder(tmp_path, [photos], bundle="0" * 64, shard_size=50)
    assert sorted(path.name for path in (tmp_path / "listing").iterdir()) == ["00000000.jsonl", "00000001.jsonl"]
    assert not (tmp_path / ".left.99999999-0123abcd.tmp").exists()


def test_names_that_are_no_letters_come_back_as_they_are(export, photos, tmp_path, command):
    folder = tmp_path / "photos"
    folder.mkdir()
    image = next(photos.rglob("*.jpg")).read_bytes()
    odd = os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jpg")
    Path(odd).write_bytes(image)
    code, _, err = command("predict", "--bundle", export, folder, "--out", tmp_path / "out", "--workers", "1")
    assert code == 0, err
    (line,) = (tmp_path / "out" / "answers" / "00000000.jsonl").read_text().splitlines()
    assert json.loads(line)["image"] == odd


def test_answers_that_were_cut_off_are_not_taken_for_whole(answered, export, photos, tmp_path):
    out = shutil.copytree(answered, tmp_path / "out")
    shard = out / "answers" / "00000000.jsonl"
    shard.write_text("".join(shard.read_text().splitlines(keepends=True)[:5]))
    with pytest.raises(ArtifactError, match="has 5 answers, and should have 7"):
        answer(export, photos, out)
    shard.write_text("[]\n" * SHARD)
    with pytest.raises(ArtifactError, match="line 1 should be an object, and is list"):
        answer(export, photos, out)


def test_a_link_that_leads_nowhere_costs_no_other_image(photos, tmp_path):
    folder = shutil.copytree(photos / "folder", tmp_path / "folder")
    whole = {item.name for item in list_image_refs([folder])}
    (folder / "loop.jpg").symlink_to("loop.jpg")
    assert {item.name for item in list_image_refs([folder])} == whole | {str(folder / "loop.jpg")}


class Killer(Console):
    """Kills a worker as soon as one shard is done."""

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


def test_a_worker_that_dies_is_named_with_its_shard(answered, export, photos, tmp_path):
    console = Killer()
    with pytest.raises(ArtifactError, match=r"worker process \d+ was killed by SIGKILL on shard \d+") as caught:
        answer(export, photos, tmp_path, workers=2, console=console)
    assert str(console.killed) in caught.value.message
    assert not multiprocessing.active_children()
    whole = list((tmp_path / "answers").glob("*.jsonl"))
    assert whole
    assert all(path.read_bytes() == (answered / "answers" / path.name).read_bytes() for path in whole)


def test_what_a_worker_meets_reaches_the_person(answered, export, photos, tmp_path):
    out = shutil.copytree(answered, tmp_path / "out")
    (out / "listing" / "00000003.jsonl").unlink()
    (out / "answers" / "00000003.jsonl").unlink()
    with pytest.raises(StreetVisionError, match=r"cannot read .*00000003\.jsonl"):
        answer(export, photos, out)


def test_answers_of_another_bundle_or_shard_size_are_not_mixed(answered, export, photos, tmp_path):
    other = shutil.copytree(export, tmp_path / "export")
    edit_bundle_json(other, lambda bundle: bundle.update(data_fingerprint="0" * 64))
    with pytest.raises(ArtifactError, match="answers of another bundle"):
        answer(other, photos, answered)
    with pytest.raises(ConfigError, match="begun with shards of 7 images, not 8"):
        answer(export, photos, answered, shard_size=8)
    assert answer(export, photos, answered, shard_size=None).shard_size == SHARD


def test_answers_of_other_images_are_not_mixed(export, photos, tmp_path):
    bad = shutil.copy(photos / "folder" / "bad.jpg", tmp_path)
    out = tmp_path / "out"
    seal = read_bundle(export).manifest.digest
    open_folder(out, [tmp_path], bundle=seal, shard_size=None)
    open_folder(out, [tmp_path], bundle=seal, shard_size=None)
    shutil.copy(bad, tmp_path / "more.jpg")
    with pytest.raises(ArtifactError, match="other images: 1 then, 2 now"):
        open_folder(out, [tmp_path], bundle=seal, shard_size=None)
    (tmp_path / "more.jpg").unlink()
    Path(bad).write_bytes(b"of quite another size")
    with pytest.raises(ArtifactError, match="other images: 1 then, 1 now"):
        open_folder(out, [tmp_path], bundle=seal, shard_size=None)


def test_a_folder_of_something_else_is_left_alone(export, photos, tmp_path):
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        answer(export, photos, tmp_path)
    assert (tmp_path / "answers" / "mine.txt").read_text() == "mine"


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
        """Ray on this machine, with room for two workers; or a skip that says so."""
        ray = pytest.importorskip("ray", reason="the extra ray is not installed: answers by Ray Data are not tried")
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray spells it so); else workers stand back
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield ray
        ray.shutdown()

    def test_two_workers_give_the_same_answers_and_errors_reach_the_person(
        self, cluster, export, photos, expected, tmp_path
    ):
        out = tmp_path / "out"
        answer(export, photos, out, engine="ray", workers=2)
        check_answers(out, photos, expected)
        lost = out / "answers" / "00000003.jsonl"
        before = lost.read_bytes()
        lost.unlink()
        answer(export, photos, out, engine="ray", workers=2)
        assert lost.read_bytes() == before
        lost.unlink()
        (out / "listing" / "00000003.jsonl").unlink()
        with pytest.raises(StreetVisionError, match=r"cannot read .*00000003\.jsonl"):
            answer(export, photos, out, engine="ray", workers=2)

    def test_without_ray_there_is_a_word_about_the_extra(self, export, photos, tmp_path, monkeypatch):
        monkeypatch.setattr("streetvision.bundle.batch.executors.find_spec", lambda _: None)
        with pytest.raises(ConfigError, match=r"streetvision\[ray\]"):
            answer(export, photos, tmp_path / "out", engine="ray")
