from dataclasses import replace
from pathlib import Path

import pytest

from streetvision.contracts.errors import LeakageError
from streetvision.contracts.split_contracts import MAY_OPEN, Index, Partition, Row, Split, check_may_open

ROW = Row(path="a.jpg", label=1, sha256="0" * 64, width=4, height=3, brightness=0.5, group="g")


def test_only_the_evaluation_and_the_reward_may_open_val_test():
    assert [phase for phase, splits in MAY_OPEN.items() if Split.VAL_TEST in splits] == ["evaluate", "reward"]


def test_only_training_phases_and_the_runtime_export_may_open_train():
    assert [phase for phase, splits in MAY_OPEN.items() if Split.TRAIN in splits] == [
        "phase4a_explora",
        "phase1",
        "phase4c_cvfm",
        "phase5_maccal",
        "export_runtime",
    ]


@pytest.mark.parametrize("phase", [*MAY_OPEN, "no such phase"])
@pytest.mark.parametrize("split", Split)
def test_a_phase_may_open_the_splits_in_the_table_only(phase, split):
    if split in MAY_OPEN.get(phase, frozenset()):
        check_may_open(phase, split)
    else:
        with pytest.raises(LeakageError, match=f"{phase} requested {split.value}"):
            check_may_open(phase, split)


def test_the_fingerprint_depends_on_the_data_but_not_on_the_folder_or_the_order():
    index = Index(Path("/a"), ("None", "Roadwork"), (ROW, replace(ROW, path="b.jpg", sha256="1" * 64)))
    assert replace(index, root=Path("/b"), rows=index.rows[::-1]).fingerprint == index.fingerprint
    for change in ({"label": 0}, {"group": "h"}, {"sha256": "2" * 64}, {"source": "s"}, {"path": "c.jpg"}):
        changed = replace(index, rows=(replace(ROW, **change), index.rows[1]))
        assert changed.fingerprint != index.fingerprint
    assert replace(index, class_names=("None", "Pothole")).fingerprint != index.fingerprint


def test_rows_of_a_split_keep_the_order_of_the_index():
    rows = tuple(replace(ROW, path=f"{i}.jpg") for i in range(4))
    roles = (Split.TRAIN, Split.VAL_TEST, Split.TRAIN, Split.VAL_CALIB)
    partition = Partition(Index(Path(), ("a", "b"), rows), roles, fractions={}, seed=0)
    assert [row.path for row in partition.rows(Split.TRAIN)] == ["0.jpg", "2.jpg"]
    assert partition.rows(Split.VAL_SELECT) == ()
