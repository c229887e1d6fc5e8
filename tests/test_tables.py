"""The names of choices are declared in the settings and in tables of code; both must agree."""

from typing import get_args

import pytest
from pydantic import BaseModel

from streetvision.calibration.calibrators import CALIBRATORS
from streetvision.calibration.config import CalibratorName
from streetvision.contracts.settings import variants
from streetvision.models.config import AnyEvidencePoolingConfig, AnyLossConfig, FusionMode
from streetvision.models.evidence import EVIDENCE
from streetvision.models.fusion import FUSIONS
from streetvision.models.losses import LOSSES
from streetvision.training import finetune_modes
from streetvision.training.config import AnyTrainingConfig
from streetvision.training.ssl import explora
from streetvision.training.ssl.config import AnyExPLoRAConfig, Method


@pytest.mark.parametrize(
    ("names", "table"),
    [
        (CalibratorName, CALIBRATORS),
        (FusionMode, FUSIONS),
        (Method, explora.METHODS),
    ],
)
def test_every_name_is_in_its_table_and_the_table_has_no_other(names, table):
    assert sorted(get_args(names)) == sorted(table)


@pytest.mark.parametrize(
    ("section", "key", "table"),
    [
        (AnyLossConfig, "name", LOSSES),
        (AnyEvidencePoolingConfig, "name", EVIDENCE),
        (AnyExPLoRAConfig, "method", explora.METHODS),
        (AnyTrainingConfig, "mode", finetune_modes.MODES),
    ],
)
def test_a_union_has_one_variant_for_each_name_in_its_table(section, key, table):
    class Holder(BaseModel):
        field: section

    variants_of = variants(Holder.model_fields["field"])
    assert sorted(model.model_fields[key].default for model in variants_of) == sorted(table)
