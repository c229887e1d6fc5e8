"""The gate of an augmentation policy: short paired runs with it and without, judged on VAL_SELECT."""

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from streetvision.contracts.phase import Context
from streetvision.contracts.progress import Silent
from streetvision.contracts.split_contracts import Split
from streetvision.data.config import PLAIN, AugmentationConfig, LoaderConfig
from streetvision.eval.bootstrap import Difference, paired_difference
from streetvision.eval.resampling import Predictions, Resampling
from streetvision.io.atomic import write_json_atomic
from streetvision.pipeline.image_training import fit_images
from streetvision.pipeline.initialization import initial_classifier
from streetvision.training.config import FinetuningConfig, TrainingConfig
from streetvision.training.finetune_modes import prepare
from streetvision.training.scoring import apply_to_batches, evaluation_loader
from streetvision.training.trainer import TrainerOptions, seed_all

ARGMAX = 0.5


def accepted_augmentation(context: Context) -> AugmentationConfig:
    """The policy that was asked for, or none at all where it costs more VAL_SELECT MCC than is tolerated.

    Every pair of runs shares seed, initial weights and order of rows. The verdict goes to augmentation_gate.json with
    the interval of the difference, by whole groups where there are groups. As it is VAL_SELECT that judges, the choice
    is one among models like that of the epoch.
    """
    policy, progress = context.settings(AugmentationConfig), context.progress
    if policy.gate.epochs == 0:
        return policy
    pairs = [(run, kind) for run in range(policy.gate.runs) for kind in (policy, PLAIN)]
    seen = [_probabilities(context, run, kind) for run, kind in progress.track(pairs, total=len(pairs), label="gate")]
    rows = context.rows(Split.VAL_SELECT) * policy.gate.runs
    difference = paired_difference(
        [row.label for row in rows],
        Predictions.cut(np.concatenate(seen[0::2]), ARGMAX),
        Predictions.cut(np.concatenate(seen[1::2]), ARGMAX),
        # The runs judge the same rows, so a row's answers are drawn together.
        Resampling(groups=[row.group or row.path for row in rows]),
    )["mcc"]
    rejected = difference.estimate < -policy.gate.tolerance
    write_json_atomic(context.schema.augmentation_gate_json, _verdict(policy, difference, rejected))
    if rejected:
        progress.warn(
            f"the augmentation costs {-difference.estimate:.3f} of VAL_SELECT MCC in short runs, so training goes on "
            "without any; see phase1/augmentation_gate.json"
        )
    return PLAIN if rejected else policy


def _probabilities(context: Context, run: int, policy: AugmentationConfig) -> NDArray[np.float32]:
    """Probabilities of class 1 on VAL_SELECT after a short run."""
    training, select = context.settings(TrainingConfig), context.rows(Split.VAL_SELECT)
    assert isinstance(training, FinetuningConfig)
    config = training.model_copy(
        update={"epochs": context.settings(AugmentationConfig).gate.epochs, "seed": training.seed + run}
    )
    seed_all(config.seed)
    classifier = initial_classifier(context)
    prepare(classifier, config)
    fit_images(classifier, context, config=config, policy=policy, options=TrainerOptions(Silent()))
    loader = context.settings(LoaderConfig)
    with evaluation_loader(classifier, select, root=context.data_root, loader=loader) as batches:
        logits, _ = apply_to_batches(classifier, batches, total=len(batches), label="gate", progress=Silent())
    probabilities: NDArray[np.float32] = logits.softmax(dim=1)[:, 1].numpy()
    return probabilities


def _verdict(policy: AugmentationConfig, difference: Difference, rejected: bool) -> JsonValue:
    return {
        "verdict": "rejected" if rejected else "admitted",
        "mcc_difference": difference.estimate,
        "interval": [difference.low, difference.high],
        "method": difference.method,
        "units": difference.units,
        "tolerance": policy.gate.tolerance,
        "epochs": policy.gate.epochs,
        "runs": policy.gate.runs,
        "policy": policy.model_dump(mode="json", exclude={"gate"}),
    }
