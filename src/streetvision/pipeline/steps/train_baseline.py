"""phase1: train the classifier on TRAIN, select a checkpoint on VAL_SELECT, and score VAL_CALIB with it."""

import time

from streetvision.contracts.phase import Context, Metrics, Outcome
from streetvision.contracts.split_contracts import Split
from streetvision.data.config import AugmentationConfig
from streetvision.eval.counts import confusion_counts
from streetvision.eval.metrics import mcc as mcc_of_counts
from streetvision.io.atomic import sha256_file
from streetvision.models.config import ModelConfig
from streetvision.pipeline.artifacts import SCORES, adapted_backbone, starts_adapted
from streetvision.pipeline.auto_settings import log_auto_settings, log_image_size
from streetvision.pipeline.classifier_training import Trained, described_probe, train, trainer_options
from streetvision.pipeline.image_training import fit_images
from streetvision.pipeline.initialization import initial_classifier
from streetvision.pipeline.probe_head import open_probe_head
from streetvision.pipeline.scores import make_scores
from streetvision.pipeline.steps.cross_fit_baseline import run_cross_fit
from streetvision.training.config import FinetuningConfig, TrainingConfig, is_solvable
from streetvision.training.finetune_modes import prepare
from streetvision.training.trainer import seed_all


def run(context: Context) -> Outcome:
    """Train, save the checkpoints, and score VAL_CALIB with the saved one, which is the model that is exported."""
    schema, config, started = context.schema, context.settings(TrainingConfig), time.perf_counter()
    log_auto_settings(context, config, section="training")
    seed_all(config.seed)
    classifier = initial_classifier(context)
    log_image_size(context, classifier)
    if context.n_folds > 0:
        return run_cross_fit(context, classifier, started)
    trained = train(context, config, classifier)
    fitted, probe, interpolated = trained.fitted, trained.probe, trained.interpolated
    seconds = time.perf_counter() - started
    make_scores(context, schema.phase1_checkpoint, SCORES)
    schema.phase1_training_checkpoint.unlink(missing_ok=True)
    schema.fold_heads.unlink(missing_ok=True)  # of an earlier run under cross_fit

    best, n_epochs = fitted.checkpoints[0], len(fitted.history)
    n_images = sum(len(context.rows(split)) for split in (Split.TRAIN, Split.VAL_SELECT))
    rate = n_images * (1 if trained.config.mode == "frozen" else n_epochs) / seconds  # frozen reads each image once
    adapted = adapted_backbone(context)
    mcc = best.mcc
    if interpolated is not None and interpolated.predictions is not None:
        shipped = interpolated.predictions
        mcc = float(mcc_of_counts(confusion_counts(shipped.labels, shipped.decisions)))
    one_class_only = best.one_class_only and probe is None
    if one_class_only:
        context.progress.warn("the model predicts the same class for every image of VAL_SELECT: do not use it")
    resumed = "" if fitted.resumed_step is None else f", resumed from step {fitted.resumed_step}"
    summary = (
        f"{_described(trained)}; VAL_SELECT MCC {mcc:.3f}; {rate:.0f} img/s{resumed}"
        f"{', adapted backbone' if starts_adapted(context) else ''}"
    )
    metrics: Metrics = {
        **fitted.best_row,
        "chosen_weights": best.weights,
        "one_class_only": int(one_class_only),
        "parameters_trained": trained.n_trainable,
        "images_per_second": rate,
        "merge_error": trained.merge_error,
        "adapted_backbone_sha256": None if adapted is None else sha256_file(adapted),
        "shipped_val_select_mcc": mcc,
        "finetuned_share": None if interpolated is None else interpolated.share,
        **({} if interpolated is None else interpolated.gate.metrics),
    }
    outputs = [schema.phase1_ranked_checkpoint(rank) for rank in range(2, len(fitted.checkpoints) + 1)]
    if trained.policy is not None and context.settings(AugmentationConfig).gate != "off":
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
    policy, options = context.settings(AugmentationConfig), trainer_options(context, config, classifier)
    seed_all(config.seed)
    fit_images(classifier, context, config=config, policy=policy, options=options)


def _described(trained: Trained) -> str:
    """What ships, in words."""
    config, fitted, interpolated = trained.config, trained.fitted, trained.interpolated
    best, stopped = fitted.checkpoints[0], ""
    if trained.probe is not None and (
        config.mode == "frozen" or (interpolated is not None and interpolated.share == 0)
    ):
        what = described_probe(trained.probe)
        if interpolated is None:
            return what
        return f"{config.mode}: fine-tuning is left out ({interpolated.gate.reason}); {what}"
    if len(fitted.history) < config.max_epochs:
        stopped = f" (stopped after {len(fitted.history)})"
    averaged = ", averaged weights" if best.weights == "ema" else ""
    share = ""
    if interpolated is not None:
        share = f", {interpolated.share:.0%} of the change of the weights ({interpolated.gate.reason})"
    return f"{config.mode}, epoch {best.epoch} of {config.max_epochs}{stopped}{averaged}{share}"
