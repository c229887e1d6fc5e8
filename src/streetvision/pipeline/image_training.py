"""Training of a classifier on augmented images: loaders of TRAIN and VAL_SELECT, and the fit."""

from collections.abc import Sequence
from contextlib import ExitStack

from streetvision.contracts.errors import ConfigError
from streetvision.contracts.phase import Context
from streetvision.contracts.split_contracts import Row, Split
from streetvision.data.augmentation import get_batch_transform, get_train_transforms, train_decode_size
from streetvision.data.cache import ImageCache
from streetvision.data.config import AugmentationConfig, LoaderConfig
from streetvision.data.datamodule import EpochBatchSampler, ImageDataset, ImageLoader
from streetvision.io.process_pool import usable_cores
from streetvision.models.config import HardwareConfig
from streetvision.models.module import Classifier
from streetvision.training.config import FinetuningConfig, LayerDecayConfig
from streetvision.training.distributed import rank_and_world_size
from streetvision.training.finetune_modes import rate_scales
from streetvision.training.scoring import evaluation_loader
from streetvision.training.supervised import Weights
from streetvision.training.trainer import Fit, TrainerOptions, fit


def fit_images(
    classifier: Classifier,
    context: Context,
    *,
    config: FinetuningConfig,
    policy: AugmentationConfig,
    options: TrainerOptions,
    stop_after: int | None = None,
    weights: Weights = "raw",
) -> Fit:
    """Fit the trainable parameters on this rank's share of TRAIN, and validate on its share of VAL_SELECT.

    See `fit` for the arguments. With `stop_after`, there is no validation.
    """
    loader, hardware = context.settings(LoaderConfig), context.settings(HardwareConfig)
    rank, world = rank_and_world_size()
    with ExitStack() as stack:
        batches = stack.enter_context(_train_loader(classifier, context, config=config, policy=policy))
        validation = None
        if stop_after is None:
            select = context.rows(Split.VAL_SELECT)
            if hardware.strategy != "fsdp":  # FSDP gathers weights for each batch, so all ranks need as many batches
                select = select[rank::world]
            validation = stack.enter_context(
                evaluation_loader(classifier, select, root=context.data_root, loader=loader)
            )
        return fit(
            classifier,
            batches,
            validation,
            config=config,
            hardware=hardware,
            options=options,
            scales=rate_scales(classifier, config.layer_decay if isinstance(config, LayerDecayConfig) else 1.0),
            stop_after=stop_after,
            weights=weights,
        )


def _train_loader(
    classifier: Classifier, context: Context, *, config: FinetuningConfig, policy: AugmentationConfig
) -> ImageLoader:
    loader, rows = context.settings(LoaderConfig), context.rows(Split.TRAIN)
    spec = classifier.backbone.spec
    mix = get_batch_transform(policy, image_size=spec.image_size, patch_size=spec.patch_size)
    if policy.scales != (1.0,) and spec.architecture["source"] == "timm":
        raise ConfigError(
            "augmentation.scales needs a backbone that accepts several image sizes; timm backbones accept one",
            "leave augmentation.scales out, or set a backbone of transformers",
        )
    dataset = train_dataset(classifier, rows, context, config=config, policy=policy)
    order = EpochBatchSampler(
        len(rows),
        batch_size=config.effective_batch_size,
        shuffle=True,
        seed=config.seed,
        micro_batches=config.micro_batches,
        rank_and_world_size=rank_and_world_size(),
    )
    return ImageLoader(dataset, order, workers=loader.worker_count, mix=mix)


def train_dataset(
    classifier: Classifier,
    rows: Sequence[Row],
    context: Context,
    *,
    config: FinetuningConfig,
    policy: AugmentationConfig,
) -> ImageDataset:
    """Return `rows` as augmented images for a training of `classifier`."""
    image_size = classifier.backbone.spec.image_size
    return ImageDataset(
        rows,
        root=context.data_root,
        transform=get_train_transforms(policy, image_size=image_size),
        limits=context.settings(LoaderConfig).limits,
        seed=config.seed,
        cache=cached_images(rows, context),
        decode_size=train_decode_size(policy, image_size=image_size) if classifier.description.reduces else None,
    )


def cached_images(rows: Sequence[Row], context: Context) -> ImageCache | None:
    """The cache of small training images, if loader.cache_image_size is set. Validation reads the originals."""
    loader = context.settings(LoaderConfig)
    if loader.cache_image_size is None:
        return None
    cache = ImageCache(context.schema.image_cache_dir, pixels=loader.cache_image_size)
    cache.build(
        rows,
        root=context.data_root,
        limits=loader.limits,
        workers=usable_cores(),
        progress=context.progress,
    )
    return cache
