"""phase1: train the classifier on TRAIN, select a checkpoint on VAL_SELECT, and score VAL_CALIB with it."""

import time
from collections.abc import Sequence

from lightning.pytorch.loggers import Logger

from streetvision.contracts.phase import Context, Metrics, Outcome
from streetvision.contracts.split_contracts import Split
from streetvision.data.config import AugmentationConfig
from streetvision.data.datamodule import FeatureBatches
from streetvision.eval.report.training_plots import learning_curve
from streetvision.io.atomic import sha256_file, write_bytes_atomic, write_json_atomic, write_text_atomic
from streetvision.io.tensors import save_tensors
from streetvision.models.adapters import merged_state_dict
from streetvision.models.config import HardwareConfig
from streetvision.models.device import uses_compiler
from streetvision.models.module import Classifier
from streetvision.pipeline.artifacts import SCORES, adapted_backbone, adapted_checkpoint_inputs
from streetvision.pipeline.augmentation_gate import accepted_augmentation
from streetvision.pipeline.auto_settings import log_auto_settings
from streetvision.pipeline.image_training import fit_images
from streetvision.pipeline.initialization import initial_classifier, resume_key
from streetvision.pipeline.scores import cached_features, make_scores
from streetvision.pipeline.training_outputs import merge_check_images, metrics_csv
from streetvision.training.config import FinetuningConfig, TrainingConfig
from streetvision.training.distributed import broadcast
from streetvision.training.finetune_modes import prepare
from streetvision.training.loggers import open_loggers
from streetvision.training.trainer import Fit, TrainerOptions, fit, seed_all

SELECT_BATCH = 4096
"""Rows of cached features; the head is small."""


def run(context: Context) -> Outcome:
    """Train, save the checkpoints, and score VAL_CALIB with the saved one, which is the model that is exported."""
    schema, config, started = context.schema, context.settings(TrainingConfig), time.perf_counter()
    log_auto_settings(context, config, section="training")
    seed_all(config.seed)
    classifier = initial_classifier(context)
    n_trainable = prepare(classifier, config)
    with open_loggers(schema.phase1_logs_dir, config) as loggers:
        if isinstance(config, FinetuningConfig):
            fitted = _finetune(classifier, config, context, loggers)
        else:
            fitted = _fit_head(classifier, config, context, loggers)
    seconds = time.perf_counter() - started

    merge_error = _save(fitted, classifier, context)
    make_scores(context, classifier.description, schema.phase1_checkpoint, SCORES)
    schema.phase1_training_checkpoint.unlink(missing_ok=True)

    best, n_epochs = fitted.checkpoints[0], len(fitted.history)
    n_images = sum(len(context.rows(split)) for split in (Split.TRAIN, Split.VAL_SELECT))
    rate = n_images * (1 if config.mode == "frozen" else n_epochs) / seconds  # frozen reads each image once
    adapted = adapted_backbone(context)
    if best.one_class_only:
        context.progress.warn("the model predicts the same class for every image of VAL_SELECT: do not use it")
    stopped = f" (stopped after {n_epochs})" if n_epochs < config.epochs else ""
    averaged = ", averaged weights" if best.weights == "ema" else ""
    resumed = "" if fitted.resumed_step is None else f", resumed from step {fitted.resumed_step}"
    summary = (
        f"{config.mode}, epoch {best.epoch} of {config.epochs}{stopped}{averaged}; "
        f"VAL_SELECT MCC {best.mcc:.3f}; {rate:.0f} img/s{resumed}{'' if adapted is None else ', adapted backbone'}"
    )
    metrics: Metrics = {
        **fitted.best_row,
        "chosen_weights": best.weights,
        "one_class_only": int(best.one_class_only),
        "parameters_trained": n_trainable,
        "images_per_second": rate,
        "merge_error": merge_error,
        "adapted_backbone_sha256": None if adapted is None else sha256_file(adapted),
    }
    outputs = [schema.phase1_ranked_checkpoint(rank) for rank in range(2, len(fitted.checkpoints) + 1)]
    if context.settings(AugmentationConfig).gate.epochs > 0:
        outputs.append(schema.augmentation_gate_json)
    return Outcome(summary, metrics, extra_outputs=tuple(outputs))


def run_worker(context: Context) -> None:
    """Take part in the training of rank 0, which does everything else."""
    config = context.settings(TrainingConfig)
    assert isinstance(config, FinetuningConfig)
    seed_all(config.seed)
    classifier = initial_classifier(context)
    prepare(classifier, config)
    policy, options = context.settings(AugmentationConfig), _trainer_options(context)
    seed_all(config.seed)
    fit_images(classifier, context, config=config, policy=policy, options=options)


def _fit_head(classifier: Classifier, config: TrainingConfig, context: Context, loggers: Sequence[Logger]) -> Fit:
    """Fit the head on cached features of the frozen backbone."""
    train, select = (cached_features(context, classifier, split) for split in (Split.TRAIN, Split.VAL_SELECT))
    names = [row.path for row in context.rows(Split.TRAIN)]
    return fit(
        classifier.head,
        FeatureBatches(
            *train,
            batch_size=config.effective_batch_size,
            micro_batches=config.micro_batches,
            seed=config.seed,
            names=names,
        ),
        FeatureBatches(*select, batch_size=SELECT_BATCH),
        config=config,
        options=TrainerOptions(context.progress, loggers),
    )


def _finetune(classifier: Classifier, config: FinetuningConfig, context: Context, loggers: Sequence[Logger]) -> Fit:
    """Train on augmented images, with all ranks."""
    hardware = context.settings(HardwareConfig)
    if hardware.compile == "auto" and uses_compiler(hardware):
        context.progress.auto_setting("hardware.compile=true", "there is a GPU")
    elif hardware.compile == "auto":
        context.progress.auto_setting("hardware.compile=false", "no GPU: compiling costs more than it saves")
    options = _trainer_options(context, loggers)
    policy = accepted_augmentation(context)
    seed_all(config.seed)  # the gate draws from the generators
    broadcast(context.phase)
    return fit_images(classifier, context, config=config, policy=policy, options=options)


def _trainer_options(context: Context, loggers: Sequence[Logger] = ()) -> TrainerOptions:
    return TrainerOptions(
        context.progress,
        loggers,
        checkpoint=context.schema.phase1_training_checkpoint,
        resume_key=resume_key(context, adapted_checkpoint_inputs(context)),
    )


def _save(fitted: Fit, classifier: Classifier, context: Context) -> float | None:
    """Write the checkpoints with adapters merged, and the metrics; return the largest merge error of a logit."""
    schema, config = context.schema, context.settings(TrainingConfig)
    images = merge_check_images(classifier, context) if config.mode == "peft" else None
    states = {schema.phase1_last_checkpoint: fitted.last, schema.phase1_checkpoint: fitted.best}
    for rank, checkpoint in enumerate(fitted.checkpoints[1:], start=2):
        states[schema.phase1_ranked_checkpoint(rank)] = checkpoint.state
    errors = []
    for path, trained in states.items():
        prefix = "head." if config.mode == "frozen" else ""  # a frozen backbone trains the head on its own
        named = {f"{prefix}{name}": value for name, value in trained.items()}
        state, error = merged_state_dict(classifier, named, images)
        save_tensors(path, state)
        if error is not None:
            errors.append(error)
    write_json_atomic(schema.model_config_json, classifier.description.model_dump(mode="json"))
    write_text_atomic(schema.phase1_metrics_csv, metrics_csv(fitted.history))
    write_bytes_atomic(schema.learning_curve_plot, learning_curve(fitted.history, selected=fitted.best_epoch))
    return max(errors, default=None)
