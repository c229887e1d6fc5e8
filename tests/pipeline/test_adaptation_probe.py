"""What phase 4a decides by a probe on TRAIN: the sample, the level of its views, the share of its weights."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import DataError
from streetvision.contracts.progress import Silent
from streetvision.contracts.split_contracts import Row
from streetvision.data.config import VIEW_LEVELS, PairConfig
from streetvision.eval.predictions import Predictions
from streetvision.pipeline.adaptation_gate import shipped_weights
from streetvision.pipeline.adaptation_probe import (
    MAX_SAMPLE_SIZE,
    SAMPLE_SIZE,
    SAMPLE_SIZE_OF_CLASS,
    choose_views,
    sample_of_groups,
)
from streetvision.training.ssl.config import SimCLRConfig

LABELS = np.arange(100) % 2


def rows(n, *, group_size, positives):
    return [
        Row(f"{i}.jpg", int(i % 100 < positives), f"{i:064x}", 8, 8, 0.5, group=f"g{i // group_size}") for i in range(n)
    ]


def test_the_sample_has_whole_groups_and_enough_of_each_class():
    everything = rows(3000, group_size=5, positives=10)
    sample = sample_of_groups(everything, seed=0)
    assert SAMPLE_SIZE <= len(sample) < len(everything)
    assert sum(row.label for row in sample) >= SAMPLE_SIZE_OF_CLASS
    drawn = {row.group for row in sample}
    assert [row for row in everything if row.group in drawn] == list(sample)
    assert sample == sample_of_groups(everything, seed=0) != sample_of_groups(everything, seed=1)


def grouped(sizes, label):
    """Rows of groups of these sizes; `label` maps the number of a group and of a row in it to a label."""
    return [
        Row(f"{g}_{i}.jpg", int(label(g, i)), f"{g:032x}{i:032x}", 8, 8, 0.5, group=f"g{g:05}")
        for g, size in enumerate(sizes)
        for i in range(size)
    ]


def test_a_large_group_does_not_make_the_sample_large_or_be_all_of_it():
    everything, sizes = grouped([5000, *[20] * 60], lambda _, i: i % 4 == 0), []
    for seed in range(5):
        sample = sample_of_groups(everything, seed=seed)
        assert SAMPLE_SIZE <= len(sample) <= MAX_SAMPLE_SIZE
        assert sample == sample_of_groups(everything, seed=seed)
        counts, chosen = Counter(row.group for row in sample), set(sample)
        assert list(sample) == [row for row in everything if row in chosen]
        sizes.append(len(sample))
        assert len(counts) >= 20
        assert set(counts.values()) == {20, counts["g00000"]} or set(counts.values()) == {20}
        assert np.mean([row.label for row in sample]) == pytest.approx(0.25, abs=0.01)
        frames = [number for number, row in enumerate(everything[:5000]) if row in chosen]
        assert not frames or max(np.diff(frames)) < 20  # evenly spaced
    assert (min(sizes), max(sizes)) == (SAMPLE_SIZE, MAX_SAMPLE_SIZE)


def test_many_large_groups_have_equal_shares():
    everything = grouped([2000, 4000, 2500, 3000], lambda g, _: g % 2)
    sample = sample_of_groups(everything, seed=0)
    assert MAX_SAMPLE_SIZE - 4 <= len(sample) <= MAX_SAMPLE_SIZE
    counts = Counter(row.group for row in sample)
    assert counts["g00000"] == counts["g00002"]
    assert counts["g00001"] == counts["g00003"]


@pytest.mark.parametrize("size", [1, 10])
def test_a_rare_class_does_not_make_the_sample_large(size):
    everything = grouped([size] * (10_000 // size), lambda g, _: g % (2000 // size) == 0)
    n_rare = sum(row.label for row in everything)
    assert 0 < n_rare < SAMPLE_SIZE_OF_CLASS
    sample = sample_of_groups(everything, seed=0)
    assert MAX_SAMPLE_SIZE * 0.9 < len(sample) <= MAX_SAMPLE_SIZE
    assert sum(row.label for row in sample) == n_rare


def test_a_small_data_set_is_its_own_sample():
    everything = rows(300, group_size=1, positives=50)
    assert sample_of_groups(everything, seed=0) == tuple(everything)


def margins(sharpness, labels):
    return sharpness * (2.0 * labels - 1)


class Probe:
    """A probe whose predictions are given: of the unchanged images, of the views of a level, of a share."""

    def __init__(self, tmp_path, *, views=(), shares=None, problem=False):
        self.said, self.views, self.shares, self.problem = [], views, shares, problem
        self.rows, self.labels, self.tried = LABELS, LABELS, []
        self.backbone = nn.Linear(1, 1, bias=False)
        progress = Silent()
        progress.auto_setting = lambda setting, reason: self.said.append((setting, reason))
        self.context = SimpleNamespace(
            settings=lambda _: SimCLRConfig(), progress=progress, schema=ArtifactSchema(tmp_path)
        )

    def fit(self):
        if self.problem:
            raise DataError("one group only", "add some")
        return SimpleNamespace(out_of_fold=margins(3.0, LABELS))

    def predict_views(self, fitted, config, positions):
        level = next(i for i, name in enumerate(VIEW_LEVELS) if config == PairConfig().at_level(name))
        return margins(self.views[level], np.repeat(LABELS[positions], 2))

    def predict(self, state):
        self.fit()
        share = float(state["weight"])
        self.tried.append(share)
        noise = np.random.default_rng(0).normal(size=100)
        return Predictions(LABELS, 1 / (1 + np.exp(-margins(self.shares[share], LABELS) - noise)))


@pytest.mark.parametrize(
    ("views", "level"),
    [
        ((3.0, 2.9, 2.8), "simclr"),
        ((3.0, 2.9, 1.0), "middle"),
        ((3.0, 1.0, 3.0), "gentle"),
        ((0.0, 0.0, 0.0), "gentle"),
    ],
)
def test_the_strongest_views_that_keep_the_labels_predictable_are_taken(tmp_path, views, level):
    probe = Probe(tmp_path, views=views)
    assert choose_views(PairConfig(), probe) == PairConfig().at_level(level)
    ((setting, reason),) = probe.said
    assert "phase4a.views.color_jitter=" in setting
    assert level in reason


def test_views_that_are_set_stay(tmp_path):
    explicit = PairConfig(crop_scale=(0.3, 0.9), color_jitter=0.1, grayscale_p=0.5)
    assert choose_views(explicit, Probe(tmp_path, problem=True)) == explicit
    some = choose_views(PairConfig(color_jitter=0.1), Probe(tmp_path, problem=True))
    assert some == PairConfig().at_level("gentle").model_copy(update={"color_jitter": 0.1})


def test_views_that_cannot_be_compared_are_gentle(tmp_path):
    probe = Probe(tmp_path, problem=True)
    assert choose_views(PairConfig(), probe) == PairConfig().at_level("gentle")
    assert "one group only" in probe.said[0][1]


@pytest.mark.parametrize(
    ("shares", "tried", "shipped"),
    [
        ({0.0: 2, 0.25: 1, 0.5: 0.5, 1.0: 0}, [0, 0.5, 1, 0.25], 0),
        ({0.0: 1, 0.25: 1.5, 0.5: 0.5, 1.0: 0}, [0, 0.5, 1, 0.25], 0.25),
        ({0.0: 1, 0.25: 1.5, 0.5: 2, 0.75: 2.5, 1.0: 1}, [0, 0.5, 1, 0.25, 0.75], 0.75),
        ({0.0: 1, 0.5: 1.5, 0.75: 1.7, 1.0: 2}, [0, 0.5, 1, 0.75], 1),
    ],
)
def test_the_shares_near_the_best_one_are_tried(tmp_path, shares, tried, shipped):
    probe = Probe(tmp_path, shares=shares)
    state, gate = shipped_weights(probe, {"weight": torch.zeros(1, 1)}, {"weight": torch.ones(1, 1)})
    assert probe.tried == tried
    assert (gate.share, float(state["weight"])) == (shipped, shipped)
    assert float(probe.backbone.weight.detach()) == shipped


def test_an_adaptation_that_cannot_be_compared_does_not_ship(tmp_path):
    state, gate = shipped_weights(
        Probe(tmp_path, problem=True), {"weight": torch.zeros(1, 1)}, {"weight": torch.ones(1, 1)}
    )
    assert not gate.ships
    assert float(state["weight"]) == 0
