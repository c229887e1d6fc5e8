"""The gate between what was calibrated and what another runtime answers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streetvision import load_bundle
from streetvision.bundle.runtimes.parity import MAX_MCC_FALL, ask, check_parity, measure_parity
from streetvision.bundle.runtimes.registry import GraphClassifier
from streetvision.contracts.errors import ArtifactError
from streetvision.contracts.policies import RuntimeParity
from streetvision.contracts.progress import Silent
from tests.bundle.bad_graphs import Altered

GOOD = RuntimeParity(
    n=100,
    positives=40,
    max_logit_difference=0.1,
    max_probability_difference=0.01,
    decision_flips=1,
    certified_flips=0,
    pytorch_mcc=0.9,
    mcc=0.9,
    cpu="AVX2",
)


@given(st.floats(-1, 1), st.floats(-1, 1), st.integers(0, 3))
def test_what_passes_has_not_fallen_or_decides_the_same(before, after, flips):
    parity = GOOD.model_copy(update={"pytorch_mcc": before, "mcc": after, "decision_flips": flips})
    if before - after > MAX_MCC_FALL or (before <= 0 and flips):
        with pytest.raises(ArtifactError, match="openvino int8 is refused"):
            check_parity(parity, name="openvino int8")
    else:
        check_parity(parity, name="openvino int8")


def test_the_refusal_tells_the_figure():
    with pytest.raises(ArtifactError, match=r"a fall of 0\.0060, and 0\.005 is let through; 1 of 100 decisions differ"):
        check_parity(GOOD.model_copy(update={"mcc": 0.894}), name="openvino int8")


@pytest.fixture(scope="module")
def predictor(finished_run):
    return load_bundle(finished_run / "export")


@pytest.fixture(scope="module")
def asked(scenes):
    paths = sorted((scenes / "images").iterdir())[:40]
    return paths, [number % 2 for number in range(40)]


def through(predictor, change):
    return predictor.with_graph(GraphClassifier(predictor.classifier, Altered(predictor.classifier, change)))


def compared(predictor, asked, change):
    paths, labels = asked
    expected, found = (ask(one, paths, Silent()) for one in (predictor, through(predictor, change)))
    return measure_parity(predictor, expected, found, labels)


def test_a_graph_that_does_the_same_differs_in_nothing(predictor, asked):
    parity = compared(predictor, asked, lambda logits: logits)
    assert (parity.n, parity.positives) == (40, 20)
    assert (parity.max_logit_difference, parity.max_probability_difference) == (0, 0)
    assert (parity.decision_flips, parity.certified_flips) == (0, 0)
    assert parity.mcc == parity.pytorch_mcc


def test_differences_are_those_of_the_worst_image(predictor, asked):
    worse = torch.tensor([-0.25, 0.25])
    parity = compared(predictor, asked, lambda logits: logits + worse)
    assert parity.max_logit_difference == pytest.approx(0.25, abs=1e-6)
    before, after = predictor.predict(asked[0]), through(predictor, lambda logits: logits + worse).predict(asked[0])
    moved = [abs(a.probability - b.probability) for a, b in zip(before, after, strict=True)]
    assert parity.max_probability_difference == pytest.approx(max(moved))
    assert parity.decision_flips == sum(a.decision != b.decision for a, b in zip(before, after, strict=True))


def test_a_graph_without_finite_logits_is_refused(predictor, asked):
    with pytest.raises(ArtifactError, match="not finite"):
        compared(predictor, asked, lambda logits: logits / 0)
