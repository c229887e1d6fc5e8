"""How long a fine-tuning takes on this machine, by an estimate, and how many epochs a budget allows."""

import copy
import math
import time

import torch
import torch.nn.functional as F

from streetvision.contracts.phase import Context
from streetvision.contracts.split_contracts import Split
from streetvision.data.config import LoaderConfig
from streetvision.data.decode import read_row
from streetvision.models.device import pick_device
from streetvision.models.module import Classifier
from streetvision.training.config import AutoConfig
from streetvision.training.finetune_modes import prepare
from streetvision.training.precision import lightning_precision

FEWEST_EPOCHS, MOST_EPOCHS = 3, 16
"""Of training.epochs=null. A budget may allow fewer."""
ENOUGH_IMAGES = 4800
"""Images that the epochs of training.epochs=null have in all."""
VALIDATION_SHARE = 0.4
"""Time of an image in a validation relative to a training step, which also has a backward pass."""


def requested_epochs(context: Context, config: AutoConfig) -> int:
    """Return training.epochs, or the number that suits the images of TRAIN."""
    by_images = math.ceil(ENOUGH_IMAGES / len(context.rows(Split.TRAIN)))
    return config.epochs or min(max(by_images, FEWEST_EPOCHS), MOST_EPOCHS)


def affordable_epochs(classifier: Classifier, context: Context, config: AutoConfig, work: float) -> tuple[int, float]:
    """Return how many epochs fit into `budget_minutes`, at most `requested_epochs`, and the minutes of these.

    If even one takes longer, the number is 0 and the minutes are those of one. One training step is timed, on a copy of
    the classifier and without the time to decode its images, which worker processes do.

    Args:
        classifier: Is timed.
        context: Of phase 1.
        config: Has the budget.
        work: Training steps of an image in each epoch; an image that is only validated counts VALIDATION_SHARE.
    """
    train = context.rows(Split.TRAIN)
    rows, limits = train[: config.micro_batch_size or config.batch_size], context.settings(LoaderConfig).limits
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
    per_epoch = min(seconds) / len(rows) * work / 60
    epochs = min(requested_epochs(context, config), int(config.budget_minutes / per_epoch))
    return epochs, max(epochs, 1) * per_epoch
