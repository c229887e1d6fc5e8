"""The gates of the stages: the decision, and that the model which ships follows from it."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from streetvision import load_bundle
from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.progress import Silent
from streetvision.eval.gate import compare_nll
from streetvision.eval.predictions import Predictions
from streetvision.io.atomic import read_json
from streetvision.io.tensors import load_state
from streetvision.pipeline.gates import Compared, decide, decide_cheapest
from tests.conftest import TINY_ADAPTATION, TINY_MODEL

FUSE = ["phase4c.mode=multiview_mean", "phase4c.views.rows=1", "phase4c.views.columns=2", "phase5.folds=2"]
ADAPT = [*TINY_MODEL, *TINY_ADAPTATION, "phase4a.num_epochs=1"]


class Recorder(Silent):
    """Keeps the warnings."""

    def __init__(self):
        self.warnings = []

    def warn(self, message):
        self.warnings.append(message)


def predictions(sharpness):
    labels = np.arange(200) % 2
    margins = sharpness * (2 * labels - 1) + np.random.default_rng(0).normal(size=200)
    return Predictions(labels, 1 / (1 + np.exp(-margins)))


@pytest.fixture
def forced(monkeypatch):
    """Make every comparison end as given."""

    def force(*, accepted):
        sign = -1 if accepted else 1
        same = compare_nll(*[Predictions([0, 1], [0.1, 0.9])] * 2)
        decision = replace(same, difference=0.5 * sign, bound=0.4 * sign, accepted=accepted)
        monkeypatch.setattr("streetvision.pipeline.gates.compare_nll", lambda *_, **__: decision)

    return force


@pytest.mark.parametrize(
    ("setting", "better", "ships", "warned"),
    [("on", True, True, 0), ("on", False, False, 0), ("only_report", True, True, 0), ("only_report", False, True, 1)],
)
def test_a_stage_ships_if_it_is_better_or_the_setting_takes_it(tmp_path, setting, better, ships, warned):
    models = (predictions(2.0), predictions(0.2))
    recorder, path = Recorder(), tmp_path / "gate.json"
    candidate, baseline = models if better else models[::-1]
    gate = decide(setting, candidate, baseline, share=0.5, stage="it", section="phase9", path=path, progress=recorder)
    assert (gate.ships, gate.better, gate.share) == (ships, better, 0.5 if ships else 0.0)
    assert len(recorder.warnings) == warned
    assert read_json(path) == gate.model_dump(mode="json")
    assert gate.metrics["ships"] == int(ships)
    assert gate.difference == pytest.approx(gate.candidate_nll - gate.baseline_nll)


def test_the_lower_nll_decides_at_a_level_of_one_half(tmp_path):
    candidate, baseline = (predictions(sharpness) for sharpness in (1.02, 1.0))
    noise = np.random.default_rng(1).normal(0, 0.05, 200)
    candidate = Predictions(candidate.labels, np.clip(candidate.probabilities + noise, 0.01, 0.99))
    options = {"stage": "a stage", "section": "s", "path": tmp_path / "gate.json", "progress": Silent()}
    strict, lower = (decide("on", candidate, baseline, level=level, **options) for level in (0.999, 0.5))
    assert strict.difference == lower.difference
    assert not strict.ships
    assert lower.ships == (lower.difference <= -0.001)
    assert "bound" in strict.reason
    assert "bound" not in lower.reason


@pytest.mark.parametrize("level", [0.5, 0.8])
def test_the_reason_says_that_a_certain_gain_is_too_small(tmp_path, level):
    model = predictions(0.5)
    p = np.clip(model.probabilities, 0.1, 0.9)
    worse, same, better = (Predictions(model.labels, p + np.where(model.labels, d, -d)) for d in (-0.01, 1e-4, 0.01))
    options = {"stage": "a stage", "section": "s", "path": tmp_path / "gate.json", "progress": Silent(), "level": level}
    gates = [decide("on", other, Predictions(model.labels, p), **options) for other in (worse, same, better)]
    assert [gate.ships for gate in gates] == [False, False, True]
    assert ["below 0.001" in gate.reason for gate in gates] == [False, True, False]


def test_an_open_gate_compares_nothing(tmp_path):
    gate = decide("off", None, None, stage="it", section="phase9", path=tmp_path / "gate.json", progress=Silent())
    assert (gate.ships, gate.better, gate.difference) == (True, None, None)


def test_an_open_gate_ships_what_could_not_be_compared_without_a_warning(tmp_path):
    recorder = Recorder()
    arguments = {"stage": "it", "section": "phase9", "path": tmp_path / "gate.json", "progress": recorder}
    assert decide("off", None, None, problem="one group only", **arguments).ships
    assert not recorder.warnings


def test_what_cannot_be_compared_does_not_ship(tmp_path):
    recorder = Recorder()
    arguments = {"stage": "it", "section": "phase9", "path": tmp_path / "gate.json", "progress": recorder}
    gate = decide("on", None, None, problem="one group only", **arguments)
    assert not gate.ships
    assert "one group only" in gate.reason
    assert recorder.warnings


@pytest.mark.parametrize(
    ("sharpness", "taken", "ships"),
    [
        ({"dense": 2.0, "mil": 2.0}, "dense", True),  # equal: the cheaper one
        ({"dense": 1.0, "mil": 3.0}, "mil", True),  # the dearer one is clearly better
        ({"dense": 0.1, "mil": 2.0}, "mil", True),  # only one is better than the single view
        ({"dense": 0.1, "mil": 0.2}, "mil", False),  # none is
    ],
)
def test_the_cheapest_candidate_that_is_not_worse_is_taken(tmp_path, sharpness, taken, ships):
    candidates = tuple(map(predictions, sharpness.values()))
    compared = Compared(tuple(sharpness), candidates, predictions(0.5))
    arguments = {"stage": "it", "section": "phase9", "path": tmp_path / "gate.json", "progress": Silent()}
    number, gate = decide_cheapest("on", compared, **arguments)
    assert (list(sharpness)[number], gate.ships) == (taken, ships)
    saved = read_json(tmp_path / "gate.json")
    assert saved["details"]["taken"] == taken
    assert set(saved["details"]["candidates"]) == set(sharpness)
    assert all(f"{other}:" in gate.reason for other in sharpness if other != taken)


@pytest.mark.slow
@pytest.mark.parametrize("accepted", [True, False])
def test_the_bundle_is_that_of_the_decision_on_the_fusion(finished_run, tmp_path, command, forced, accepted):
    schema = ArtifactSchema(shutil.copytree(finished_run, tmp_path / "run"))
    forced(accepted=accepted)
    line = ["train", f"run_dir={schema.output_dir}", "pipeline.phases=[phase4c_cvfm,phase5,phase6]", *FUSE]
    code, out, err = command(*line)
    assert code == 0, out + err
    assert read_json(schema.fusion_gate_json)["ships"] is accepted
    assert load_bundle(schema.export_dir).inference == ("multiview_mean" if accepted else "single_view")
    assert (read_json(schema.scrc_params_json)["scores"]["fusion"] is not None) is accepted
    assert schema.cvfm_scores_json.exists() is accepted  # the views of VAL_CALIB are computed only if they are used
    if not accepted:
        code, out, err = command(*line, "phase4c.gate=off")
        assert code == 0, out + err
        assert load_bundle(schema.export_dir).inference == "multiview_mean"


@pytest.mark.slow
def test_the_backbone_is_that_of_the_decision_on_the_adaptation(scenes, tmp_path, command, forced):
    runs = {}
    for name in ("original", "rejected", "accepted", "off"):
        schema = runs[name] = ArtifactSchema(tmp_path / name)
        phases = "phase1" if name == "original" else "phase4a_explora,phase1"
        forced(accepted=name == "accepted")
        gate = [] if name == "original" else [f"phase4a.gate={'off' if name == 'off' else 'on'}"]
        settings = [setting for setting in ADAPT if name != "original" or not setting.startswith("phase4a")]
        line = ["train", f"data.root={scenes}", f"run_dir={schema.output_dir}", f"pipeline.phases=[{phases}]"]
        code, out, err = command(*line, *settings, *gate)
        assert code in (0, 3), out + err
        assert ("adapted backbone" in out) == (name in ("accepted", "off"))
    original, rejected, accepted, adapted = (load_state(schema.phase1_checkpoint) for schema in runs.values())
    share = read_json(runs["accepted"].adaptation_gate_json)["share"]
    losses = read_json(runs["accepted"].adaptation_gate_json)["details"]["nll_by_share"]
    assert losses[str(share)] == min(loss for other, loss in losses.items() if other != "0.0")
    backbone = [name for name in original if name.startswith("backbone.")]
    assert all(torch.equal(original[name], rejected[name]) for name in backbone)
    changed = [name for name in backbone if not torch.equal(original[name], adapted[name])]
    assert changed
    for name in changed:
        torch.testing.assert_close(accepted[name], torch.lerp(original[name], adapted[name], share))
