import math

import numpy as np
import pytest

from streetvision.eval.over_splits import corrected_t_interval


def test_the_interval_is_the_one_by_hand():
    found = corrected_t_interval([0.1, 0.2, 0.6], tested=1 / 9, level=0.95)
    error = np.std([0.1, 0.2, 0.6], ddof=1) * math.sqrt(1 / 3 + 1 / 9)
    assert found.estimate == pytest.approx(0.3)
    assert found.high - found.estimate == pytest.approx(4.302653 * error, rel=1e-6)
    assert found.low == pytest.approx(0.6 - found.high)


@pytest.mark.parametrize("differences", [[0.2], [0.2, 0.2, 0.2]])
def test_without_spread_there_is_no_interval(differences):
    found = corrected_t_interval(differences, tested=0.1, level=0.95)
    assert found.estimate == pytest.approx(0.2)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
