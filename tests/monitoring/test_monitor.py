"""`streetvision monitor` on made predictions of a small bundle: updates, interruptions, hostile files, labels, page."""

import json
import re
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load, save

import streetvision
from streetvision.bundle import monitor_status
from streetvision.bundle.format import read_bundle, write_bundle
from streetvision.bundle.monitor_status import read_status
from streetvision.bundle.predictor import load_bundle
from streetvision.bundle.reference import (
    ARRAYS,
    REFERENCE,
    ReferenceHeader,
    build_reference,
    encode_components,
    read_reference,
    reference_bytes,
)
from streetvision.contracts.errors import ArtifactError, ConfigError, DataError
from streetvision.contracts.policies import RiskControl, RuntimeRef, ScrcPolicy
from streetvision.data.quality import ImageQuality
from streetvision.monitoring.monitor import Monitor
from streetvision.monitoring.state import MonitorState
from streetvision.monitoring.update import update_state

WIDTH, UNITS = 48, 400
MIXING = np.random.default_rng(7).normal(size=(WIDTH, WIDTH)).astype(np.float32)


def draw(rng, count, *, share=0.5, feature_shift=0.0, width=640.0):
    labels = (rng.random(count) < share).astype(np.int64)
    margins = rng.normal(np.where(labels == 1, 2.0, -2.0), 1)
    features = (rng.normal(size=(count, WIDTH)) + feature_shift * np.arange(WIDTH) / WIDTH).astype(np.float32) @ MIXING
    quality = [ImageQuality(width, 480.0, *row, 90.0) for row in rng.uniform(0.2, 0.8, size=(count, 3)).tolist()]
    return labels, margins, features, quality


@pytest.fixture(scope="module")
def bundle(finished_run, tmp_path_factory):
    """The bundle of the finished run, with a certificate and a reference of made images."""
    source = read_bundle(finished_run / "export")
    labels, margins, features, quality = draw(np.random.default_rng(0), UNITS)
    policy = source.manifest.policy
    assert isinstance(policy, ScrcPolicy)
    header = ReferenceHeader(
        scores_sha256=policy.scores.sha256,
        exact_scores=True,
        exact_features=True,
        groups=False,
        images=UNITS,
        units=UNITS,
    )
    folder = tmp_path_factory.mktemp("monitored")
    reference = build_reference(header, margins=margins, labels=labels, features=features, quality=quality)
    (folder / REFERENCE).write_bytes(reference_bytes(reference))
    control = RiskControl(
        kind="fnr", alpha=0.1, delta=0.1, certified=True, reason="test", n=100, units="rows", lo=-1.0, hi=1.0
    )
    params = policy.scrc_params.model_copy(update={"risk_control": control})
    files = {name: source.folder / name for name in source.manifest.files} | {REFERENCE: folder / REFERENCE}
    write_bundle(
        folder / "export",
        files,
        policy=policy.model_copy(update={"scrc_params": params}),
        class_names=source.manifest.class_names,
        data_fingerprint=source.manifest.data_fingerprint,
        split_sha256=source.manifest.split_sha256,
    )
    return folder / "export"


@pytest.fixture(scope="module")
def reference(bundle):
    from streetvision.bundle.format import read_bundle_reference

    return read_bundle_reference(read_bundle(bundle))


def lines(reference, count, seed, *, group=None, start=0, **shift):
    """Predictions as `predict --out` writes them, and the labels."""
    labels, margins, features, quality = draw(np.random.default_rng(seed), count, **shift)
    rows = []
    for index, row in enumerate(zip(margins.tolist(), reference.components(features), quality, strict=True), start):
        margin, components, values = row
        rows.append(
            {
                "image": f"{group or 'image'}_{index:06d}.jpg",
                "decision": int(margin >= 0),
                "probability": float(1 / (1 + np.exp(-margin))),
                "certified": None,
                "signals": {"margin": margin, "features": encode_components(components), "quality": list(values)},
            }
        )
    return rows, labels


def write(path, rows):
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    return path


def test_stream_like_the_reference_raises_no_alarm_and_a_shift_does(bundle, reference, tmp_path):
    calm, _ = lines(reference, 1500, 1)
    status = update_state(bundle, [write(tmp_path / "a.jsonl", calm)], state=tmp_path / "state", seed=1)
    assert (status.images, status.units, status.alarms) == (1500, 1500, [])
    assert status.prevalence.low <= 0.5 <= status.prevalence.high
    shifted, _ = lines(reference, 800, 2, feature_shift=6.0, share=0.9, start=5000)
    status = update_state(bundle, [write(tmp_path / "b.jsonl", shifted)], state=tmp_path / "state", seed=1)
    assert status.alarms == ["images", "scores"]
    assert 1500 < status.tests["images"].alarm_at < 2300
    assert status.recent_prevalence.estimate > 0.55
    assert read_status(tmp_path / "state") == status


def test_a_change_of_quality_alone_raises_an_alarm(bundle, reference, tmp_path):
    calm, _ = lines(reference, 300, 1)
    smaller, _ = lines(reference, 300, 2, width=320.0, start=300)
    png, _ = lines(reference, 300, 2, start=300)
    for row in png:
        row["signals"]["quality"][-1] = None
    for name, rows in (("smaller", smaller), ("png", png)):
        path = write(tmp_path / f"{name}.jsonl", [*calm, *rows])
        status = update_state(bundle, [path], state=tmp_path / name, seed=1)
        assert status.alarms == ["quality"]
        assert 300 < status.tests["quality"].alarm_at < 360


def test_resumed_and_growing_files_equal_one_update(bundle, reference, tmp_path):
    rows, _ = lines(reference, 900, 3)
    whole = update_state(bundle, [write(tmp_path / "all.jsonl", rows)], state=tmp_path / "one", seed=4)
    log = tmp_path / "log.jsonl"
    for stop in (250, 600, 900):
        write(log, rows[:stop])
        with log.open("ab") as handle:
            handle.write(b'{"image": "unfin')  # a line that is being written
        parts = update_state(bundle, [log], state=tmp_path / "parts", seed=4)
    again = update_state(bundle, [log.rename(tmp_path / "rotated.jsonl")], state=tmp_path / "parts", seed=4)
    assert again == parts
    for name, test in whole.tests.items():
        assert parts.tests[name].log10_martingale == pytest.approx(test.log10_martingale)
    assert parts.prevalence == whole.prevalence


def test_files_with_the_same_first_line_are_one_file_only_if_one_is_the_beginning_of_the_other(
    bundle, reference, tmp_path
):
    rows, _ = lines(reference, 60, 3)
    monday = write(tmp_path / "mon.jsonl", rows[:20])
    longer = write(tmp_path / "mon_longer.jsonl", rows[:40])
    tuesday = write(tmp_path / "tue.jsonl", [rows[0], *rows[30:]])
    for number, both in enumerate(([monday, longer], [longer, monday])):
        assert update_state(bundle, both, state=tmp_path / f"{number}").images == 40
    with pytest.raises(DataError) as error:
        update_state(bundle, [monday, tuesday], state=tmp_path / "both")
    assert all(repr(str(path)) in error.value.message for path in (monday, tuesday))

    update_state(bundle, [monday], state=tmp_path / "days")
    with pytest.raises(ArtifactError):
        update_state(bundle, [tuesday], state=tmp_path / "days")
    assert update_state(bundle, [longer], state=tmp_path / "days").images == 40
    with pytest.raises(ArtifactError):
        update_state(bundle, [monday], state=tmp_path / "days")


def test_a_first_line_that_is_too_long_is_an_error(bundle, reference, tmp_path):
    rows, _ = lines(reference, 1, 3)
    path = write(tmp_path / "long.jsonl", [{**rows[0], "more": "x" * 2**16}])
    with pytest.raises(DataError):
        update_state(bundle, [path], state=tmp_path / "state")


def test_frames_of_a_group_count_once(bundle, reference, tmp_path):
    rows = []
    for track in range(40):
        (first, *_), _ = lines(reference, 1, 100 + track, group=f"track{track}")
        rows += [{**first, "image": f"track{track}_{frame:02d}.jpg"} for frame in range(30)]
    path = write(tmp_path / "tracks.jsonl", rows)
    status = update_state(bundle, [path], state=tmp_path / "state", group_pattern=r"(track\d+)_")
    assert (status.images, status.units, status.without_group, status.alarms) == (1200, 40, 0, [])
    own = write(tmp_path / "own.jsonl", [{**row, "group": row["image"].partition("_")[0]} for row in rows])
    assert update_state(bundle, [own], state=tmp_path / "own").units == 40
    assert update_state(bundle, [path], state=tmp_path / "without").without_group == 1200


def test_an_option_without_effect_is_refused(bundle, reference, tmp_path):
    rows, _ = lines(reference, 3, 1)
    path, state = write(tmp_path / "p.jsonl", rows), tmp_path / "state"
    for options in ({"images": tmp_path}, {"group_pattern": r"(track\d+)_"}):
        with pytest.raises(ConfigError):
            update_state(bundle, [path], state=state, **options)
        assert not state.exists()
    assert update_state(bundle, [path], state=state, group_pattern=r"(image)_").units == 1
    update_state(bundle, [path], state=state, group_pattern=r"(track\d+)_")  # no new predictions


@pytest.mark.parametrize(
    "options",
    [
        {"seed": -1},
        {"seed": 2**31},
        {"alpha": 0.0},
        {"state": "."},
        {"report": "."},
        {"report": "folder"},
        {"report": "page.html", "images": "missing"},
    ],
)
def test_wrong_arguments_are_refused_before_the_predictions_are_read(bundle, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError):
        update_state(bundle, ["missing.jsonl"], **{"state": "state", **options})


def test_labels_withdraw_the_certificate(bundle, reference, tmp_path):
    rows, labels = lines(reference, 1200, 5)
    rows = [{**row, "signals": {**row["signals"], "margin": -2.0}} for row in rows]  # every positive is missed
    predictions, file = write(tmp_path / "p.jsonl", rows), tmp_path / "labels.csv"
    state = tmp_path / "state"

    def give(count):
        body = [f"{row['image']},{label}" for row, label in zip(rows[:count], labels[:count], strict=True)]
        file.write_text("image,label\n" + "\n".join([*body, "unknown.jpg,1"]) + "\n")
        return update_state(bundle, [predictions], state=state, labels=file)

    first = give(4)
    assert first.withdrawn is None
    assert first.risk.limit == 0.1
    status = give(60)
    assert status.risk.labels == int(labels[:60].sum())  # each label counts once, and no negative for fnr
    assert status.risk.errors == status.risk.labels
    assert "fnr is above 0.1" in status.withdrawn
    assert status.alarms[-1] == "risk"
    predictor = load_bundle(bundle)
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    assert predictor.predict(image)[0].withdrawn is None
    predictor.use_monitor_state(state)
    assert (predictor.predict(image)[0].certified, predictor.predict(image)[0].withdrawn) == (None, status.withdrawn)
    state.write_bytes(b"damaged while serving")
    assert predictor.predict(image)[0].withdrawn is not None


def write_labels(path, names, labels):
    path.write_text("image,label\n" + "".join(f"{name},{label}\n" for name, label in zip(names, labels, strict=True)))
    return path


def test_a_labeled_name_of_two_images_is_an_error(bundle, reference, tmp_path):
    rows, labels = lines(reference, 40, 5)
    ride, _ = lines(reference, 40, 6)  # the same names
    file = write_labels(tmp_path / "labels.csv", [row["image"] for row in rows], labels)
    files = [write(tmp_path / "monday.jsonl", rows), write(tmp_path / "tuesday.jsonl", ride)]
    with pytest.raises(DataError, match=re.escape(repr(rows[0]["image"]))):
        update_state(bundle, files, state=tmp_path / "state", labels=file)
    assert not (tmp_path / "state").exists()
    repeated = write(tmp_path / "repeated.jsonl", [*rows, rows[3]])  # the same image once more
    again = update_state(bundle, [repeated], state=tmp_path / "state", labels=file)
    assert again.risk == update_state(bundle, files[:1], state=tmp_path / "once", labels=file).risk
    assert again.risk.labels > 0


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_equal_digests_are_one_image_where_margins_depend_on_the_batch(
    bundle, reference, tmp_path, monkeypatch, precision
):
    exported = read_bundle(bundle)
    runtime = RuntimeRef.model_construct(name="onnx", precision=precision)
    exported = replace(exported, manifest=exported.manifest.model_copy(update={"runtime": runtime}))
    monkeypatch.setattr("streetvision.monitoring.update.read_bundle", lambda _: exported)
    rows, labels = lines(reference, 40, 5)
    for index, row in enumerate(rows):
        row["image"] = f"{index:064x}"
    signals = rows[3]["signals"]
    again = rows[3] | {"signals": signals | {"margin": signals["margin"] + 0.02}}
    file = write_labels(tmp_path / "labels.csv", [row["image"] for row in rows], labels)
    with nullcontext() if precision == "int8" else pytest.raises(DataError, match="unique"):
        predictions = write(tmp_path / "p.jsonl", [*rows, again])
        assert update_state(bundle, [predictions], state=tmp_path / "state", labels=file).risk.labels > 0


def test_a_chart_of_one_window_has_a_point(bundle, reference, tmp_path):
    rows, _ = lines(reference, 10, 5)
    update_state(bundle, [write(tmp_path / "p.jsonl", rows)], state=tmp_path / "state", report=tmp_path / "page.html")
    assert re.search(r'<circle class="line1" cx="[\d.]+" cy="-?[\d.]+"', (tmp_path / "page.html").read_text())


def test_labels_of_other_names_are_an_error_and_single_ones_a_warning(bundle, reference, tmp_path, caplog):
    rows, labels = lines(reference, 40, 5)
    predictions, names = write(tmp_path / "p.jsonl", rows), [row["image"] for row in rows]
    other = write_labels(tmp_path / "other.csv", [f"camera/{name}" for name in names], labels)
    with pytest.raises(DataError) as error:
        update_state(bundle, [predictions], state=tmp_path / "state", labels=other)
    assert repr(f"camera/{names[0]}") in error.value.message
    assert repr(names[0]) in error.value.message
    one = write_labels(tmp_path / "one.csv", [*names, "unknown.jpg"], [*labels, 1])
    with pytest.warns(UserWarning, match=r"1 labels .*'unknown.jpg'"):
        streetvision.monitor(bundle, predictions, state=tmp_path / "state", labels=one, progress=False)


def test_the_number_of_labels_that_were_used_is_printed(command, bundle, reference, tmp_path):
    rows, labels = lines(reference, 40, 5)
    predictions, names = write(tmp_path / "p.jsonl", rows), [row["image"] for row in rows]
    arguments = ["monitor", "--bundle", bundle, predictions, "--state", tmp_path / "state", "--labels"]
    _, first, _ = command(*arguments, write_labels(tmp_path / "labels.csv", names[:30], labels[:30]))
    assert "30 new, 0 known" in first
    _, second, _ = command(*arguments, write_labels(tmp_path / "labels.csv", names, labels))
    assert "10 new, 30 known" in second


BREAKS = {
    "not JSON": lambda row: b"{",
    "not an object": lambda row: b"[1, 2]",
    "deep": lambda row: b"[" * 60_000,
    "too long": lambda row: b"x" * (5 * 2**20),
    "no signals": lambda row: {k: v for k, v in row.items() if k != "signals"},
    "margin is NaN": lambda row: {**row, "signals": {**row["signals"], "margin": float("nan")}},
    "margin is huge": lambda row: {**row, "signals": {**row["signals"], "margin": 10**400}},
    "time is huge": lambda row: {**row, "time": 10**400},
    "margin is text": lambda row: {**row, "signals": {**row["signals"], "margin": "1"}},
    "probability above 1": lambda row: {**row, "probability": 1.5},
    "decision is 2": lambda row: {**row, "decision": 2},
    "short features": lambda row: {**row, "signals": {**row["signals"], "features": "AAAA"}},
    "features are no base64": lambda row: {**row, "signals": {**row["signals"], "features": "!" * 88}},
    "quality is short": lambda row: {**row, "signals": {**row["signals"], "quality": [1]}},
    "quality is text": lambda row: {**row, "signals": {**row["signals"], "quality": ["640", 480, 0.5, 0.2, 0.1, 90]}},
    "no width": lambda row: {**row, "signals": {**row["signals"], "quality": [None, 480, 0.5, 0.2, 0.1, 90]}},
    "JPEG quality is 101": lambda row: {
        **row,
        "signals": {**row["signals"], "quality": [640, 480, 0.5, 0.2, 0.1, 101]},
    },
    "another bundle": lambda row: {**row, "bundle": "f" * 64},
    "group is a number": lambda row: {**row, "group": 3},
    "signals is a list": lambda row: {**row, "signals": []},
}


@pytest.mark.parametrize("kind", BREAKS)
def test_damaged_predictions_are_one_error_and_keep_the_state(kind, bundle, reference, tmp_path):
    rows, _ = lines(reference, 3, 6)
    state = tmp_path / "state"
    update_state(bundle, [write(tmp_path / "good.jsonl", rows)], state=state)
    before = state.read_bytes()
    more, _ = lines(reference, 2, 7, start=50)
    bad = BREAKS[kind](more[1])
    bad = bad if isinstance(bad, bytes) else json.dumps(bad).encode()
    (tmp_path / "bad.jsonl").write_bytes(json.dumps(more[0]).encode() + b"\n" + bad + b"\n")
    with pytest.raises(DataError) as raised:
        update_state(bundle, [tmp_path / "bad.jsonl"], state=state)
    assert ("--signals" in (raised.value.hint or "")) == (kind == "no signals")
    assert state.read_bytes() == before


@pytest.mark.parametrize("damage", range(12))
def test_damaged_states_are_one_error_and_are_kept(damage, bundle, reference, tmp_path):
    rows, _ = lines(reference, 50, 8)
    path, state = write(tmp_path / "p.jsonl", rows), tmp_path / "state"
    update_state(bundle, [path], state=state)
    content = state.read_bytes()
    rng = np.random.default_rng(damage)
    if damage < 6:
        broken = content[: int(rng.integers(0, len(content)))]
    else:  # counts that do not fit the steps, numbers that are not finite, and headers that are not JSON
        broken = bytearray(content)
        position = [8, 20, len(content) // 4, 200][damage % 4] + damage
        broken[position : position + 8] = b"\xff" * 8
    state.write_bytes(bytes(broken))
    try:
        status = update_state(bundle, [path], state=state)
    except ArtifactError:
        assert state.read_bytes() == bytes(broken)
    else:
        assert status.units == 50  # the bytes changed nothing that matters


def test_state_of_another_bundle_or_alpha_is_refused(bundle, reference, finished_run, tmp_path):
    rows, _ = lines(reference, 5, 9)
    path, state = write(tmp_path / "p.jsonl", rows), tmp_path / "state"
    update_state(bundle, [path], state=state)
    with pytest.raises(ConfigError):
        update_state(bundle, [path], state=state, alpha=0.05)
    with pytest.raises(ArtifactError) as error:
        update_state(finished_run / "export", [path], state=state)
    assert read_bundle(bundle).manifest.digest[:12] in error.value.message
    with pytest.raises(ArtifactError):
        load_bundle(finished_run / "export").use_monitor_state(state)


def test_a_state_that_is_replaced_while_it_is_read_is_read_again(bundle, tmp_path, monkeypatch):
    running, path = Monitor(read_bundle(bundle)), tmp_path / "state"
    running.state.write(path, running.status)
    read = monitor_status.read_status

    def read_and_replace(path, **options):
        status = read(path, **options)
        running.state.write(path, running.status.model_copy(update={"withdrawn": "the risk is too high"}))
        return status

    monkeypatch.setattr(monitor_status, "read_status", read_and_replace)
    file = monitor_status.StatusFile(path, running.status.bundle)
    monkeypatch.setattr(monitor_status, "read_status", read)
    assert file.withdrawn == "the risk is too high"


def test_examples_on_the_page_are_files_of_the_folder_of_images(bundle, reference, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    private, photos, real = tmp_path / "private", tmp_path / "photos", tmp_path / "real"
    rows, _ = lines(reference, 7, 13)
    for folder in (private, photos, real, photos / "sub"):
        folder.mkdir()
    for folder, name in ((private, "a"), (photos, "b"), (photos / "sub", "c"), (real, "d")):
        Image.new("RGB", (20, 20)).save(folder / f"{name}.jpg")
    (photos / "link").symlink_to(real)
    outside = ["../private/a.jpg", str(private / "a.jpg"), "private/a.jpg", "link/../private/a.jpg"]
    inside = ["photos/sub/c.jpg", str(photos / "b.jpg"), "link/d.jpg"]
    for row, name in zip(rows, [*outside, *inside], strict=True):
        row["image"] = name
    update_state(
        bundle, [write(tmp_path / "p.jsonl", rows)], state=tmp_path / "state", report=tmp_path / "page", images="photos"
    )
    page = (tmp_path / "page").read_text()
    assert [name for name in [*outside, *inside] if f'alt="{name}"' in page] == inside


def test_names_that_are_not_utf8_are_read(bundle, reference, tmp_path):
    rows, _ = lines(reference, 3, 12)
    rows[1]["image"] = "caf\udce9.jpg"
    status = update_state(bundle, [write(tmp_path / "p.jsonl", rows)], state=tmp_path / "state")
    assert status.images == 3


def test_interrupted_update_leaves_the_state_before(bundle, reference, tmp_path, monkeypatch):
    rows, _ = lines(reference, 200, 10)
    state = tmp_path / "state"
    update_state(bundle, [write(tmp_path / "a.jsonl", rows[:100])], state=state)
    before = state.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(MonitorState, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        update_state(bundle, [write(tmp_path / "b.jsonl", rows[100:])], state=state)
    assert state.read_bytes() == before


def test_command_reports_and_exits_with_4(command, bundle, reference, tmp_path):
    rows, _ = lines(reference, 900, 11, feature_shift=8.0)
    path, page = write(tmp_path / "p.jsonl", rows), tmp_path / "page.html"
    arguments = ["monitor", "--bundle", bundle, path, "--state", tmp_path / "state", "--report", page]
    code, output, _ = command(*arguments, "--images", tmp_path)
    assert code == 4
    assert "ALARM" in output
    text = page.read_text()
    assert "Alarm: images" in text
    assert "http" not in text.replace("http-equiv", "")
    code, _, error = command("monitor", "--bundle", bundle, tmp_path / "none.jsonl", "--state", tmp_path / "state")
    assert code == 2
    assert "none.jsonl" in error


@pytest.mark.parametrize("name", ARRAYS)
def test_a_reference_with_a_damaged_array_is_damaged(name, reference, tmp_path):
    arrays = load(reference_bytes(reference))
    others = {key: array for key, array in arrays.items() if key != name}
    for damaged in ({name: np.array(0, dtype=ARRAYS[name])}, {name: arrays[name].astype(np.complex64)}, {}):
        (tmp_path / REFERENCE).write_bytes(save(others | damaged, {"header": reference.header.model_dump_json()}))
        with pytest.raises(ArtifactError):
            read_reference(tmp_path / REFERENCE)


def test_old_bundle_without_reference_is_one_error(bundle, finished_run, tmp_path):
    source = read_bundle(bundle)
    files = {name: source.folder / name for name in source.manifest.files if name != REFERENCE}
    write_bundle(
        tmp_path / "old",
        files,
        policy=source.manifest.policy,
        class_names=source.manifest.class_names,
        data_fingerprint=source.manifest.data_fingerprint,
    )
    load_bundle(tmp_path / "old")
    with pytest.raises(ArtifactError, match="no monitoring reference"):
        update_state(tmp_path / "old", [], state=tmp_path / "state")
