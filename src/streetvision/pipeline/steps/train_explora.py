"""phase4a_explora: adapt the backbone to the images of TRAIN and to unlabeled images, without labels."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace

from lightning.pytorch.loggers import Logger

from streetvision.contracts.errors import ConfigError
from streetvision.contracts.phase import Context, Outcome
from streetvision.contracts.policies import Gate
from streetvision.contracts.progress import Progress
from streetvision.contracts.split_contracts import Row, Split, every_nth
from streetvision.data.augmentation import Transform, get_val_transforms
from streetvision.data.config import LoaderConfig, PairConfig
from streetvision.data.datamodule import EpochBatchSampler, ImageDataset, ImageLoader
from streetvision.data.sources.unlabeled import UnlabeledImages
from streetvision.data.two_views import GroupPairDataset, TwoViews
from streetvision.eval.report.training_plots import adaptation_curve
from streetvision.io.atomic import write_bytes_atomic, write_json_atomic, write_text_atomic
from streetvision.io.resize import DecodeSize
from streetvision.io.tensors import save_tensors
from streetvision.io.validators import validate_json
from streetvision.models.adapters import merge_adapters
from streetvision.models.config import HardwareConfig, ModelConfig
from streetvision.models.module import Classifier, load_classifier
from streetvision.pipeline.adaptation_gate import shipped_weights
from streetvision.pipeline.adaptation_probe import AdaptationProbe, choose_views
from streetvision.pipeline.artifacts import unlabeled_inputs
from streetvision.pipeline.auto_settings import log_auto_settings
from streetvision.pipeline.image_training import cached_images
from streetvision.pipeline.initialization import resume_key
from streetvision.pipeline.input_size import input_size
from streetvision.pipeline.training_outputs import merge_check_images, metrics_csv
from streetvision.training.callbacks import cpu_state_dict
from streetvision.training.distributed import broadcast, rank_and_world_size, receive
from streetvision.training.loggers import open_loggers
from streetvision.training.ssl.anchor import Anchor
from streetvision.training.ssl.collapse_monitor import CollapseMonitor
from streetvision.training.ssl.config import DIETConfig, ExPLoRAConfig, SwAVConfig
from streetvision.training.ssl.explora import ExPLoRAModule, Student, prepare_backbone
from streetvision.training.ssl.head_training import HeadTraining
from streetvision.training.trainer import TrainerOptions, seed_all, train_module

MAX_KNN_MCC_LOSS = 0.05
"""Largest loss of the neighbors' MCC without a warning."""
MONITORED_IMAGES = 128
"""Largest number of images of VAL_SELECT on which the loss and the spread of the embeddings are measured."""
SWAV_LEARNING_MARGIN = 0.02
"""Nats by which SwAV's loss must be below that of collapse."""


def run(context: Context) -> Outcome:
    """Train, merge the adapters, and save the backbone under its original parameter names."""
    config, schema, started = context.settings(ExPLoRAConfig), context.schema, time.perf_counter()
    log_auto_settings(context, config, section="phase4a")
    classifier = _load(context)
    original = cpu_state_dict(classifier.backbone)
    probe = AdaptationProbe.of(classifier.backbone, context)
    views = choose_views(config.views, probe)
    anchor = probe.anchor() if config.anchor_weight > 0 else None
    broadcast(context.phase)
    broadcast(views)
    rows = _training_rows(context)
    student, n_trainable = _make_student(classifier, context, rows)
    trained = time.perf_counter()
    with open_loggers(schema.explora_logs_dir, config) as loggers:
        monitor, heads, resumed_step = _train(student, context, rows, views, anchor, loggers)
    seconds = time.perf_counter() - trained

    adapters = {name: value for name, value in cpu_state_dict(classifier.backbone).items() if "lora_" in name}
    save_tensors(schema.explora_lora, adapters)
    images = merge_check_images(classifier, context)
    merge_error = merge_adapters(classifier.cpu(), images, settings="phase4a.learning_rate or phase4a.alpha")
    adapted = cpu_state_dict(classifier.backbone)
    compared = time.perf_counter()
    shipped, gate = shipped_weights(probe, original, adapted)
    now = time.perf_counter()
    save_tensors(schema.explora_checkpoint, shipped)
    write_json_atomic(schema.explora_config_json, dict(classifier.backbone.spec.architecture))
    write_text_atomic(schema.explora_metrics_csv, metrics_csv(monitor.history))
    write_bytes_atomic(schema.explora_curve_plot, adaptation_curve(monitor.history, method=config.method))
    schema.explora_training_checkpoint.unlink(missing_ok=True)

    before, after = monitor.history[0], monitor.history[-1]
    if config.gate == "off":
        warn_if_neighbours_got_worse(before["knn_mcc"], after["knn_mcc"], context.progress)
    if isinstance(config, SwAVConfig):
        warn_if_swav_collapsed(after["select_loss"], config.prototypes, context.progress)
    rate = monitor.images / seconds
    resumed = "" if resumed_step is None else f", resumed from step {resumed_step}"
    epochs = f"{config.num_epochs} epoch{'' if config.num_epochs == 1 else 's'}"
    metrics = {name: None if math.isnan(value) else value for name, value in after.items()}  # JSON has no NaN
    return Outcome(
        f"{config.method}, {epochs} on {len(rows)} images; "
        f"VAL_SELECT loss {before['select_loss']:.3f} -> {after['select_loss']:.3f}, "
        f"effective rank {before['effective_rank']:.0f} -> {after['effective_rank']:.0f}; {rate:.0f} img/s{resumed}; "
        f"{_described(gate)}",
        {
            **metrics,
            **gate.metrics,
            "share": gate.share,
            "gate_seconds": now - compared,
            "phase_seconds": now - started,
            "head_passes": len(heads.losses) or None,
            "parameters_trained": n_trainable,
            "images_per_second": rate,
            "merge_error": merge_error,
        },
    )


def run_worker(context: Context) -> None:
    """Take part in the training of rank 0, which does everything else."""
    views = receive()
    assert isinstance(views, PairConfig)
    classifier = _load(context)
    # Rank 0 has computed the features, so they are read from the cache.
    weight = context.settings(ExPLoRAConfig).anchor_weight
    anchor = AdaptationProbe.of(classifier.backbone, context).anchor() if weight > 0 else None
    rows = _training_rows(context)
    _train(_make_student(classifier, context, rows)[0], context, rows, views, anchor)


def _described(gate: Gate) -> str:
    if not gate.ships:
        return f"the original backbone is kept ({gate.reason})"
    return f"{gate.share:.0%} of the adaptation is kept ({gate.reason})"


def warn_if_neighbours_got_worse(before: float, after: float, progress: Progress) -> None:
    """Warn if the nearest neighbors in TRAIN predict the labels worse than before; both values are their MCC."""
    if before - after > MAX_KNN_MCC_LOSS:
        progress.warn(
            f"nearest neighbours in TRAIN predict labels worse than before (MCC {before:.3f} -> {after:.3f}): keep "
            "more of each image in phase4a.views, or leave out phase4a_explora"
        )


def warn_if_swav_collapsed(loss: float, prototypes: int, progress: Progress) -> None:
    """Warn if SwAV's loss on VAL_SELECT is that of equal codes for all images, ln(prototypes)."""
    collapsed_loss = math.log(prototypes)
    if loss > collapsed_loss - SWAV_LEARNING_MARGIN:
        progress.warn(
            f"SwAV collapsed: all images got the same code (loss {loss:.3f}, ln {prototypes} = {collapsed_loss:.3f}); "
            "lower phase4a.epsilon, or raise phase4a.batch_size"
        )


def _load(context: Context) -> Classifier:
    """The classifier with the original backbone."""
    model = context.settings(ModelConfig)
    seed_all(context.settings(ExPLoRAConfig).seed)
    return load_classifier(model, input_size(model, context.rows(Split.TRAIN)))


def _make_student(classifier: Classifier, context: Context, rows: Sequence[Row]) -> tuple[Student, int]:
    """The student, whose adapters are attached to the classifier's backbone, and its number of trainable parameters."""
    config = context.settings(ExPLoRAConfig)
    seed_all(config.seed)
    n_trainable = prepare_backbone(classifier, config)
    student = Student(classifier, classifier.width, config, n_images=len({row.sha256 for row in rows}))
    seed_all(config.seed)  # what follows does not depend on the size of the student
    return student, n_trainable


def _training_rows(context: Context) -> tuple[Row, ...]:
    """TRAIN, and the images of data.unlabeled."""
    rows = context.rows(Split.TRAIN)
    if unlabeled_inputs(context):
        rows += validate_json(context.schema.unlabeled_json, UnlabeledImages).as_rows()
    return rows


def _train(
    student: Student,
    context: Context,
    rows: Sequence[Row],
    views: PairConfig,
    anchor: Anchor | None,
    loggers: Sequence[Logger] = (),
) -> tuple[CollapseMonitor, HeadTraining, int | None]:
    """Train on this rank's share of `rows`; return the callbacks and the step that the training resumed from."""
    config, hardware, loader = (
        context.settings(ExPLoRAConfig),
        context.settings(HardwareConfig),
        context.settings(LoaderConfig),
    )
    if hardware.strategy == "fsdp":  # the contrastive loss needs whole weights
        hardware = hardware.model_copy(update={"strategy": "ddp"})
    # Under cross_fit, the images of all folds are trained on, and those of one fold are also monitored.
    monitored = every_nth(next(context.folds(), context).rows(Split.VAL_SELECT), MONITORED_IMAGES)
    number_rows = with_image_labels if isinstance(config, DIETConfig) else with_group_labels
    train, select = number_rows(rows), number_rows(monitored)
    pair_dataset = ImageDataset
    if views.positives == "same_group":
        if len({row.label for row in train}) == len(train):
            raise ConfigError(
                "phase4a.views.positives=same_group needs groups, and no two images share a group",
                "add a group column to data.root and data.unlabeled, or set phase4a.views.positives=same_image",
            )
        pair_dataset = GroupPairDataset
    probe = every_nth(context.rows(Split.TRAIN), config.knn_probe_size)

    def image_loader(
        loader_rows: Sequence[Row],
        transform: Transform,
        decode_size: DecodeSize,
        dataset: type[ImageDataset] = ImageDataset,
        *,
        training: bool = False,
        rank_of: tuple[int, int] = (0, 1),
    ) -> ImageLoader:
        images = dataset(
            loader_rows,
            root=context.data_root,
            transform=transform,
            limits=loader.limits,
            seed=config.seed,
            cache=cached_images(loader_rows, context) if training else None,
            decode_size=decode_size if description.reduces else None,
        )
        sampler = EpochBatchSampler(
            len(loader_rows),
            batch_size=config.effective_batch_size if training else config.batch_size,
            shuffle=training,
            seed=config.seed,
            micro_batches=config.micro_batches if training else 1,
            rank_and_world_size=rank_of,
        )
        return ImageLoader(images, sampler, workers=loader.worker_count)

    description, ranks = student.classifier.description, rank_and_world_size()
    pairs = TwoViews(views, image_size=description.image_size)
    plain = get_val_transforms(image_size=description.image_size)
    options = TrainerOptions(
        context.progress,
        checkpoint=context.schema.explora_training_checkpoint,
        resume_key=resume_key(context, unlabeled_inputs(context)),
    )
    with (
        image_loader(train, pairs, pairs.decode_size, pair_dataset, training=True, rank_of=ranks) as train_batches,
        image_loader(select, pairs, pairs.decode_size, pair_dataset, rank_of=ranks) as select_batches,
        image_loader(probe, plain, student.classifier.decode_size) as probe_batches,
    ):
        groups = [row.group or row.path for row in probe]
        monitor = CollapseMonitor(
            config, context.progress, select=select_batches, probe=probe_batches, groups=groups, loggers=loggers
        )
        module = ExPLoRAModule(student, config, hardware=hardware, anchor=anchor)
        heads = HeadTraining(config)
        resumed_step = train_module(module, train_batches, None, epoch_logger=monitor, options=options, before=(heads,))
    return monitor, heads, resumed_step


def with_group_labels(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows with the number of their group instead of their label, which is not used here.

    Rows without a group are grouped by content, so duplicates share a number.
    """
    return _numbered(rows, [row.group or row.sha256 for row in rows])


def with_image_labels(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows with the number of their image instead of their label; duplicates share a number."""
    return _numbered(rows, [row.sha256 for row in rows])


def _numbered(rows: Sequence[Row], keys: Sequence[str]) -> tuple[Row, ...]:
    numbers: dict[str, int] = {}
    return tuple(replace(row, label=numbers.setdefault(key, len(numbers))) for row, key in zip(rows, keys, strict=True))
