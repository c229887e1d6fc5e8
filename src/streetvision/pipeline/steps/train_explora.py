"""phase4a_explora: adapt the backbone on the images of TRAIN and on unlabelled ones, without any label."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace

from lightning.pytorch.loggers import Logger

from streetvision.contracts.errors import ConfigError
from streetvision.contracts.phase import Context, Metrics, Outcome
from streetvision.contracts.progress import Progress
from streetvision.contracts.split_contracts import Row, Split
from streetvision.data.augmentation import Transform, get_val_transforms
from streetvision.data.cache import ImageCache
from streetvision.data.config import DataConfig, LoaderConfig
from streetvision.data.datamodule import EpochBatchSampler, ImageDataset, ImageLoader
from streetvision.data.sources.unlabeled import UnlabeledImages
from streetvision.data.two_views import PartnersFromGroups, TwoViews
from streetvision.eval.report.adaptation_curve import adaptation_curve
from streetvision.io.atomic import write_bytes_atomic, write_json_atomic, write_text_atomic
from streetvision.io.tensors import save_tensors
from streetvision.io.validators import validate_json
from streetvision.models.adapters import merge_adapters
from streetvision.models.config import HardwareConfig, ModelConfig
from streetvision.models.module import Classifier, load_classifier
from streetvision.models.pooling import pooled_dim
from streetvision.pipeline.artifacts import unlabelled_images
from streetvision.pipeline.auto_settings import log_auto_settings
from streetvision.pipeline.image_training import small_copies
from streetvision.pipeline.initialization import resume_key
from streetvision.pipeline.steps.train_baseline import as_csv, some_images
from streetvision.training.callbacks import cpu_state_dict
from streetvision.training.distributed import broadcast, rank_and_world_size
from streetvision.training.loggers import open_loggers
from streetvision.training.ssl.collapse_monitor import CollapseMonitor
from streetvision.training.ssl.config import ExPLoRAConfig, SwAVConfig
from streetvision.training.ssl.explora import ExPLoRAModule, Student, prepare_backbone
from streetvision.training.trainer import TrainerOptions, seed_all, train_module

TOLERATED_LOSS = 0.05
"""Of the MCC of neighbours; by the packaged views the packaged backbone loses 0.17 on drawn scenes, and is worse."""
TOLD_APART = 0.02
"""Of SwAV's loss, in nats: stuck on 800 scenes it is 0.001 under ln 64, and where it learns 0.05 after one epoch."""


def run(context: Context) -> Outcome:
    """Train without labels, merge the adapters, and save the backbone under the names that it had before."""
    config, schema, started = context.settings(ExPLoRAConfig), context.schema, time.perf_counter()
    log_auto_settings(context, config, section="phase4a")
    student, learning = _student(context)
    rows = _train_rows(context)
    broadcast(context.phase)
    with open_loggers(schema.explora_logs_dir, config) as loggers:
        watch, resumed_step = _train(student, context, rows, loggers)
    seconds = time.perf_counter() - started
    error = _save(student.classifier, context)
    write_text_atomic(schema.explora_metrics_csv, as_csv(tuple(watch.history)))
    write_bytes_atomic(schema.explora_curve_plot, adaptation_curve(watch.history, method=config.method))
    schema.explora_training_checkpoint.unlink(missing_ok=True)
    before, after = watch.history[0], watch.history[-1]
    warn_of_what_is_lost(before["knn_mcc"], after["knn_mcc"], context.progress)
    if isinstance(config, SwAVConfig):
        warn_of_equal_codes(after["select_loss"], config.prototypes, context.progress)
    rate = len(rows) * config.num_epochs / seconds
    resumed = "" if resumed_step is None else f", went on from step {resumed_step}"
    return Outcome(
        f"{config.method} on {len(rows)} images, loss on VAL_SELECT {before['select_loss']:.3f} -> "
        f"{after['select_loss']:.3f}, effective rank {before['effective_rank']:.0f} -> {after['effective_rank']:.0f}, "
        f"{rate:.0f} img/s{resumed}",
        {**_figures(after), "parameters_trained": learning, "images_per_second": rate, "merge_error": error},
    )


def warn_of_what_is_lost(before: float, after: float, progress: Progress) -> None:
    """Say so where neighbours in TRAIN share their labels less than they did: `before` and `after` are their MCC."""
    if before - after > TOLERATED_LOSS:
        progress.warn(
            f"neighbours in TRAIN share their labels less than before (MCC {before:.3f} to {after:.3f}): the views may "
            "hide what decides; keep more of each image in phase4a.views, or leave out phase4a_explora"
        )


def warn_of_equal_codes(loss: float, prototypes: int, progress: Progress) -> None:
    """Say so where SwAV's loss on VAL_SELECT is what one code for all images gives."""
    nothing_told_apart = math.log(prototypes)
    if loss > nothing_told_apart - TOLD_APART:
        progress.warn(
            f"swav told no image from another: its loss, {loss:.3f}, is that of one code for all (ln {prototypes} = "
            f"{nothing_told_apart:.3f}); lower phase4a.epsilon, or give larger batches"
        )


def join(context: Context) -> None:
    """Train beside the leader, and leave everything else to it."""
    _train(_student(context)[0], context, _train_rows(context))


def _student(context: Context) -> tuple[Student, int]:
    config, model = context.settings(ExPLoRAConfig), context.settings(ModelConfig)
    seed_all(config.seed)
    classifier = load_classifier(model)
    learning = prepare_backbone(classifier, config)
    student = Student(classifier, pooled_dim(model.pooling, classifier.backbone.spec), config)
    seed_all(config.seed)
    return student, learning


def _train(
    student: Student, context: Context, rows: Sequence[Row], loggers: Sequence[Logger] = ()
) -> tuple[CollapseMonitor, int | None]:
    config = context.settings(ExPLoRAConfig)
    rows, select = group_ids(rows), group_ids(context.rows(Split.VAL_SELECT))
    of_pairs = _pairs_of(config, rows)
    size = student.classifier.description.image_size
    pairs, plain = TwoViews(config.views, image_size=size), get_val_transforms(image_size=size)
    probed = _spread(context.rows(Split.TRAIN), config.knn_probe_size)
    options = TrainerOptions(
        context.progress,
        checkpoint=context.schema.explora_training_checkpoint,
        resume_key=resume_key(context, unlabelled_images(context)),
    )
    with (
        _loader(
            rows,
            pairs,
            context,
            kind=of_pairs,
            cache=small_copies(rows, context),
            rank_of=rank_and_world_size(),
            parts=config.gradient_accumulation_steps,
            shuffle=True,
        ) as batches,
        _loader(select, pairs, context, kind=of_pairs, rank_of=rank_and_world_size()) as held_out,
        _loader(probed, plain, context) as probe,
    ):
        groups = [row.group or row.path for row in probed]
        watch = CollapseMonitor(config, context.progress, select=held_out, probe=probe, groups=groups, loggers=loggers)
        module = ExPLoRAModule(student, config, hardware=_hardware(context))
        resumed_step = train_module(module, batches, None, epoch_logger=watch, options=options)
    return watch, resumed_step


def _hardware(context: Context) -> HardwareConfig:
    """The hardware settings; the contrast needs whole weights, so they are not sharded."""
    hardware = context.settings(HardwareConfig)
    return hardware.model_copy(update={"strategy": "ddp"}) if hardware.strategy == "fsdp" else hardware


def _loader(
    rows: Sequence[Row],
    transform: Transform,
    context: Context,
    *,
    kind: type[ImageDataset] = ImageDataset,
    cache: ImageCache | None = None,
    rank_of: tuple[int, int] = (0, 1),
    parts: int = 1,
    shuffle: bool = False,
) -> ImageLoader:
    config, loader = context.settings(ExPLoRAConfig), context.settings(LoaderConfig)
    dataset = kind(
        rows, root=context.data_root, transform=transform, limits=loader.limits, seed=config.seed, cache=cache
    )
    order = EpochBatchSampler(
        len(rows), batch_size=config.batch_size, shuffle=shuffle, seed=config.seed, parts=parts, rank_of=rank_of
    )
    return ImageLoader(dataset, order, workers=loader.worker_count)


def _train_rows(context: Context) -> tuple[Row, ...]:
    """TRAIN, and what data.unlabeled adds."""
    rows = context.rows(Split.TRAIN)
    if context.settings(DataConfig).unlabeled:
        rows += validate_json(context.schema.unlabeled_json, UnlabeledImages).as_rows()
    return rows


def group_ids(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows with the number of their group where a label would stand, which is not read here; copies are a group."""
    numbers: dict[str, int] = {}
    return tuple(replace(row, label=numbers.setdefault(row.group or row.sha256, len(numbers))) for row in rows)


def _pairs_of(config: ExPLoRAConfig, rows: Sequence[Row]) -> type[ImageDataset]:
    if config.views.positives == "same_image":
        return ImageDataset
    if len({row.label for row in rows}) == len(rows):
        raise ConfigError(
            "phase4a.views.positives=same_group, and no two images share a group",
            "give groups, in a column of data.root and data.unlabeled, or take phase4a.views.positives=same_image",
        )
    return PartnersFromGroups


def _spread(rows: Sequence[Row], count: int) -> Sequence[Row]:
    """At most `count` rows, evenly over the whole."""
    step = max(1, -(-len(rows) // count))
    return rows[::step]


def _save(classifier: Classifier, context: Context) -> float:
    """Write the adapters, then the merged backbone; returns what merging changed in a logit."""
    schema, backbone = context.schema, classifier.backbone
    state = cpu_state_dict(backbone)
    save_tensors(schema.explora_lora, {name: value for name, value in state.items() if "lora_" in name})
    error = merge_adapters(classifier.cpu(), some_images(classifier, context))
    save_tensors(schema.explora_checkpoint, cpu_state_dict(backbone))
    write_json_atomic(schema.explora_config_json, dict(backbone.spec.architecture))
    return error


def _figures(row: dict[str, float | int]) -> Metrics:
    """Of an epoch, for the manifest; JSON has no nan."""
    return {name: None if value != value else value for name, value in row.items()}
