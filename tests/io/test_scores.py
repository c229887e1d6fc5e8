from dataclasses import replace

import pytest
import torch

from streetvision.contracts.errors import ArtifactError
from streetvision.contracts.policies import FusionRef
from streetvision.contracts.split_contracts import Row, Split
from streetvision.io.atomic import read_json, write_json_atomic
from streetvision.io.scores import Scores, load_scores, rows_digest, save_scores
from streetvision.io.tensors import save_tensors

SCORES = Scores(
    logits=torch.tensor([[0.5, -0.5], [1.0, 2.0], [0.0, 3.0]]),
    labels=torch.tensor([0, 1, 1]),
    split=Split.VAL_CALIB,
    model_sha256="a" * 64,
    rows_sha256="b" * 64,
)


@pytest.fixture
def paths(tmp_path):
    return {"logits": tmp_path / "l.pt", "labels": tmp_path / "y.pt", "record": tmp_path / "r.json"}


def test_scores_are_read_back_with_their_reference(paths):
    save_scores(SCORES, **paths)
    loaded = load_scores(**paths)
    assert loaded.reference == SCORES.reference
    assert (loaded.reference.n, loaded.reference.positives) == (3, 2)


@pytest.mark.parametrize("name", ["model_sha256", "rows_sha256"])
def test_the_reference_depends_on_model_and_rows(name):
    assert replace(SCORES, **{name: "c" * 64}).reference.sha256 != SCORES.reference.sha256


def test_the_reference_depends_on_every_logit():
    logits = SCORES.logits.clone()
    logits[0, 0] = torch.nextafter(logits[0, 0], torch.tensor(1.0))
    assert replace(SCORES, logits=logits).reference.sha256 != SCORES.reference.sha256


def test_the_fusion_is_part_of_the_reference_and_is_read_back(paths):
    fused = replace(SCORES, fusion=FusionRef(description_sha256="d" * 64))
    assert fused.reference.sha256 != SCORES.reference.sha256
    save_scores(fused, **paths)
    assert load_scores(**paths).fusion == fused.fusion


def test_the_digest_of_rows_depends_on_content_label_and_order_but_not_on_the_path():
    row = Row(path="a.jpg", label=1, sha256="0" * 64, width=4, height=3, brightness=0.5)
    rows = (row, replace(row, label=0))
    assert rows_digest(tuple(replace(row, path="b.jpg") for row in rows)) == rows_digest(rows)
    for other in (rows[::-1], rows[:1], (row, row), (replace(row, sha256="1" * 64), rows[1])):
        assert rows_digest(other) != rows_digest(rows)


def test_an_unknown_split_is_an_error(paths):
    save_scores(SCORES, **paths)
    content = read_json(paths["record"])
    content["reference"]["split"] = "val_tset"
    write_json_atomic(paths["record"], content)
    with pytest.raises(ArtifactError, match="unknown split 'val_tset'"):
        load_scores(**paths)


def test_tensors_that_do_not_match_the_record_are_rejected(paths):
    save_scores(SCORES, **paths)
    save_tensors(paths["logits"], SCORES.logits + 1)
    with pytest.raises(ArtifactError, match="do not match"):
        load_scores(**paths)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("logits", torch.ones(3), "logits"),
        ("logits", torch.ones(3, 2, dtype=torch.float64), "float64"),
        ("logits", torch.tensor([[0.0, float("nan")]] * 3), "not finite"),
        ("logits", torch.ones(0, 2), "logits"),
        ("labels", torch.tensor([0, 1]), "labels"),
        ("labels", torch.tensor([0, 1, 2]), "0 or 1"),
        ("labels", torch.tensor([0.0, 1.0, 1.0]), "int64"),
    ],
)
def test_tensors_of_another_shape_or_type_are_rejected(paths, name, value, message):
    save_scores(SCORES, **paths)
    save_tensors(paths[name], value)
    with pytest.raises(ArtifactError, match=message):
        load_scores(**paths)
