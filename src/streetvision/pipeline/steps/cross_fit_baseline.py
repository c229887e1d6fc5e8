"""phase1 under cross_fit: the model of each fold scores the images of this fold, which it did not see; one model ships.

What ships is the mean of the folds' heads on the frozen backbone, or one more model, trained on the images of all
folds. The scores of heads and fine-tuned models are compared image by image. Pooling and layers are chosen once, by the
heads, so that all folds read the same features.

A training with gradients has all its epochs, on all images outside the fold: with few images, more of them in TRAIN
are worth more than a choice of the epoch on the rest, and the models of the folds are trained like the one that ships.
"""

import copy
import time
from collections import Counter
from collections.abc import Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from streetvision.contracts.errors import ArtifactError, ConfigError, DataError
from streetvision.contracts.phase import Context, Metrics, Outcome
from streetvision.contracts.policies import Artifact, Digest, Gate
from streetvision.contracts.settings import no_effect
from streetvision.contracts.split_contracts import Split
from streetvision.data.config import PLAIN, AugmentationConfig
from streetvision.eval.counts import confusion_counts
from streetvision.eval.metrics import mcc, nll, positive_probability
from streetvision.eval.report.training_plots import learning_curve
from streetvision.io.atomic import sha256_file, sha256_json, write_bytes_atomic, write_json_atomic, write_text_atomic
from streetvision.io.tensors import save_tensors
from streetvision.io.validators import validate_json
from streetvision.models.adapters import merged_state_dict
from streetvision.models.config import ModelConfig
from streetvision.models.module import Classifier
from streetvision.pipeline.artifacts import SCORES, adapted_backbone, adapted_checkpoint_inputs, starts_adapted
from streetvision.pipeline.augmentation_gate import accepted_augmentation
from streetvision.pipeline.budget import Work, affordable_epochs, affordable_size, enough_epochs
from streetvision.pipeline.classifier_training import described_probe, fit_head, trainer_options, within_budget
from streetvision.pipeline.fold_models import save_fold_heads, save_out_of_fold
from streetvision.pipeline.gates import LEVEL_OF_FINE_TUNING, calibrated_predictions, decide
from streetvision.pipeline.image_training import fit_images
from streetvision.pipeline.initialization import resume_key
from streetvision.pipeline.probe_head import fit_probe_head, two_logits
from streetvision.pipeline.scores import cached_features, make_scores, open_scores, rows_of_folds
from streetvision.pipeline.training_outputs import merge_check_images, metrics_csv
from streetvision.training.callbacks import State, cpu_state_dict
from streetvision.training.config import AutoConfig, FinetuningConfig, TrainingConfig, is_solvable
from streetvision.training.distributed import rank_and_world_size
from streetvision.training.finetune_modes import prepare
from streetvision.training.lightning_module import EpochRow
from streetvision.training.loggers import log_row, open_loggers
from streetvision.training.probe import Representation
from streetvision.training.supervised import Weights
from streetvision.training.trainer import seed_all

FEWEST_TRAINED_FOLDS = 2
"""Folds in which a fine-tuned model is trained at least."""


class FoldRecord(Artifact):
    """The training in one fold."""

    key: Digest
    """Digest of everything that affects the result."""
    model_sha256: Digest
    """Digest of the checkpoint."""
    augmented: bool
    """Whether the gate of the augmentation accepted it."""
    history: list[EpochRow]


def run_cross_fit(context: Context, classifier: Classifier, started: float) -> Outcome:
    """Train in each fold, save the scores of all rows, and save the model that ships.

    Args:
        context: Context of phase 1, outside the folds.
        classifier: With a new head.
        started: Time at which the phase started.
    """
    if rank_and_world_size()[1] > 1:
        raise ConfigError(
            "data.protocol=cross_fit trains in one process", "set data.protocol=split to train with several"
        )
    schema, config = context.schema, context.settings(TrainingConfig)
    ignored = {
        "early_stopping_patience": config.early_stopping_patience is not None,
        "save_top_k": config.save_top_k > 1,
    }
    for name in (name for name, is_set in ignored.items() if is_set):
        raise no_effect(f"training.{name}", "data.protocol=cross_fit trains all epochs", "set data.protocol=split")
    rows = context.rows(Split.TRAIN)
    initial, probe, representation = classifier, None, None
    if is_solvable(context.settings(ModelConfig).head, config.loss):
        probe = fit_probe_head(classifier, context)
        classifier, representation = probe.classifier, probe.probe.chosen.representation
    n_folds = context.n_folds
    if isinstance(config, AutoConfig):
        config, n_folds, initial = _within_budget(initial, config, context)
    in_folds = torch.tensor(context.fold_of_evaluated_rows) < n_folds
    # The evaluated rows of the folds in which a fine-tuned model is trained.
    compared = rows_of_folds(context, Split.TRAIN, n_folds)

    logits, tuned_ships, merge_error = None, False, None
    gate: Gate | None = None
    schema.finetuning_gate_json.unlink(missing_ok=True)
    records: list[FoldRecord] = []
    if probe is not None:
        assert probe.probe.out_of_fold is not None
        logits = two_logits(probe.probe.out_of_fold)[torch.tensor([not row.train_only for row in rows])]
    if probe is None or config.mode != "frozen":
        tuned, records = _train_folds(context, initial, representation, config, n_folds)
        if logits is not None:
            assert isinstance(config, FinetuningConfig)
            compares = config.gate != "off"
            gate = decide(
                config.gate,
                calibrated_predictions(tuned, compared, seed=config.seed) if compares else None,
                calibrated_predictions(logits[in_folds], compared, seed=config.seed) if compares else None,
                stage="fine-tuning",
                level=LEVEL_OF_FINE_TUNING,
                section="training",
                path=schema.finetuning_gate_json,
                progress=context.progress,
                share=1.0,
            )
        if gate is None or gate.ships:
            logits, tuned_ships = tuned, True
    assert logits is not None
    scored = compared if tuned_ships else rows_of_folds(context, Split.TRAIN, context.n_folds)
    labels, p = np.array([row.label for row in scored]), positive_probability(logits.numpy())
    summary_row: EpochRow = {
        "val_select_mcc": float(mcc(confusion_counts(labels, p > 0.5))),
        "val_select_nll": nll(labels, p),
        "val_select_positive_rate": float((p > 0.5).mean()),
    }

    if not tuned_ships:
        assert probe is not None
        state = cpu_state_dict(probe.classifier)
        save_tensors(schema.phase1_checkpoint, state)
        save_fold_heads(schema.fold_heads, probe.probe)
        what = described_probe(probe)
        if gate is not None:
            what = f"{config.mode}: fine-tuning is left out ({gate.reason}); {what}"
        history, selected = [], 1
    else:
        if initial.backbone.spec.image_size != classifier.backbone.spec.image_size:
            classifier = _with_solved_head(initial, representation, context)
        augmented = Counter(record.augmented for record in records).most_common(1)[0][0]
        policy = context.settings(AugmentationConfig) if augmented else PLAIN
        state, merge_error, _ = _train_all_epochs(context, classifier, config, policy, out_of_fold=summary_row)
        save_tensors(schema.phase1_checkpoint, state)
        schema.fold_heads.unlink(missing_ok=True)
        history, selected = _mean_history(records), config.max_epochs
        reason = "" if gate is None else f" ({gate.reason})"
        what = f"{config.mode}, {config.max_epochs} epochs, trained again on all folds{reason}"
    save_tensors(schema.phase1_last_checkpoint, state)
    write_json_atomic(schema.model_config_json, classifier.description.model_dump(mode="json"))

    if not history:
        assert probe is not None
        history = [{"epoch": 1, "train_loss": probe.train_loss, **summary_row}]
        context.progress.epoch(history[0])
        with open_loggers(schema.phase1_logs_dir, config) as loggers:
            log_row(loggers, history[0])
    write_text_atomic(schema.phase1_metrics_csv, metrics_csv(history))
    write_bytes_atomic(schema.learning_curve_plot, learning_curve(history, selected=selected))
    outputs = [schema.probe_json] if probe is not None else []
    if gate is not None:
        outputs.append(schema.finetuning_gate_json)
    if schema.fold_heads.is_file():
        outputs.append(schema.fold_heads)
    outputs += [fold.schema.phase1_checkpoint for fold, _ in zip(context.folds(), records, strict=False)]

    save_out_of_fold(context, logits, SCORES, classifier, n_folds=n_folds if tuned_ships else context.n_folds)
    one_class_only = probe is None and summary_row["val_select_positive_rate"] in (0.0, 1.0)
    if one_class_only:
        context.progress.warn("the model predicts the same class for every image: do not use it")
    adapted = adapted_backbone(context)
    seconds = time.perf_counter() - started
    metrics: Metrics = {
        **summary_row,
        "folds": n_folds if tuned_ships else context.n_folds,
        "one_class_only": int(one_class_only),
        "adapted_backbone_sha256": None if adapted is None else sha256_file(adapted),
        "shipped_val_select_mcc": summary_row["val_select_mcc"],
        "finetuned_share": None if gate is None else gate.share,
        **({} if gate is None else gate.metrics),
        "merge_error": merge_error,
        "images_per_second": len(rows) / seconds,
    }
    adapted_start = ", adapted backbone" if starts_adapted(context) else ""
    return Outcome(
        f"{what}; out-of-fold MCC {summary_row['val_select_mcc']:.3f} at 0.5{adapted_start}",
        metrics,
        extra_outputs=tuple(outputs),
    )


def _within_budget(initial: Classifier, config: AutoConfig, context: Context) -> tuple[TrainingConfig, int, Classifier]:
    """The settings with as many epochs as the budget allows, the number of folds to train in, and the classifier.

    If the budget is short, epochs are left out, up to half of them and down to FEWEST_EPOCHS, then folds, down to
    FEWEST_TRAINED_FOLDS, then patches of an image, then epochs again.
    """
    counts = range(context.n_folds, FEWEST_TRAINED_FOLDS - 1, -1)
    size, enough = initial.backbone.spec.image_size, enough_epochs(context, config)
    initial, epochs, minutes = affordable_size(
        initial, context, config, lambda is_new: _work(context, FEWEST_TRAINED_FOLDS, is_new_size=is_new)
    )
    is_new_size = initial.backbone.spec.image_size != size
    names = {count: f"fine-tuning in {count} of {context.n_folds} folds and once on all images" for count in counts}
    if epochs < enough:
        count = FEWEST_TRAINED_FOLDS if epochs else context.n_folds
        return within_budget(config, context, epochs, minutes, what=names[FEWEST_TRAINED_FOLDS]), count, initial
    for count in counts:
        work = _work(context, count, is_new_size=is_new_size)
        epochs, minutes = affordable_epochs(initial, context, config, work)
        if epochs >= enough:
            break
    return within_budget(config, context, epochs, minutes, what=names[count]), count, initial


def _work(context: Context, count: int, *, is_new_size: bool = False) -> Work:
    """The images of a fine-tuning in the first `count` folds and on the images of all folds.

    With a new size of the input, the features of the first heads are computed again.
    """
    n_images, folds = len(context.rows(Split.TRAIN)), list(islice(context.folds(select=False), count))
    trained, scored = (sum(len(fold.rows(split)) for fold in folds) for split in (Split.TRAIN, Split.VAL_CALIB))
    return Work(trained + n_images, evaluated=scored + is_new_size * n_images)


def _train_folds(
    context: Context,
    initial: Classifier,
    representation: Representation | None,
    config: TrainingConfig,
    n_folds: int,
) -> tuple[Tensor, list[FoldRecord]]:
    """Train in each of the first folds; return the logits (M, 2) of their evaluated rows, by the model of the fold.

    Finished folds are not trained again. `initial` has a new head: no label of any fold is in it. Heads that are solved
    read `representation`.
    """
    fold_of_rows = torch.tensor([fold for fold in context.fold_of_evaluated_rows if fold < n_folds])
    logits, records = torch.empty(len(fold_of_rows), 2), []
    for fold in islice(context.folds(select=False), n_folds):
        path = fold.schema.fold_json
        size = initial.backbone.spec.image_size
        key = sha256_json([resume_key(fold, adapted_checkpoint_inputs(fold)), fold.fold, config.max_epochs, size])
        record = _finished(fold, key)
        if record is None:
            path.unlink(missing_ok=True)
            policy = PLAIN
            if isinstance(config, FinetuningConfig):
                policy = _accepted_augmentation(context, fold, initial, representation, config)
            start = _with_solved_head(initial, representation, fold)
            state, _, history = _train_all_epochs(fold, start, config, policy)
            save_tensors(fold.schema.phase1_checkpoint, state)
            write_json_atomic(fold.schema.model_config_json, start.description.model_dump(mode="json"))
            make_scores(fold, fold.schema.phase1_checkpoint, SCORES)
            digest = sha256_file(fold.schema.phase1_checkpoint)
            record = FoldRecord(key=key, model_sha256=digest, augmented=policy != PLAIN, history=list(history))
            write_json_atomic(path, record.model_dump(mode="json"))
        assert fold.fold is not None
        logits[fold_of_rows == fold.fold] = open_scores(fold, Split.VAL_CALIB).logits
        records.append(record)
    return logits, records


def _finished(fold: Context, key: str) -> FoldRecord | None:
    """The record of a fold, if it was trained with these settings and data and its checkpoint is unchanged."""
    checkpoint = fold.schema.phase1_checkpoint
    try:
        record = validate_json(fold.schema.fold_json, FoldRecord)
    except ArtifactError:  # none, or one of another version
        return None
    unchanged = record.key == key and checkpoint.is_file() and sha256_file(checkpoint) == record.model_sha256
    return record if unchanged else None


def _accepted_augmentation(
    context: Context,
    fold: Context,
    initial: Classifier,
    representation: Representation | None,
    config: FinetuningConfig,
) -> AugmentationConfig:
    """The augmentation of a fold; its gate compares on images that are in TRAIN afterwards."""
    policy = context.settings(AugmentationConfig)
    if policy.gate == "off":
        return policy
    with_select = next(islice(context.folds(), fold.fold, None))
    try:
        start = _with_solved_head(initial, representation, with_select)
    except DataError as error:  # of three folds, one is TRAIN
        return accepted_augmentation(with_select, initial, config, problem=error.message)
    seed_all(config.seed)  # adapters are drawn
    prepare(start, config)
    return accepted_augmentation(with_select, start, config)


def _with_solved_head(initial: Classifier, representation: Representation | None, context: Context) -> Classifier:
    """A copy with a head on `representation` that was solved on TRAIN; None: the head and the loss have no solution."""
    classifier = copy.deepcopy(initial)
    if representation is None:
        return classifier
    return fit_probe_head(classifier, context, representation=representation).classifier


def _train_all_epochs(
    context: Context,
    classifier: Classifier,
    config: TrainingConfig,
    policy: AugmentationConfig,
    *,
    out_of_fold: EpochRow | None = None,
) -> tuple[State, float | None, tuple[EpochRow, ...]]:
    """Train on TRAIN; return the state after the last epoch, the largest merge error of a logit, and the history.

    The loggers receive the metrics of each epoch, and `out_of_fold` with the last one.
    """
    seed_all(config.seed)  # adapters are drawn
    prepare(classifier, config)
    seed_all(config.seed)
    weights: Weights = "raw" if config.ema_decay is None else "ema"
    with open_loggers(context.schema.phase1_logs_dir, config) as loggers:
        if isinstance(config, FinetuningConfig):
            fitted = fit_images(
                classifier,
                context,
                config=config,
                policy=policy,
                options=trainer_options(context, config, classifier, loggers),
                stop_after=config.max_epochs,
                weights=weights,
            )
        else:
            train = cached_features(context, classifier, Split.TRAIN)
            fitted = fit_head(
                classifier, config, context, loggers, train, stop_after=config.max_epochs, weights=weights
            )
        if out_of_fold is not None:
            log_row(loggers, {"epoch": config.max_epochs, **out_of_fold})
    context.schema.phase1_training_checkpoint.unlink(missing_ok=True)
    prefix = "" if isinstance(config, FinetuningConfig) else "head."
    named = {f"{prefix}{name}": value for name, value in fitted.best.items()}
    images = merge_check_images(classifier, context) if config.mode == "peft" else None
    return *merged_state_dict(classifier, named, images), fitted.history


def _mean_history(records: Sequence[FoldRecord]) -> list[EpochRow]:
    """The mean of the folds' metrics, for each epoch that all folds have."""
    epochs = zip(*(record.history for record in records), strict=False)
    return [
        {"epoch": number, **{name: float(np.mean([row[name] for row in rows])) for name in rows[0] if name != "epoch"}}
        for number, rows in enumerate(epochs, start=1)
    ]
