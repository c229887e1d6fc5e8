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


def answers(rows, policy="scrc", *, shipped=True):
    paths, labels, groups, probabilities, decisions = map(list, zip(*rows, strict=True))
    arrays = (np.array(labels), groups, np.array(probabilities), np.array(decisions))
    return PolicyPredictions(policy, "single_view", shipped, paths, *arrays)


@given(rows=ROWS)
def test_answers_come_back_to_the_bit(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("answers") / "predictions.csv"
    written = [answers(rows, "argmax", shipped=False), answers(rows)]
    write_predictions(path, written)
    for one, found in zip(written, read_predictions(path), strict=True):
        assert (one.policy, one.shipped, one.paths, one.groups) == (
            found.policy,
            found.shipped,
            found.paths,
            found.groups,
        )
        assert np.array_equal(one.probabilities, found.probabilities)
        assert np.array_equal(one.labels, found.labels)
        assert np.array_equal(one.decisions, found.decisions)


def test_another_table_and_a_damaged_line_are_named(tmp_path):
    path = tmp_path / "predictions.csv"
    path.write_text("path,label\na.jpg,1\n")
    with pytest.raises(ArtifactError, match="should have the columns policy"):
        read_predictions(path)
    write_predictions(path, [answers([("a.jpg", 1, None, 0.5, True)])])
    path.write_text(path.read_text().replace("0.5", "half"))
    with pytest.raises(ArtifactError, match="line 2"):
        read_predictions(path)
