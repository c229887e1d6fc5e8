import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streetvision.contracts.errors import ArtifactError
from streetvision.io.predictions import PolicyPredictions, read_predictions, write_predictions

NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)
ROWS = st.lists(
    st.tuples(NAMES, st.integers(0, 1), st.none() | NAMES, st.floats(0, 1), st.booleans()), min_size=1, max_size=8
)


def make_predictions(rows, policy="scrc", *, shipped=True):
    paths, labels, groups, probabilities, decisions = map(list, zip(*rows, strict=True))
    arrays = (np.array(labels), groups, np.array(probabilities), np.array(decisions))
    return PolicyPredictions(policy, "single_view", shipped, paths, *arrays)


@given(rows=ROWS)
def test_predictions_are_read_back_exactly(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("predictions") / "predictions.csv"
    written = [make_predictions(rows, "argmax", shipped=False), make_predictions(rows)]
    write_predictions(path, written)
    for expected, loaded in zip(written, read_predictions(path), strict=True):
        assert (expected.policy, expected.shipped, expected.paths, expected.groups) == (
            loaded.policy,
            loaded.shipped,
            loaded.paths,
            loaded.groups,
        )
        assert np.array_equal(expected.probabilities, loaded.probabilities)
        assert np.array_equal(expected.labels, loaded.labels)
        assert np.array_equal(expected.decisions, loaded.decisions)


def test_other_columns_and_invalid_values_are_errors(tmp_path):
    path = tmp_path / "predictions.csv"
    path.write_text("path,label\na.jpg,1\n")
    with pytest.raises(ArtifactError, match="must have the columns policy"):
        read_predictions(path)
    write_predictions(path, [make_predictions([("a.jpg", 1, None, 0.5, True)])])
    written = path.read_text()
    for wrong in (written.replace("0.5", "half"), written.replace("a.jpg", "a" * 200_000), "a" * 200_000):
        path.write_text(wrong)
        with pytest.raises(ArtifactError, match="line "):
            read_predictions(path)
