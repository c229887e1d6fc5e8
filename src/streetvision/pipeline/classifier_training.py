"""The training of a classifier on one set of splits: probe, fine-tuning, and the choice between them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from lightning.pytorch.loggers import Logger
from torch import Tensor

from streetvision.contracts.phase import Context
from streetvision.contracts.split_contracts import Split
from streetvision.data.config import AugmentationConfig
from streetvision.data.datamodule import FeatureBatches
from streetvision.eval.counts import confusion_counts
from streetvision.eval.metrics import mcc as mcc_of_counts
from streetvision.eval.metrics import nll, positive_probability
from streetvision.eval.report.training_plots import learning_curve
from streetvision.io.atomic import sha256_json, write_bytes_atomic, write_json_atomic, write_text_atomic
from streetvision.io.tensors import save_tensors
from streetvision.models.adapters import merged_state_dict
from streetvision.models.config import HardwareConfig, ModelConfig
from streetvision.models.device import uses_compiler
from streetvision.models.module import Classifier
from streetvision.pipeline.artifacts import adapted_checkpoint_inputs
from streetvision.pipeline.augmentation_gate import accepted_augmentation
from streetvision.pipeline.budget import Work, affordable_size
from streetvision.pipeline.image_training import fit_images
from streetvision.pipeline.initialization import resume_key
from streetvision.pipeline.interpolation import SHARES, Interpolated, pick_share
from streetvision.pipeline.probe_head import ProbeResult, fit_probe_head
from streetvision.pipeline.scores import cached_features
from streetvision.pipeline.training_outputs import merge_check_images, metrics_csv
from streetvision.training.callbacks import Checkpoint, cpu_state_dict
from streetvision.training.config import AutoConfig, FinetuningConfig, FrozenConfig, TrainingConfig, is_solvable
from streetvision.training.distributed import broadcast
from streetvision.training.finetune_modes import prepare
from streetvision.training.loggers import log_row, open_loggers
from streetvision.training.supervised import Weights
from streetvision.training.trainer import Fit, TrainerOptions, fit, seed_all

SELECT_BATCH = 4096
"""Rows of cached features; the head is small."""


@dataclass(frozen=True)
class Trained:
    """A classifier that was trained and saved."""

    config: TrainingConfig
    """The settings, with as many epochs as the budget allows."""
    fitted: Fit
    probe: ProbeResult | None
    """The solved head that the training started from, if the head and the loss have one."""
    interpolated: Interpolated | None
    """The choice between the probe and the fine-tuned weights; None if nothing is fine-tuned, or there is no probe."""
    merge_error: float | None
    """Largest change of a logit when the adapters were merged."""
    n_trainable: int
    policy: AugmentationConfig | None
    """The augmentation; None if nothing is fine-tuned."""


@dataclass(frozen=True)
class _Start:
    """What a fine-tuning started from."""

    probe: Classifier
    """The classifier that was fine-tuned, or one with another size of the input."""
    state: dict[str, Tensor]
    """State dict before the fine-tuning, with the size of the fine-tuned classifier."""
    logits_of_probe: Tensor | None
    """(M, 2) of VAL_SELECT; None if nothing is compared."""


def train(context: Context, config: TrainingConfig, classifier: Classifier) -> Trained:
    """Train on TRAIN, select on VAL_SELECT, and save the checkpoints, the description and the metrics.

    Args:
        context: Context of phase 1, under split or in a fold of cross_fit.
        config: Settings of the training.
        classifier: Classifier to train; changed in place.
    """
    probe = None
    if is_solvable(context.settings(ModelConfig).head, config.loss):
        probe = fit_probe_head(classifier, context)
        classifier = probe.classifier
    if isinstance(config, AutoConfig):
        n_train, n_select = (len(context.rows(split)) for split in (Split.TRAIN, Split.VAL_SELECT))
        compared = 0 if probe is None or config.gate == "off" else (len(SHARES) - 1) * n_select
        initial, epochs, minutes = affordable_size(
            classifier, context, config, lambda is_new: Work(n_train, n_select, compared + is_new * n_train)
        )
        config = within_budget(config, context, epochs, minutes)
        if initial is not classifier:
            classifier = initial
            if probe is not None:
                representation = probe.probe.chosen.representation
                classifier = fit_probe_head(initial, context, representation=representation).classifier
    logits_of_probe = None
    if probe is not None and isinstance(config, FinetuningConfig) and config.gate != "off":
        logits_of_probe = probe.logits(context, Split.VAL_SELECT)  # before fine-tuning changes its backbone
    start = cpu_state_dict(classifier)
    n_trainable = prepare(classifier, config)
    policy = None
    with open_loggers(context.schema.phase1_logs_dir, config) as loggers:
        if isinstance(config, FinetuningConfig):
            hardware = context.settings(HardwareConfig)
            if hardware.compile == "auto" and uses_compiler(hardware):
                context.progress.auto_setting("hardware.compile=true", "there is a GPU")
            elif hardware.compile == "auto":
                context.progress.auto_setting("hardware.compile=false", "no GPU: compiling costs more than it saves")
            options = trainer_options(context, config, classifier, loggers)
            policy = accepted_augmentation(context, classifier, config)
            seed_all(config.seed)  # the gate draws from the generators
            broadcast(context.phase)
            fitted = fit_images(classifier, context, config=config, policy=policy, options=options)
        elif probe is not None:
            fitted = _solved(probe, context, loggers)
        else:
            features = cached_features(context, classifier, Split.TRAIN)
            fitted = fit_head(classifier, config, context, loggers, features)
    from_probe = None if probe is None else _Start(probe.classifier, start, logits_of_probe)
    merge_error, interpolated = _save(fitted, classifier, context, config, from_probe)
    return Trained(config, fitted, probe, interpolated, merge_error, n_trainable, policy)


def described_probe(probe: ProbeResult) -> str:
    """Return a probe in words."""
    representation, strength = probe.probe.chosen.representation, probe.probe.chosen.strength
    blocks = "the last block" if representation.layers == 1 else f"the last {representation.layers} blocks"
    return f"logistic regression on {representation.pooling} of {blocks}, C={strength:.1e}"


def within_budget(
    config: AutoConfig, context: Context, epochs: int, minutes: float, *, what: str = "fine-tuning"
) -> TrainingConfig:
    """Return the settings with as many epochs as the budget allows; those of frozen if it does not allow one.

    Args:
        config: Settings with the time budget.
        context: Context of phase 1.
        epochs: The result of `affordable_epochs`, as `minutes`.
        minutes: Duration of these epochs, or of one if there are none; 0: unknown.
        what: Names the training in the message.
    """
    budget = f"training.budget_minutes={config.budget_minutes:g}"
    if epochs == 0:
        estimate = f"an epoch of {what} would take about {minutes:.0f} min; " if minutes else ""
        context.progress.auto_setting("training=frozen", f"{estimate}{budget}")
        shared = set(FrozenConfig.model_fields) - {"mode", "epochs", "batch_size", "learning_rate", "mixed_precision"}
        return FrozenConfig.model_validate(config.model_dump(include=shared & set(type(config).model_fields)))
    context.progress.auto_setting(
        f"training.epochs={epochs}", f"{what} takes about {max(1, round(minutes))} min; {budget}"
    )
    return config.model_copy(update={"epochs": epochs})


def _solved(probe: ProbeResult, context: Context, loggers: Sequence[Logger]) -> Fit:
    """The probe as the result of a training with one epoch."""
    labels = np.array([row.label for row in context.rows(Split.VAL_SELECT)])
    p = positive_probability(probe.logits(context, Split.VAL_SELECT).numpy())
    mcc, nll_value = float(mcc_of_counts(confusion_counts(labels, p > 0.5))), nll(labels, p)
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
    log_row(loggers, row)
    checkpoint = Checkpoint(mcc=mcc, nll=nll_value, positive_rate=positive_rate, epoch=1, weights="raw", state=state)
    return Fit(checkpoints=(checkpoint,), last=state, history=(row,), resumed_step=None)


def fit_head(
    classifier: Classifier,
    config: TrainingConfig,
    context: Context,
    loggers: Sequence[Logger],
    features: tuple[Tensor, Tensor],
    *,
    stop_after: int | None = None,
    weights: Weights = "raw",
) -> Fit:
    """Fit the head on cached features (N, P) and labels (N,) of TRAIN; see `fit` for the other arguments."""
    validation = None
    if stop_after is None:
        select = cached_features(context, classifier, Split.VAL_SELECT)
        validation = FeatureBatches(*select, batch_size=SELECT_BATCH)
    return fit(
        classifier.head,
        FeatureBatches(
            *features,
            batch_size=config.effective_batch_size,
            micro_batches=config.micro_batches,
            seed=config.seed,
            names=[row.path for row in context.rows(Split.TRAIN)],
        ),
        validation,
        config=config,
        options=TrainerOptions(context.progress, loggers),
        stop_after=stop_after,
        weights=weights,
    )


def trainer_options(
    context: Context, config: TrainingConfig, classifier: Classifier, loggers: Sequence[Logger] = ()
) -> TrainerOptions:
    """Return the options of a training of phase 1, which resumes if it was interrupted.

    Epochs and size of the input may follow from the time of a step, so they are a part of the key.
    """
    key = resume_key(context, adapted_checkpoint_inputs(context))
    return TrainerOptions(
        context.progress,
        loggers,
        checkpoint=context.schema.phase1_training_checkpoint,
        resume_key=sha256_json([key, config.max_epochs, classifier.backbone.spec.image_size]),
    )


def _save(
    fitted: Fit,
    classifier: Classifier,
    context: Context,
    config: TrainingConfig,
    start: _Start | None,
) -> tuple[float | None, Interpolated | None]:
    """Write the checkpoints with adapters merged, and the metrics.

    Args:
        fitted: The training.
        classifier: The classifier that was trained.
        context: Context of phase 1.
        config: Settings of the training.
        start: What the best fine-tuned weights are interpolated and compared with. None: there is no probe.

    Returns:
        The largest merge error of a logit, and the interpolation.
    """
    schema = context.schema
    images = merge_check_images(classifier, context) if config.mode == "peft" else None
    trained = {schema.phase1_last_checkpoint: fitted.last, schema.phase1_checkpoint: fitted.best}
    for rank, checkpoint in enumerate(fitted.checkpoints[1:], start=2):
        trained[schema.phase1_ranked_checkpoint(rank)] = checkpoint.state
    errors, interpolated, description = [], None, classifier.description
    for path, tensors in trained.items():
        prefix = "head." if config.mode == "frozen" else ""  # a frozen backbone trains the head on its own
        named = {f"{prefix}{name}": value for name, value in tensors.items()}
        state, error = merged_state_dict(classifier, named, images)
        if path == schema.phase1_checkpoint and start is not None and isinstance(config, FinetuningConfig):
            interpolated = pick_share(state, start.state, context, config, description, start.logits_of_probe)
            state = interpolated.state
        save_tensors(path, state)
        if error is not None:
            errors.append(error)
    if start is not None and interpolated is not None and interpolated.share == 0 and start.probe is not classifier:
        description = start.probe.description
        for path in (schema.phase1_checkpoint, schema.phase1_last_checkpoint):
            save_tensors(path, cpu_state_dict(start.probe))
    write_json_atomic(schema.model_config_json, description.model_dump(mode="json"))
    write_text_atomic(schema.phase1_metrics_csv, metrics_csv(fitted.history))
    write_bytes_atomic(schema.learning_curve_plot, learning_curve(fitted.history, selected=fitted.best_epoch))
    return max(errors, default=None), interpolated
