"""phase1: train the classifier on TRAIN, select a checkpoint on VAL_SELECT, and score VAL_CALIB with it."""

import time
from collections.abc import Sequence

from lightning.pytorch.loggers import Logger
from torch import Tensor

from streetvision.contracts.phase import Context, Metrics, Outcome
from streetvision.contracts.split_contracts import Split
from streetvision.data.config import AugmentationConfig
from streetvision.data.datamodule import FeatureBatches
from streetvision.eval.counts import confusion_counts
from streetvision.eval.metrics import mcc as mcc_of_counts
from streetvision.eval.metrics import nll, positive_probability
from streetvision.eval.report.training_plots import learning_curve
from streetvision.io.atomic import sha256_file, write_bytes_atomic, write_json_atomic, write_text_atomic
from streetvision.io.tensors import save_tensors
from streetvision.models.adapters import merged_state_dict
from streetvision.models.config import HardwareConfig, ModelConfig
from streetvision.models.device import uses_compiler
from streetvision.models.module import Classifier
from streetvision.pipeline.artifacts import SCORES, adapted_backbone, adapted_checkpoint_inputs
from streetvision.pipeline.augmentation_gate import accepted_augmentation
from streetvision.pipeline.auto_settings import log_auto_settings, log_image_size
from streetvision.pipeline.budget import FEWEST_EPOCHS, affordable_epochs
from streetvision.pipeline.image_training import fit_images
from streetvision.pipeline.initialization import initial_classifier, resume_key
from streetvision.pipeline.interpolation import Interpolated, pick_share
from streetvision.pipeline.probe_head import ProbeResult, fit_probe_head, open_probe_head
from streetvision.pipeline.scores import cached_features, make_scores
from streetvision.pipeline.training_outputs import merge_check_images, metrics_csv
from streetvision.training.callbacks import Checkpoint, cpu_state_dict
from streetvision.training.config import AutoConfig, FinetuningConfig, FrozenConfig, TrainingConfig, is_solvable
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
    log_image_size(context, classifier)
    probe = None
    if is_solvable(context.settings(ModelConfig).head, config.loss):
        probe = fit_probe_head(classifier, context)
        classifier = probe.classifier
    if isinstance(config, AutoConfig):
        config = _within_budget(classifier, config, context)
    start = cpu_state_dict(classifier)
    n_trainable = prepare(classifier, config)
    with open_loggers(schema.phase1_logs_dir, config) as loggers:
        if isinstance(config, FinetuningConfig):
            fitted = _finetune(classifier, config, context, loggers)
        elif probe is not None:
            fitted = _solved(probe, context)
        else:
            fitted = _fit_head(classifier, config, context, loggers)
    seconds = time.perf_counter() - started

    merge_error, interpolated = _save(fitted, classifier, context, config, None if probe is None else start)
    make_scores(context, classifier.description, schema.phase1_checkpoint, SCORES)
    schema.phase1_training_checkpoint.unlink(missing_ok=True)

    best, n_epochs = fitted.checkpoints[0], len(fitted.history)
    n_images = sum(len(context.rows(split)) for split in (Split.TRAIN, Split.VAL_SELECT))
    rate = n_images * (1 if config.mode == "frozen" else n_epochs) / seconds  # frozen reads each image once
    adapted = adapted_backbone(context)
    mcc = best.mcc
    if interpolated is not None:
        shipped = interpolated.predictions
        mcc = float(mcc_of_counts(confusion_counts(shipped.labels, shipped.decisions)))
    one_class_only = best.one_class_only and probe is None
    if one_class_only:
        context.progress.warn("the model predicts the same class for every image of VAL_SELECT: do not use it")
    what = _described(probe, fitted, config, interpolated)
    resumed = "" if fitted.resumed_step is None else f", resumed from step {fitted.resumed_step}"
    summary = (
        f"{what}; VAL_SELECT MCC {mcc:.3f}; {rate:.0f} img/s{resumed}{'' if adapted is None else ', adapted backbone'}"
    )
    metrics: Metrics = {
        **fitted.best_row,
        "chosen_weights": best.weights,
        "one_class_only": int(one_class_only),
        "parameters_trained": n_trainable,
        "images_per_second": rate,
        "merge_error": merge_error,
        "adapted_backbone_sha256": None if adapted is None else sha256_file(adapted),
        "shipped_val_select_mcc": mcc,
        "finetuned_share": None if interpolated is None else interpolated.share,
    }
    outputs = [schema.phase1_ranked_checkpoint(rank) for rank in range(2, len(fitted.checkpoints) + 1)]
    if isinstance(config, FinetuningConfig) and context.settings(AugmentationConfig).gate.epochs > 0:
        outputs.append(schema.augmentation_gate_json)
    outputs += [schema.probe_json] if probe is not None else []
    outputs += [schema.finetuning_gate_json] if interpolated is not None else []
    return Outcome(summary, metrics, extra_outputs=tuple(outputs))


def run_worker(context: Context) -> None:
    """Take part in the training of rank 0, which does everything else."""
    config = context.settings(TrainingConfig)
    assert isinstance(config, FinetuningConfig)
    seed_all(config.seed)
    classifier = initial_classifier(context)
    if is_solvable(context.settings(ModelConfig).head, config.loss):
        classifier = open_probe_head(classifier, context)
    prepare(classifier, config)
    policy, options = context.settings(AugmentationConfig), _trainer_options(context)
    seed_all(config.seed)
    fit_images(classifier, context, config=config, policy=policy, options=options)


def _described(
    probe: ProbeResult | None, fitted: Fit, config: TrainingConfig, interpolated: Interpolated | None
) -> str:
    """What ships, in words."""
    best, stopped = fitted.checkpoints[0], ""
    if probe is not None and (config.mode == "frozen" or (interpolated is not None and interpolated.share == 0)):
        representation, strength = probe.probe.chosen.representation, probe.probe.chosen.strength
        blocks = "the last block" if representation.layers == 1 else f"the last {representation.layers} blocks"
        what = f"logistic regression on {representation.pooling} of {blocks}, C={strength:.1e}"
        return what if config.mode == "frozen" else f"{config.mode}: fine-tuning is not better and is left out; {what}"
    if len(fitted.history) < config.epochs:
        stopped = f" (stopped after {len(fitted.history)})"
    averaged = ", averaged weights" if best.weights == "ema" else ""
    share = "" if interpolated is None else f", {interpolated.share:.0%} of the change of the weights"
    return f"{config.mode}, epoch {best.epoch} of {config.epochs}{stopped}{averaged}{share}"


def _within_budget(classifier: Classifier, config: AutoConfig, context: Context) -> TrainingConfig:
    """The settings with as many epochs as the budget allows; those of frozen if it does not allow enough."""
    epochs, minutes = affordable_epochs(classifier, context, config)
    budget = f"training.budget_minutes={config.budget_minutes:g}"
    if epochs == 0:
        context.progress.auto_setting(
            "training=frozen", f"{FEWEST_EPOCHS} epochs of fine-tuning would take about {minutes:.0f} min; {budget}"
        )
        shared = set(FrozenConfig.model_fields) - {"mode", "epochs", "batch_size", "learning_rate", "mixed_precision"}
        return FrozenConfig.model_validate(config.model_dump(include=shared & set(type(config).model_fields)))
    context.progress.auto_setting(
        f"training.epochs={epochs}", f"fine-tuning takes about {max(1, round(minutes))} min; {budget}"
    )
    return config.model_copy(update={"epochs": epochs})


def _solved(probe: ProbeResult, context: Context) -> Fit:
    """The probe as the result of a training with one epoch."""
    logits, labels = probe.select_logits, probe.select_labels
    p = positive_probability(logits.numpy())
    counts = confusion_counts(labels.numpy(), p > 0.5)
    mcc, nll_value = float(mcc_of_counts(counts)), nll(labels.numpy(), p)
    positive_rate = float((p > 0.5).mean())
    state = cpu_state_dict(probe.classifier.head)
    row = {
        "epoch": 1,
        "train_loss": probe.train_loss,
        "val_select_mcc": mcc,
        "val_select_nll": nll_value,
        "val_select_positive_rate": positive_rate,
    }
    context.progress.epoch(row)
    checkpoint = Checkpoint(mcc=mcc, nll=nll_value, positive_rate=positive_rate, epoch=1, weights="raw", state=state)
    return Fit(checkpoints=(checkpoint,), last=state, history=(row,), resumed_step=None)


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
    policy = accepted_augmentation(context, classifier, config)
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


def _save(
    fitted: Fit,
    classifier: Classifier,
    context: Context,
    config: TrainingConfig,
    start: dict[str, Tensor] | None,
) -> tuple[float | None, Interpolated | None]:
    """Write the checkpoints with adapters merged, and the metrics.

    Args:
        fitted: The training.
        classifier: The classifier that was trained.
        context: Of phase 1.
        config: Settings of the training.
        start: State dict of the probe; the best fine-tuned weights are interpolated with it. None: there is no probe.

    Returns:
        The largest merge error of a logit, and the interpolation.
    """
    schema = context.schema
    images = merge_check_images(classifier, context) if config.mode == "peft" else None
    trained = {schema.phase1_last_checkpoint: fitted.last, schema.phase1_checkpoint: fitted.best}
    for rank, checkpoint in enumerate(fitted.checkpoints[1:], start=2):
        trained[schema.phase1_ranked_checkpoint(rank)] = checkpoint.state
    errors, interpolated = [], None
    for path, tensors in trained.items():
        prefix = "head." if config.mode == "frozen" else ""  # a frozen backbone trains the head on its own
        named = {f"{prefix}{name}": value for name, value in tensors.items()}
        state, error = merged_state_dict(classifier, named, images)
        if path == schema.phase1_checkpoint and start is not None and config.mode != "frozen":
            gated = config.mode == "auto"
            interpolated = pick_share(state, start, context, classifier.description, gated=gated)
            state = interpolated.state
        save_tensors(path, state)
        if error is not None:
            errors.append(error)
    write_json_atomic(schema.model_config_json, classifier.description.model_dump(mode="json"))
    write_text_atomic(schema.phase1_metrics_csv, metrics_csv(fitted.history))
    write_bytes_atomic(schema.learning_curve_plot, learning_curve(fitted.history, selected=fitted.best_epoch))
    return max(errors, default=None), interpolated
