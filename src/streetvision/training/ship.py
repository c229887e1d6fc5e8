"""From what a training run kept to the state dict of the plain classifier: what is saved, calibrated and shipped."""

import copy

from torch import Tensor

from streetvision.models.adapters import merge
from streetvision.models.module import Classifier
from streetvision.training.callbacks import State, cpu_state
from streetvision.training.config import TrainingConfig


def merged_state_dict(
    classifier: Classifier, learnt: State, config: TrainingConfig, *, images: Tensor | None
) -> tuple[State, float | None]:
    """The classifier's state with `learnt` in it, adapters merged in fp32, and the merge error on `images`.

    Modes without adapters have no merge error and need no images.
    """
    state = {**cpu_state(classifier), **learnt}
    if config.mode != "peft":
        return state, None
    assert images is not None
    copied = copy.deepcopy(classifier).cpu()
    copied.load_state_dict(state, strict=True)
    error = merge(copied, images)
    return cpu_state(copied), error
