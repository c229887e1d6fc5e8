"""phase1: fit the classifier on TRAIN, choose an epoch on VAL_SELECT, score VAL_CALIB with what was chosen."""

import csv
import io
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor

from streetvision.contracts.phase import Context, Outcome
from streetvision.contracts.split_contracts import Split
from streetvision.data.config import AugmentationConfig, LoaderConfig
from streetvision.data.datamodule import FeatureBatches
from streetvision.data.decode import read_image, resize_square
from streetvision.eval.report.learning_curve import learning_curve
from streetvision.io.atomic import sha256_file, write_bytes_atomic, write_json_atomic, write_text_atomic
from streetvision.io.tensors import save_tensors
from streetvision.models.adapters import merged_state_dict
from streetvision.models.module import Classifier
from streetvision.pipeline.artifacts import SCORES, adapted_backbone, adapted_checkpoint_inputs
from streetvision.pipeline.augmentation_gate import accepted_augmentation
from streetvision.pipeline.auto_settings import log_auto_settings
from streetvision.pipeline.image_training import fit_images
from streetvision.pipeline.initialization import initial_classifier, resume_key
from streetvision.pipeline.scores import make_scores
from streetvision.training.callbacks import State
from streetvision.training.config import FinetuningConfig, TrainingConfig
from streetvision.training.distributed import broadcast
from streetvision.training.features import FeatureCache
from streetvision.training.finetune_modes import prepare
from streetvision.training.lightning_module import EpochRow
from streetvision.training.loggers import open_loggers
from streetvision.training.trainer import Fit, TrainerOptions, fit, seed_all

PROBED = 8
"""Images on which a merge is checked."""


def run(context: Context) -> Outcome:
    """Fit, choose, save; then load what was saved and score VAL_CALIB with it, so that it is what ships."""
    training, started = context.settings(TrainingConfig), time.perf_counter()
    log_auto_settings(context, training, section="training")
    seed_all(training.seed)
    classifier = initial_classifier(context)
    learning = prepare(classifier, training)
    fit_mode = _fit_head if training.mode == "frozen" else _fit_images
    with open_loggers(context.schema.phase1_logs_dir, training) as loggers:
        fitted = fit_mode(classifier, context, loggers)
    seconds = time.perf_counter() - started
    error = _save(fitted, classifier, context)
    make_scores(context, classifier.description, context.schema.phase1_checkpoint, SCORES)
    context.schema.phase1_training_checkpoint.unlink(missing_ok=True)
    best, rows = fitted.checkpoints[0], sum(len(context.rows(split)) for split in (Split.TRAIN, Split.VAL_SELECT))
    rate = rows * (1 if training.mode == "frozen" else len(fitted.history)) / seconds
    if best.one_class_only:
        context.progress.warn("the model gives every image of VAL_SELECT the same answer: do not use it")
    return Outcome(
        _summary(fitted, training, rate) + ("" if adapted_backbone(context) is None else ", adapted backbone"),
        {
            **fitted.best_row,
            "chosen_weights": best.weights,
            "one_class_only": int(best.one_class_only),
            "parameters_trained": learning,
            "images_per_second": rate,
            "merge_error": error,
            "adapted_backbone_sha256": None if (adapted := adapted_backbone(context)) is None else sha256_file(adapted),
        },
        extra_outputs=_also_made(fitted, context),
    )


def _also_made(fitted: Fit, context: Context) -> tuple[Path, ...]:
    gated = context.settings(AugmentationConfig).gate.epochs > 0
    ranked = tuple(context.schema.phase1_ranked_checkpoint(rank) for rank in range(2, len(fitted.checkpoints) + 1))
    return (*ranked, *([context.schema.augmentation_gate_json] if gated else []))


def _summary(fitted: Fit, config: TrainingConfig, rate: float) -> str:
    best = fitted.checkpoints[0]
    stopped = f" (stopped after {len(fitted.history)})" if len(fitted.history) < config.epochs else ""
    resumed = "" if fitted.resumed_step is None else f", went on from step {fitted.resumed_step}"
    averaged = ", averaged weights" if best.weights == "ema" else ""
    return (
        f"{config.mode}, epoch {best.epoch} of {config.epochs} chosen{stopped}{averaged}, "
        f"VAL_SELECT MCC {best.mcc:.3f}, {rate:.0f} img/s{resumed}"
    )


def _fit_head(classifier: Classifier, context: Context, loggers: Sequence[Logger]) -> Fit:
    """The frozen mode: features once, then epochs of the head alone."""
    config, schema = context.settings(TrainingConfig), context.schema
    cache = FeatureCache(
        schema.feature_cache_dir, classifier, loader=context.settings(LoaderConfig), progress=context.progress
    )
    train, select = (
        cache.features(context.rows(split), root=context.data_root, name=split.value)
        for split in (Split.TRAIN, Split.VAL_SELECT)
    )
    names = [row.path for row in context.rows(Split.TRAIN)]
    return fit(
        classifier.head,
        FeatureBatches(*train, batch_size=config.batch_size, seed=config.seed, names=names),
        FeatureBatches(*select, batch_size=4096),
        config=config,
        options=TrainerOptions(context.progress, loggers),
    )


def _fit_images(classifier: Classifier, context: Context, loggers: Sequence[Logger]) -> Fit:
    """The other modes: augmented images through every layer, with all processes that were started."""
    checkpoint, key = context.schema.phase1_training_checkpoint, resume_key(context, adapted_checkpoint_inputs(context))
    policy = accepted_augmentation(context)
    config = context.settings(TrainingConfig)
    assert isinstance(config, FinetuningConfig)
    seed_all(config.seed)  # the gate has drawn since
    broadcast(context.phase)
    options = TrainerOptions(context.progress, loggers, checkpoint=checkpoint, resume_key=key)
    return fit_images(classifier, context, config=config, policy=policy, options=options)


def join(context: Context) -> None:
    """Take part in the training of the first process, which does everything else."""
    config = context.settings(TrainingConfig)
    assert isinstance(config, FinetuningConfig)
    seed_all(config.seed)
    classifier = initial_classifier(context)
    prepare(classifier, config)
    options = TrainerOptions(
        context.progress,
        checkpoint=context.schema.phase1_training_checkpoint,
        resume_key=resume_key(context, adapted_checkpoint_inputs(context)),
    )
    policy = context.settings(AugmentationConfig)
    seed_all(config.seed)
    fit_images(classifier, context, config=config, policy=policy, options=options)


def _save(fitted: Fit, classifier: Classifier, context: Context) -> float | None:
    """Write the states as those of the plain classifier; returns the largest merge error."""
    schema, config = context.schema, context.settings(TrainingConfig)
    images = some_images(classifier, context) if config.mode == "peft" else None
    states = {schema.phase1_last_checkpoint: fitted.last, schema.phase1_checkpoint: fitted.best}
    states |= {
        schema.phase1_ranked_checkpoint(rank): one.state for rank, one in enumerate(fitted.checkpoints[1:], start=2)
    }
    errors = []
    for path, learnt in states.items():
        named = _of_classifier(learnt) if config.mode == "frozen" else learnt
        state, error = merged_state_dict(classifier, named, images)
        save_tensors(path, state)
        errors += [] if error is None else [error]
    write_json_atomic(schema.model_config_json, classifier.description.model_dump(mode="json"))
    write_text_atomic(schema.phase1_metrics_csv, as_csv(fitted.history))
    write_bytes_atomic(schema.learning_curve_plot, learning_curve(fitted.history, chosen=fitted.best_epoch))
    return max(errors, default=None)


def some_images(classifier: Classifier, context: Context) -> Tensor:
    """A few images of VAL_SELECT on which merging must change nothing."""
    limits, size = context.settings(LoaderConfig).limits, classifier.description.image_size
    rows = context.rows(Split.VAL_SELECT)[:PROBED]
    return torch.stack([resize_square(read_image(context.data_root / r.path, limits=limits), size) for r in rows])


def _of_classifier(head: State) -> State:
    return {f"head.{name}": value for name, value in head.items()}


def as_csv(history: tuple[EpochRow, ...]) -> str:
    """One row an epoch, under a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()
