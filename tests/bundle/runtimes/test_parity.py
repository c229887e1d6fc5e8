"""The comparison of an exported bundle with its PyTorch original, and the check of its result."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streetvision import load_bundle
from streetvision.bundle.runtimes.parity import MAX_MCC_LOSS, check_parity, compute_logits, measure_parity
from streetvision.contracts.errors import ArtifactError
from streetvision.contracts.policies import RuntimeParity
from streetvision.contracts.progress import Silent
from tests.bundle.altered_model import AlteredModel

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
def test_an_accepted_graph_has_no_loss_or_equal_decisions(before, after, flips):
    parity = GOOD.model_copy(update={"pytorch_mcc": before, "mcc": after, "decision_flips": flips})
    if before - after > MAX_MCC_LOSS or (before <= 0 and flips):
        with pytest.raises(ArtifactError, match="openvino int8"):
            check_parity(parity, name="openvino int8")
    else:
        check_parity(parity, name="openvino int8")


def test_the_error_has_the_loss_and_the_limit():
    with pytest.raises(ArtifactError, match=r"0\.0060 lower than (.|\n)*0\.005(.|\n)* 1 of 100 decisions differ"):
        check_parity(GOOD.model_copy(update={"mcc": 0.894}), name="openvino int8")


@pytest.fixture(scope="module")
def predictor(finished_run):
    return load_bundle(finished_run / "export")


@pytest.fixture(scope="module")
def labeled_images(scenes):
    paths = sorted((scenes / "images").iterdir())[:40]
    return paths, [number % 2 for number in range(40)]


def altered(predictor, change):
    return predictor.with_model(AlteredModel(predictor.model, change))


def parity_of(predictor, labeled_images, change):
    paths, labels = labeled_images
    expected, actual = (compute_logits(p, paths, Silent()) for p in (predictor, altered(predictor, change)))
    return measure_parity(predictor, expected, actual, labels)


def test_equal_logits_have_no_differences(predictor, labeled_images):
    parity = parity_of(predictor, labeled_images, lambda logits: logits)
    assert (parity.n, parity.positives) == (40, 20)
    assert (parity.max_logit_difference, parity.max_probability_difference) == (0, 0)
    assert (parity.decision_flips, parity.certified_flips) == (0, 0)
    assert parity.mcc == parity.pytorch_mcc


def test_differences_are_those_of_the_worst_image(predictor, labeled_images):
    shift = np.array([-0.25, 0.25], dtype=np.float32)
    parity = parity_of(predictor, labeled_images, lambda logits: logits + shift)
    assert parity.max_logit_difference == pytest.approx(0.25, abs=1e-6)
    before = predictor.predict(labeled_images[0])
    after = altered(predictor, lambda logits: logits + shift).predict(labeled_images[0])
    changes = [abs(a.probability - b.probability) for a, b in zip(before, after, strict=True)]
    assert parity.max_probability_difference == pytest.approx(max(changes))
    assert parity.decision_flips == sum(a.decision != b.decision for a, b in zip(before, after, strict=True))


def test_logits_that_are_not_finite_are_rejected(predictor, labeled_images):
    with pytest.raises(ArtifactError, match="not finite"):
        parity_of(predictor, labeled_images, lambda logits: logits * np.float32(np.inf))
