"""The gate of an augmentation policy: short paired runs with and without it, compared on VAL_SELECT."""

import copy

import numpy as np
from numpy.typing import NDArray

from streetvision.contracts.phase import Context
from streetvision.contracts.progress import Silent
from streetvision.contracts.split_contracts import Split
from streetvision.data.config import PLAIN, AugmentationConfig, LoaderConfig
from streetvision.eval.bootstrap import paired_difference
from streetvision.eval.predictions import Predictions
from streetvision.io.atomic import write_json_atomic
from streetvision.models.module import Classifier
from streetvision.pipeline.image_training import fit_images
from streetvision.training.config import FinetuningConfig
from streetvision.training.scoring import apply_to_batches, evaluation_loader
from streetvision.training.trainer import TrainerOptions, seed_all


def accepted_augmentation(context: Context, classifier: Classifier, training: FinetuningConfig) -> AugmentationConfig:
    """The configured policy, or PLAIN if the policy lowers VAL_SELECT MCC by more than the tolerance.

    Every run starts from a copy of `classifier`, whose trainable parameters are marked. The two runs of a pair share
    seed and order of rows. augmentation_gate.json records the decision and the interval of the difference. VAL_SELECT
    decides, so this is model selection like that of the epoch.
    """
    policy, progress = context.settings(AugmentationConfig), context.progress
    gate = policy.gate
    if gate.epochs == 0:
        return policy
    runs = [(number, variant) for number in range(gate.runs) for variant in (policy, PLAIN)]
    probabilities = [
        _probabilities(context, classifier, training, *run)
        for run in progress.track(runs, total=len(runs), label="gate")
    ]
    rows = context.rows(Split.VAL_SELECT) * gate.runs
    labels = [row.label for row in rows]
    # All runs predict the same rows, so a row is resampled with all its predictions.
    groups = [row.group or row.path for row in rows]
    augmented, plain = (Predictions(labels, np.concatenate(probabilities[start::2]), groups) for start in (0, 1))
    difference = paired_difference(augmented, plain)["mcc"]
    rejected = difference.estimate < -gate.tolerance
    write_json_atomic(
        context.schema.augmentation_gate_json,
        {
            "decision": "rejected" if rejected else "accepted",
            "mcc_difference": difference.estimate,
            "interval": [difference.low, difference.high],
            "method": difference.method,
            "units": difference.units,
            "tolerance": gate.tolerance,
            "epochs": gate.epochs,
            "runs": gate.runs,
            "policy": policy.model_dump(mode="json", exclude={"gate"}),
        },
    )
    if rejected:
        progress.warn(
            f"augmentation rejected: it lowers VAL_SELECT MCC by {-difference.estimate:.3f} in short runs; training "
            "continues without it (see phase1/augmentation_gate.json)"
        )
    return PLAIN if rejected else policy


def _probabilities(
    context: Context, start: Classifier, training: FinetuningConfig, run: int, policy: AugmentationConfig
) -> NDArray[np.float32]:
    """Probabilities of class 1 on VAL_SELECT after a short run."""
    select = context.rows(Split.VAL_SELECT)
    config = training.model_copy(
        update={"epochs": context.settings(AugmentationConfig).gate.epochs, "seed": training.seed + run}
    )
    seed_all(config.seed)
    classifier = copy.deepcopy(start)
    fit_images(classifier, context, config=config, policy=policy, options=TrainerOptions(Silent()))
    loader = context.settings(LoaderConfig)
    with evaluation_loader(classifier, select, root=context.data_root, loader=loader) as batches:
        logits, _ = apply_to_batches(classifier, batches, total=len(batches), label="gate", progress=Silent())
    probabilities: NDArray[np.float32] = logits.softmax(dim=1)[:, 1].numpy()
    return probabilities
