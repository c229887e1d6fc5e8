"""phase1: fit the classifier on TRAIN, choose an epoch on VAL_SELECT, score VAL_CALIB with what was chosen."""

import csv
import io
import time

from torch import Tensor

from streetvision.contracts.phase import Context, Outcome, Phase
from streetvision.contracts.split_contracts import Split
from streetvision.data.augmentation import AugmentationConfig, get_train_transforms
from streetvision.data.datamodule import FeatureBatches, ImageDataset, ImageLoader, LoaderConfig
from streetvision.io.atomic import sha256_file, sha256_json, write_json_atomic, write_text_atomic
from streetvision.io.scores import save_scores
from streetvision.io.tensors import load_into, load_state, save_tensors
from streetvision.models.backbone import local_files
from streetvision.models.module import Classifier, ModelConfig, build_classifier, load_classifier
from streetvision.training.config import TrainingConfig
from streetvision.training.features import FeatureCache
from streetvision.training.predict import evaluation_loader, score_rows
from streetvision.training.trainer import EpochRow, Fit, cpu_state, fit, seed_all


def run(context: Context) -> Outcome:
    """Fit, choose, save; then load what was saved and score VAL_CALIB with it, so that it is what ships."""
    training, started = context.settings(TrainingConfig), time.perf_counter()
    seed_all(training.seed)
    classifier = load_classifier(context.settings(ModelConfig))
    fitted = {"frozen": _fit_head, "full": _fit_everything}[training.mode](classifier, context)
    seconds = time.perf_counter() - started
    _save(fitted, classifier, context)
    _score_chosen(classifier, context)
    best = fitted.best_row
    passes = training.epochs if training.mode == "full" else 1
    images = passes * sum(len(context.rows(split)) for split in (Split.TRAIN, Split.VAL_SELECT))
    return Outcome(
        f"{training.mode}, epoch {fitted.best_epoch} of {training.epochs} chosen, "
        f"VAL_SELECT MCC {best['val_select_mcc']:.3f}, {images / seconds:.0f} img/s",
        {**best, "images_per_second": images / seconds},
    )


def _fit_head(classifier: Classifier, context: Context) -> Fit:
    """The frozen mode: features once, then epochs of the head alone."""
    config, schema = context.settings(TrainingConfig), context.schema
    cache = FeatureCache(schema.features, classifier, loader=context.settings(LoaderConfig), progress=context.progress)
    train, select = (
        cache.features(context.rows(split), root=context.data_root, name=split.value)
        for split in (Split.TRAIN, Split.VAL_SELECT)
    )
    head = fit(
        classifier.head,
        FeatureBatches(*train, batch_size=config.batch_size, seed=config.seed),
        FeatureBatches(*select, batch_size=4096),
        config=config,
        progress=context.progress,
    )
    return Fit(
        best=_with_head(classifier, head.best),
        last=_with_head(classifier, head.last),
        history=head.history,
        best_epoch=head.best_epoch,
    )


def _fit_everything(classifier: Classifier, context: Context) -> Fit:
    """The full mode: augmented images through every layer."""
    config, loader = context.settings(TrainingConfig), context.settings(LoaderConfig)
    transform = get_train_transforms(context.settings(AugmentationConfig), image_size=classifier.description.image_size)
    dataset = ImageDataset(
        context.rows(Split.TRAIN),
        root=context.data_root,
        transform=transform,
        limits=loader.limits,
        seed=config.seed,
    )
    batches = ImageLoader(dataset, batch_size=config.batch_size, workers=loader.worker_count, shuffle=True)
    select = evaluation_loader(classifier, context.rows(Split.VAL_SELECT), root=context.data_root, loader=loader)
    return fit(classifier, batches, select, config=config, progress=context.progress)


def _with_head(classifier: Classifier, head: dict[str, Tensor]) -> dict[str, Tensor]:
    whole = cpu_state(classifier)
    return {**whole, **{f"head.{name}": value for name, value in head.items()}}


def _save(fitted: Fit, classifier: Classifier, context: Context) -> None:
    schema = context.schema
    save_tensors(schema.model_best, fitted.best)
    save_tensors(schema.model_last, fitted.last)
    write_json_atomic(schema.model_config, classifier.description.model_dump(mode="json"))
    write_text_atomic(schema.train_metrics, as_csv(fitted.history))


def _score_chosen(classifier: Classifier, context: Context) -> None:
    """Score VAL_CALIB with the checkpoint as it lies on disk, in a classifier built from its description."""
    schema = context.schema
    chosen = build_classifier(classifier.description)
    load_into(chosen, load_state(schema.model_best), source=str(schema.model_best))
    scores = score_rows(
        chosen,
        context.rows(Split.VAL_CALIB),
        root=context.data_root,
        split=Split.VAL_CALIB,
        model_sha256=sha256_file(schema.model_best),
        loader=context.settings(LoaderConfig),
        progress=context.progress,
    )
    save_scores(scores, logits=schema.val_calib_logits, labels=schema.val_calib_labels, record=schema.val_calib_scores)


def as_csv(history: tuple[EpochRow, ...]) -> str:
    """One row an epoch, under a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def _weights(context: Context) -> str:
    """Digest of the weight files that the backbone comes from."""
    files = local_files(context.settings(ModelConfig).backbone)
    return sha256_json({path.name: sha256_file(path) for path in files})


PHASE = Phase(
    id="phase1",
    title="train",
    config=(ModelConfig, TrainingConfig, AugmentationConfig, LoaderConfig),
    needs=("splits",),
    makes=(
        "model_best",
        "model_last",
        "model_config",
        "train_metrics",
        "val_calib_logits",
        "val_calib_labels",
        "val_calib_scores",
    ),
    run=run,
    external=_weights,
)
