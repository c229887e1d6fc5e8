"""Rounds: what moved since the last one of the same run, and the curve."""

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ArtifactError
from streetvision.labeling.rounds import Round, add_round, read_rounds, round_lines
from streetvision.pipeline import label_rounds
from streetvision.pipeline.console import Console


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


def test_a_round_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch, capsys):
    (tmp_path / "share").write_text("a file in place of the folder")
    config = {"DataConfig": {"labels": str(tmp_path / "share" / "labels.parquet")}}
    metrics = {"labels": 20, "images": 500, "evaluated": 80, "val_calib_mcc": 0.5}
    monkeypatch.setattr(label_rounds, "is_current", lambda *_: True)
    monkeypatch.setattr(label_rounds, "read_manifest", lambda _: SimpleNamespace(config=config, metrics=metrics))
    label_rounds.print_round(ArtifactSchema(tmp_path / "run"), Console())
    assert str(tmp_path / "share" / "rounds.json") in capsys.readouterr().err


def test_a_damaged_file_is_reported(tmp_path):
    (tmp_path / "rounds.json").write_text('{"schema_version": 1, "rounds": [{"mcc": 2}]}')
    with pytest.raises(ArtifactError):
        read_rounds(tmp_path)
