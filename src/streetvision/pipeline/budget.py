"""How long a fine-tuning takes on this machine, by an estimate, and how many epochs and patches a budget allows."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field

from streetvision.contracts.errors import ArtifactError
from streetvision.contracts.phase import Context
from streetvision.contracts.policies import Artifact, Digest
from streetvision.contracts.split_contracts import Split, every_nth
from streetvision.data.config import AugmentationConfig, LoaderConfig
from streetvision.io.atomic import write_json_atomic
from streetvision.io.validators import validate_json
from streetvision.models.backbone_spec import token_count
from streetvision.models.config import AUTO, ModelConfig
from streetvision.models.device import pick_device
from streetvision.models.module import Classifier
from streetvision.pipeline.artifacts import adapted_checkpoint_inputs, starts_adapted
from streetvision.pipeline.image_training import train_dataset
from streetvision.pipeline.initialization import initial_classifier, resume_key
from streetvision.pipeline.input_size import FEWER_TOKENS
from streetvision.training.config import AutoConfig, TrainingConfig
from streetvision.training.finetune_modes import prepare
from streetvision.training.precision import lightning_precision
from streetvision.training.trainer import seed_all

FEWEST_EPOCHS, MOST_EPOCHS = 3, 16
"""Epochs with training.epochs=null. A budget may allow fewer."""
ENOUGH_IMAGES = 4800
"""Images that the epochs of training.epochs=null have in all."""
EVALUATION_SHARE = 0.5
"""Time of a forward pass relative to a training step: a third at equal precision, and half of a step in bf16, because
scores are computed in fp32."""


class ImageTime(Artifact):
    """Seconds of one image, with the time to read and prepare it."""

    trained: Annotated[float, Field(gt=0)]
    """In a training step."""
    evaluated: Annotated[float, Field(gt=0)]
    """In a forward pass."""


class StepTime(Artifact):
    """The time of a training step."""

    key: Digest
    """Digest of everything that affects the result."""
    seconds: dict[str, ImageTime]
    """Size of the input (HEIGHTxWIDTH) -> seconds of one image."""


@dataclass(frozen=True)
class Work:
    """The number of images in a fine-tuning."""

    trained: int
    """In each epoch."""
    validated: int = 0
    """In each epoch, without a backward pass."""
    evaluated: int = 0
    """Once, outside the epochs: to solve the first head, and to compare or score the trained model."""


def requested_epochs(context: Context, config: AutoConfig) -> int:
    """Return training.epochs, or the number that suits the images of TRAIN."""
    by_images = math.ceil(ENOUGH_IMAGES / len(context.rows(Split.TRAIN)))
    return config.epochs or min(max(by_images, FEWEST_EPOCHS), MOST_EPOCHS)


def enough_epochs(context: Context, config: AutoConfig) -> int:
    """Return the number of epochs below which folds are left out, and then patches: half of the requested ones."""
    requested = requested_epochs(context, config)
    return min(requested, max(FEWEST_EPOCHS, math.ceil(requested / 2)))


def affordable_size(
    initial: Classifier, context: Context, config: AutoConfig, work: Callable[[bool], Work]
) -> tuple[Classifier, int, float]:
    """Return the classifier to fine-tune, and the result of `affordable_epochs` for it.

    Where the budget allows fewer than `enough_epochs` and the settings leave the size of the input open, the classifier
    gets fewer patches of an image. It then has a new head and weights of its own.

    Args:
        initial: With the size of the input that the images need.
        context: Context of phase 1.
        config: Settings with the time budget.
        work: Images of the fine-tuning; True: the size is new, and the features of the first heads are computed again.
    """
    epochs, minutes = affordable_epochs(initial, context, config, work(False))
    if epochs >= enough_epochs(context, config) or config.budget_minutes == 0:
        return initial, epochs, minutes
    if (smaller := _with_fewer_patches(initial, context)) is None:
        return initial, epochs, minutes
    of_smaller = affordable_epochs(smaller, context, config, work(True))
    if of_smaller[0] == 0:
        return initial, epochs, minutes
    patches, fewer = (
        token_count(spec.image_size, spec.patch_size) for spec in (initial.backbone.spec, smaller.backbone.spec)
    )
    height, width = smaller.backbone.spec.image_size
    context.progress.auto_setting(
        f"model.image_size=[{height},{width}]",
        f"for fine-tuning: {fewer} patches; with {patches}, training.budget_minutes={config.budget_minutes:g} allows "
        f"{epochs} of {requested_epochs(context, config)} epochs",
    )
    return smaller, *of_smaller


def _with_fewer_patches(initial: Classifier, context: Context) -> Classifier | None:
    """The classifier with fewer patches of an image; None if the settings do not allow it, or it has no fewer.

    The position embeddings of an adapted backbone have its size.
    """
    model = context.settings(ModelConfig)
    if (model.image_size, model.image_tokens) != (AUTO, AUTO) or starts_adapted(context):
        return None
    seed_all(context.settings(TrainingConfig).seed)  # of the new head
    smaller = initial_classifier(context, tokens=FEWER_TOKENS)
    fewer = math.prod(smaller.backbone.spec.image_size) < math.prod(initial.backbone.spec.image_size)
    return smaller if fewer else None


def affordable_epochs(classifier: Classifier, context: Context, config: AutoConfig, work: Work) -> tuple[int, float]:
    """Return how many epochs fit into `budget_minutes`, at most `requested_epochs`, and the minutes of these.

    If even one takes longer, the number is 0 and the minutes are those of one. Reading and a training step are timed
    for one batch, on a copy of the classifier. Worker processes read while the model computes. The time is stored: a
    run that resumes trains as many epochs.

    Args:
        classifier: Classifier whose steps are timed.
        context: Context of phase 1.
        config: Settings with the time budget.
        work: Images of the fine-tuning.
    """
    if config.budget_minutes == 0:
        return 0, 0.0
    seconds = _stored_image_time(classifier, context, config)
    per_epoch = (work.trained * seconds.trained + work.validated * seconds.evaluated) / 60
    once = work.evaluated * seconds.evaluated / 60
    affordable = max(0, int((config.budget_minutes - once) / per_epoch))
    epochs = min(requested_epochs(context, config), affordable)
    return epochs, max(epochs, 1) * per_epoch + once


def _stored_image_time(classifier: Classifier, context: Context, config: AutoConfig) -> ImageTime:
    """The time of one image: from an interrupted run with the same settings and data, or new."""
    path, key = context.schema.step_time_json, resume_key(context, adapted_checkpoint_inputs(context))
    size = "x".join(map(str, classifier.backbone.spec.image_size))
    try:
        stored = validate_json(path, StepTime)
    except ArtifactError:  # none, or one of another version
        stored = StepTime(key=key, seconds={})
    seconds = stored.seconds if stored.key == key else {}
    if size not in seconds:
        with torch.random.fork_rng():  # a run that resumes does not measure, and draws the same numbers
            measured = _image_time(classifier, context, config)
        seconds = {**seconds, size: measured}
        write_json_atomic(path, StepTime(key=key, seconds=seconds).model_dump(mode="json"))
    return seconds[size]


def _image_time(classifier: Classifier, context: Context, config: AutoConfig) -> ImageTime:
    rows = every_nth(context.rows(Split.TRAIN), config.micro_batch_size or config.batch_size)
    model, device = copy.deepcopy(classifier), pick_device()
    dataset = train_dataset(model, rows, context, config=config, policy=context.settings(AugmentationConfig))
    images = torch.stack([dataset.draw(position) for position in range(len(rows))])
    prepare(model, config)
    model.to(device).train()
    images, labels = images.to(device), torch.tensor([row.label for row in rows], device=device)

    def read() -> None:
        for position in range(len(rows)):
            dataset.draw(position)

    def train() -> None:
        with lightning_precision(config.precision, device).forward_context():
            loss = F.cross_entropy(model(images).float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        loss.item()  # waits for the device

    workers = context.settings(LoaderConfig).worker_count
    reading, step = _seconds(read) / len(rows), _seconds(train) / len(rows)
    trained, evaluated = (
        max(computed, reading / workers) if workers else computed + reading
        for computed in (step, EVALUATION_SHARE * step)
    )
    return ImageTime(trained=trained, evaluated=evaluated)


def _seconds(function: Callable[[], None]) -> float:
    """Seconds of the faster of two calls: the first one warms up."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
