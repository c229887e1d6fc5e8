"""The gate of an augmentation policy: short paired runs with and without it, compared on VAL_SELECT."""

import copy

import torch
from torch import Tensor

from streetvision.contracts.phase import Context
from streetvision.contracts.progress import Silent
from streetvision.contracts.split_contracts import Split
from streetvision.data.config import PLAIN, AugmentationConfig, LoaderConfig
from streetvision.models.module import Classifier
from streetvision.pipeline.gates import calibrated_predictions, decide, one_group_problem
from streetvision.pipeline.image_training import fit_images
from streetvision.training.config import FinetuningConfig
from streetvision.training.scoring import apply_to_batches, evaluation_loader
from streetvision.training.trainer import TrainerOptions, seed_all


def accepted_augmentation(
    context: Context, classifier: Classifier, training: FinetuningConfig, *, problem: str | None = None
) -> AugmentationConfig:
    """The configured policy, or PLAIN if the gate leaves it out.

    Every run starts from a copy of `classifier`, whose trainable parameters are marked. The two runs of a pair share
    seed and order of rows. The NLL is that of the mean logits over the runs, after calibration. With a `problem`, there
    are no runs.
    """
    policy = context.settings(AugmentationConfig)
    if policy.gate == "off":
        return policy
    rows = context.rows(Split.VAL_SELECT)
    augmented = plain = None
    problem = problem or one_group_problem(rows)
    if problem is None:
        runs = [(number, variant) for number in range(policy.gate_runs) for variant in (policy, PLAIN)]
        logits = [
            _logits(context, classifier, training, *run)
            for run in context.progress.track(runs, total=len(runs), label="gate")
        ]
        augmented, plain = (
            calibrated_predictions(torch.stack(logits[start::2]).mean(dim=0), rows, seed=training.seed)
            for start in (0, 1)
        )
    gate = decide(
        policy.gate,
        augmented,
        plain,
        problem=problem,
        stage="the augmentation",
        section="augmentation",
        path=context.schema.augmentation_gate_json,
        progress=context.progress,
        details={
            "epochs": policy.gate_epochs,
            "runs": policy.gate_runs,
            "policy": policy.model_dump(mode="json", exclude={"gate", "gate_epochs", "gate_runs"}),
        },
    )
    if not gate.ships:
        context.progress.warn(f"training continues without augmentation: {gate.reason}")
    return policy if gate.ships else PLAIN


def _logits(
    context: Context, start: Classifier, training: FinetuningConfig, run: int, policy: AugmentationConfig
) -> Tensor:
    """Logits (M, 2) of VAL_SELECT after a short run."""
    select = context.rows(Split.VAL_SELECT)
    config = training.model_copy(
        update={"epochs": context.settings(AugmentationConfig).gate_epochs, "seed": training.seed + run}
    )
    seed_all(config.seed)
    classifier = copy.deepcopy(start)
    fit_images(classifier, context, config=config, policy=policy, options=TrainerOptions(Silent()))
    loader = context.settings(LoaderConfig)
    with evaluation_loader(classifier, select, root=context.data_root, loader=loader) as batches:
        logits, _ = apply_to_batches(classifier, batches, total=len(batches), label="gate", progress=Silent())
    return logits
