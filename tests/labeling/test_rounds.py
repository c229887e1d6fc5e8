"""Rounds: what moved since the last one of the same run, and the curve."""

from datetime import UTC, datetime

import pytest

from streetvision.contracts.errors import ArtifactError
from streetvision.labeling.rounds import Round, add_round, read_rounds, round_lines


def new_round(labels, mcc, run="/runs/a"):
    return Round(time=datetime(2026, 1, 1, tzinfo=UTC), run=run, labels=labels, images=500, evaluated=80, mcc=mcc)


def test_rounds_of_a_run_make_a_curve_and_training_again_replaces_the_last_one(tmp_path):
    assert read_rounds(tmp_path) == ()
    for labels, mcc, run in ((20, 0.5, "/runs/a"), (40, 0.9, "/runs/b"), (40, 0.7, "/runs/a"), (40, 0.625, "/runs/a")):
        rounds = add_round(tmp_path, new_round(labels, mcc, run))
    assert read_rounds(tmp_path) == rounds
    assert [(known.run, known.labels) for known in rounds] == [("/runs/a", 20), ("/runs/b", 40), ("/runs/a", 40)]
    first, curve = round_lines(rounds)
    assert "0.500 -> 0.625 (+0.125)" in first
    assert "40 labels (+20)" in first
    assert curve == "curve: 20 labels 0.500, 40 labels 0.625"
    assert len(round_lines(rounds[:2])) == 1


def test_a_damaged_file_is_reported(tmp_path):
    (tmp_path / "rounds.json").write_text('{"schema_version": 1, "rounds": [{"mcc": 2}]}')
    with pytest.raises(ArtifactError):
        read_rounds(tmp_path)
