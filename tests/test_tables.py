"""The names that a setting may have stand apart from the code that they name; here the two are held together."""

from typing import get_args

import pytest

from streetvision.calibration.calibrators import CALIBRATORS
from streetvision.calibration.config import CalibratorName
from streetvision.models.config import LOSS_READS, FusionMode, LossName
from streetvision.models.fusion import FUSIONS
from streetvision.models.losses import LOSSES
from streetvision.training.ssl import explora
from streetvision.training.ssl.config import Method


@pytest.mark.parametrize(
    ("names", "table"),
    [
        (CalibratorName, CALIBRATORS),
        (FusionMode, FUSIONS),
        (LossName, LOSSES),
        (LossName, LOSS_READS),
        (Method, explora.METHODS),
    ],
)
def test_every_name_is_in_its_table_and_the_table_has_no_other(names, table):
    assert sorted(get_args(names)) == sorted(table)
