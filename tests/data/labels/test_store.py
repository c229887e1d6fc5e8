"""labels.parquet: what was confirmed is there after a kill, nothing is stored twice, and undo keeps the history."""

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streetvision.contracts.errors import ArtifactError, ConfigError
from streetvision.data.labels.decisions import decide
from streetvision.data.labels.store import LabelStore, label_event, read_events
from streetvision.labeling.agreement import agreements

NAMES = ("None", "Roadwork")


def event(number, image="a", action="label", label=1, labeler="ann", queue="random", **fields):
    return label_event(
        event=f"{number:032x}",
        action=action,
        sha256=(image * 64)[:64],
        path=f"/photos/{image}.jpg",
        label=label if action == "label" else None,
        labeler=labeler,
        time=datetime(2026, 1, 1, tzinfo=UTC),
        queue=queue,
        **fields,
    )


def test_decisions_are_read_back_and_a_repeated_one_is_stored_once(tmp_path):
    store = LabelStore(tmp_path / "labels.parquet", NAMES)
    assert store.append([event(1, seconds=2.5, group="g", model="f" * 64)]) == 1
    assert store.append([event(1, label=0), event(2, "b", "skip")]) == 1
    assert read_events(store.path, NAMES) == store.events == LabelStore(store.path, NAMES).events
    assert [(e.event[-1], e.label, e.seconds) for e in store.events] == [("1", 1, 2.5), ("2", None, None)]


def test_an_undone_decision_stays_in_the_file_and_no_longer_counts(tmp_path):
    store = LabelStore(tmp_path / "labels.parquet", NAMES)
    store.append([event(1, queue="uncertain"), event(2, action="undo", undoes=f"{1:032x}"), event(3, label=0)])
    assert len(read_events(store.path, NAMES)) == 3
    (image,) = decide(store.events).images
    assert (image.label, image.queue, image.train_only) == (0, "uncertain", True)
    with pytest.raises(ArtifactError, match="to undo"):
        store.append([event(9, action="undo", undoes="0" * 32)])


def test_the_majority_decides_and_a_tie_is_disputed():
    events = [event(1, label=1), event(2, label=0, labeler="bob", queue="second_opinion"), event(3, "b", "skip")]
    assert [e.path for e in decide(events).disputed] == ["/photos/a.jpg"]
    assert decide(events).skipped == {"b" * 64}
    (image,) = decide([*events, event(4, label=0, labeler="cid", queue="second_opinion")]).images
    assert (image.label, image.queue, image.train_only) == (0, "random", False)


def test_agreement_is_that_of_cohen():
    # Cohen's kappa by hand: observed 3/4, expected 1/2 * 3/4 + 1/2 * 1/4 = 1/2, so (3/4 - 1/2) / (1/2) = 1/2.
    answers = {"ann": (1, 1, 0, 0), "bob": (1, 1, 1, 0)}
    events = [
        event(10 * len(who) + 100 * answers["ann"][0] + i + 1000 * (who == "bob"), image, label=label, labeler=who)
        for who, labels in answers.items()
        for i, (image, label) in enumerate(zip("abcd", labels, strict=True))
    ]
    (found,) = agreements(events)
    assert (found.images, found.agreed, found.kappa) == (4, 3, pytest.approx(0.5))
    assert agreements(events[:1] + events[4:5])[0].kappa is None


def test_other_classes_and_damaged_files_are_rejected(tmp_path):
    path = tmp_path / "labels.parquet"
    LabelStore(path, NAMES).append([event(1)])
    with pytest.raises(ArtifactError, match="classes"):
        read_events(path, ("Roadwork", "None"))
    table = pq.read_table(path)
    rows = table.to_pylist()
    for change in ({"label": 7}, {"queue": "best"}, {"sha256": "x"}, {"seconds": -1.0}, {"action": "undo"}):
        pq.write_table(pa.Table.from_pylist([rows[0] | change], schema=table.schema), path)
        with pytest.raises(ArtifactError):
            read_events(path, NAMES)
    pq.write_table(pa.Table.from_pylist([*rows, *rows], schema=table.schema), path)
    with pytest.raises(ArtifactError, match="twice"):
        read_events(path, NAMES)
    for content in (b"", b"PAR1", b"PAR1" + b"\0" * 50 + b"PAR1"):
        path.write_bytes(content)
        with pytest.raises(ArtifactError):
            read_events(path, NAMES)


def test_a_file_that_does_not_exist_is_an_error_of_its_setting(tmp_path):
    with pytest.raises(ConfigError, match="no labels at"):
        read_events(tmp_path / "labels.parquet", NAMES)


KILLED = """
import sys
from pathlib import Path
from tests.data.labels.test_store import NAMES, event
from streetvision.data.labels.store import LabelStore
store = LabelStore(Path(sys.argv[1]), NAMES)
for number in range(100_000):
    store.append([event(number)])
    print(number, flush=True)
"""


def test_a_killed_process_leaves_every_confirmed_decision(tmp_path):
    path = tmp_path / "labels.parquet"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) == 40:
            break
    os.kill(process.pid, signal.SIGKILL)
    rest = [int(line) for line in process.stdout.read().split()]
    process.wait()
    confirmed = max([40, *rest])
    numbers = [int(e.event, 16) for e in read_events(path, NAMES)]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) in (confirmed + 1, confirmed + 2)
