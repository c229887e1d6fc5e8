"""How long a fine-tuning takes on this machine, by an estimate, and how many epochs a budget allows."""

import copy
import math
import time
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field

from streetvision.contracts.errors import ArtifactError
from streetvision.contracts.phase import Context
from streetvision.contracts.policies import Artifact, Digest
from streetvision.contracts.split_contracts import Split
from streetvision.data.config import LoaderConfig
from streetvision.data.decode import read_row
from streetvision.io.atomic import write_json_atomic
from streetvision.io.validators import validate_json
from streetvision.models.device import pick_device
from streetvision.models.module import Classifier
from streetvision.pipeline.artifacts import adapted_checkpoint_inputs
from streetvision.pipeline.initialization import resume_key
from streetvision.training.config import AutoConfig
from streetvision.training.finetune_modes import prepare
from streetvision.training.precision import lightning_precision

FEWEST_EPOCHS, MOST_EPOCHS = 3, 16
"""Of training.epochs=null. A budget may allow fewer."""
ENOUGH_IMAGES = 4800
"""Images that the epochs of training.epochs=null have in all."""
VALIDATION_SHARE = 0.4
"""Time of an image in a validation relative to a training step, which also has a backward pass."""


class StepTime(Artifact):
    """The time of a training step."""

    key: Digest
    """Digest of everything that affects the result."""
    seconds: dict[str, Annotated[float, Field(gt=0)]]
    """Size of the input (HEIGHTxWIDTH) -> seconds for one image."""


def requested_epochs(context: Context, config: AutoConfig) -> int:
    """Return training.epochs, or the number that suits the images of TRAIN."""
    by_images = math.ceil(ENOUGH_IMAGES / len(context.rows(Split.TRAIN)))
    return config.epochs or min(max(by_images, FEWEST_EPOCHS), MOST_EPOCHS)


def affordable_epochs(classifier: Classifier, context: Context, config: AutoConfig, work: float) -> tuple[int, float]:
    """Return how many epochs fit into `budget_minutes`, at most `requested_epochs`, and the minutes of these.

    If even one takes longer, the number is 0 and the minutes are those of one. One training step is timed, on a copy of
    the classifier and without the time to decode its images, which worker processes do. Its time is stored: a run that
    resumes trains as many epochs.

    Args:
        classifier: Is timed.
        context: Of phase 1.
        config: Has the budget.
        work: Training steps of an image in each epoch; an image that is only validated counts VALIDATION_SHARE.
    """
    if config.budget_minutes == 0:
        return 0, 0.0
    per_epoch = _stored_step_time(classifier, context, config) * work / 60
    epochs = min(requested_epochs(context, config), int(config.budget_minutes / per_epoch))
    return epochs, max(epochs, 1) * per_epoch


def _stored_step_time(classifier: Classifier, context: Context, config: AutoConfig) -> float:
    """Seconds of a training step for one image: from an interrupted run with the same settings and data, or new."""
    path, key = context.schema.step_time_json, resume_key(context, adapted_checkpoint_inputs(context))
    size = "x".join(map(str, classifier.backbone.spec.image_size))
    try:
        stored = validate_json(path, StepTime)
    except ArtifactError:  # none, or one of another version
        stored = StepTime(key=key, seconds={})
    seconds = stored.seconds if stored.key == key else {}
    if size not in seconds:
        with torch.random.fork_rng():  # a run that resumes does not measure, and draws the same numbers
            measured = _step_time(classifier, context, config)
        seconds = {**seconds, size: measured}
        write_json_atomic(path, StepTime(key=key, seconds=seconds).model_dump(mode="json"))
    return seconds[size]


def _step_time(classifier: Classifier, context: Context, config: AutoConfig) -> float:
    rows = context.rows(Split.TRAIN)[: config.micro_batch_size or config.batch_size]
    limits = context.settings(LoaderConfig).limits
    model, device = copy.deepcopy(classifier), pick_device()
    prepare(model, config)
    model.to(device).train()
    decoded = [read_row(context.data_root, row, limits=limits, decode_size=model.decode_size) for row in rows]
    images = torch.stack([model.prepare(image) for image in decoded])
    images, labels = images.to(device), torch.tensor([row.label for row in rows], device=device)
    seconds = []
    for _ in range(2):  # the first step also warms up
        start = time.perf_counter()
        with lightning_precision(config.precision, device).forward_context():
            loss = F.cross_entropy(model(images).float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        float(loss.detach())  # waits for the device
        seconds.append(time.perf_counter() - start)
    return min(seconds) / len(rows)
