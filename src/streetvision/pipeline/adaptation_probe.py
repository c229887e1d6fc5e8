"""A linear probe on a sample of TRAIN, by which phase 4a chooses its views and the share of its weights that ships."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streetvision.contracts.errors import DataError
from streetvision.contracts.phase import Context
from streetvision.contracts.split_contracts import Row, Split
from streetvision.data.config import VIEW_LEVELS, LoaderConfig, PairConfig
from streetvision.data.datamodule import EpochBatchSampler, ImageDataset, ImageLoader
from streetvision.data.two_views import TwoViews
from streetvision.eval.metrics import nll, positive_probability
from streetvision.eval.predictions import Predictions
from streetvision.io.tensors import load_into
from streetvision.models.config import ModelConfig
from streetvision.models.device import pick_device
from streetvision.models.network import Backbone
from streetvision.pipeline.probe_head import FeatureReader, two_logits
from streetvision.training.features import FeatureCache
from streetvision.training.probe import FeatureBank, LinearProbe, fit_probe, grouped_folds
from streetvision.training.scoring import evaluation_loader
from streetvision.training.ssl.anchor import Anchor
from streetvision.training.ssl.config import ExPLoRAConfig

SAMPLE_SIZE, SAMPLE_SIZE_OF_CLASS = 400, 100
"""Least number of images of the sample, and of each class in it; all of TRAIN if it has fewer."""
MAX_SAMPLE_SIZE = 4 * SAMPLE_SIZE
"""Largest number of images of the sample, which are in memory. One large group, or a rare class, would exceed it."""
VIEW_IMAGES = 128
"""Largest number of images whose views are predicted, two views each."""
MAX_VIEW_LOSS = 0.1
"""Nats by which the views of a level may be predicted worse than the unchanged images."""


@dataclass(frozen=True)
class AdaptationProbe:
    """A linear probe on the frozen backbone, which chooses pooling, layers and penalty, and its sample of TRAIN."""

    context: Context
    backbone: Backbone
    reader: FeatureReader
    rows: tuple[Row, ...]
    """The sample: groups of TRAIN."""

    @classmethod
    def of(cls, backbone: Backbone, context: Context) -> "AdaptationProbe":
        """Draw the sample for a backbone, which the probe uses with the weights that it has at each call."""
        rows = sample_of_groups(context.rows(Split.TRAIN), seed=context.settings(ExPLoRAConfig).seed)
        return cls(context, backbone, FeatureReader.of(backbone, context.settings(ModelConfig)), rows)

    @property
    def groups(self) -> list[str]:
        """Group of each row."""
        return [row.group or row.sha256 for row in self.rows]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Label of each row (N,)."""
        return np.array([row.label for row in self.rows], dtype=np.int64)

    @cached_property
    def folds(self) -> NDArray[np.int64]:
        """Fold of each row (N,); raises DataError if a class has one group only."""
        return grouped_folds(self.labels, self.groups, seed=self.context.settings(ExPLoRAConfig).seed)

    def features(self) -> Tensor:
        """Return the features (N, P) of all poolings and layers that the probe may choose, from the feature cache."""
        context, loader = self.context, self.context.settings(LoaderConfig)
        cache = FeatureCache(
            context.schema.feature_cache_dir, self.reader.classifier, loader=loader, progress=context.progress
        )
        return cache.features(self.rows, root=context.data_root, name=Split.TRAIN.value)[0]

    def fit(self) -> LinearProbe:
        """Fit the probe to the sample, one fit for each fold; raises DataError if a class has one group only."""
        return fit_probe(
            self._bank(self.features()),
            self.labels,
            self.groups,
            representations=self.reader.representations,
            class_weights=lambda _: (1.0, 1.0),
            seed=self.context.settings(ExPLoRAConfig).seed,
            progress=self.context.progress,
            folds=self.folds,
        )

    def predict(self, state: Mapping[str, Tensor]) -> Predictions:
        """Return the predictions of the sample with the weights `state`, each row by a fit without its group."""
        load_into(self.backbone, state, source="the interpolated weights")
        probe = self.fit()
        assert probe.out_of_fold is not None
        return Predictions(self.labels, positive_probability(two_logits(probe.out_of_fold).numpy()), self.groups)

    def predict_views(self, probe: LinearProbe, config: PairConfig, positions: Sequence[int]) -> NDArray[np.float64]:
        """Return the margins (2 * len(positions),) of two views of each row, by the fit without its fold."""
        assert probe.fold_weights is not None
        assert probe.fold_biases is not None
        rows, loader = [self.rows[position] for position in positions], self.context.settings(LoaderConfig)
        classifier, device = self.reader.classifier, pick_device()
        views = TwoViews(config, image_size=classifier.description.image_size)
        dataset = ImageDataset(
            rows,
            root=self.context.data_root,
            transform=views,
            limits=loader.limits,
            seed=self.context.settings(ExPLoRAConfig).seed,
            decode_size=views.decode_size if classifier.description.reduces else None,
        )
        order = EpochBatchSampler(len(rows), batch_size=max(1, loader.batch_size // 2), shuffle=False)
        parts, progress = [], self.context.progress
        classifier.to(device).eval()
        with torch.inference_mode(), ImageLoader(dataset, order, workers=loader.worker_count) as batches:
            for views, _ in progress.track(batches, total=len(order), label="views"):
                parts.append(classifier.embed(views.flatten(0, 1).to(device)).float().cpu())
        inputs = self._bank(torch.cat(parts)).read(probe.chosen.representation)
        folds = np.repeat(self.folds[list(positions)], 2)
        margins: NDArray[np.float64] = (inputs * probe.fold_weights[folds]).sum(axis=1) + probe.fold_biases[folds]
        return margins

    def anchor(self) -> Anchor:
        """Return the anchor of the sample, for a backbone that has its original weights."""
        loader, classifier = self.context.settings(LoaderConfig), self.reader.classifier
        with evaluation_loader(classifier, self.rows, root=self.context.data_root, loader=loader) as batches:
            images = torch.cat([images for images, _ in batches])
        return Anchor(
            images,
            self.features(),
            classifier.pooling,
            classifier.layers,
            seed=self.context.settings(ExPLoRAConfig).seed,
        )

    def _bank(self, features: Tensor) -> FeatureBank:
        return FeatureBank(features.numpy(), self.reader.pooling, self.reader.layers)


def sample_of_groups(rows: Sequence[Row], *, seed: int) -> tuple[Row, ...]:
    """Return the rows of randomly drawn groups: at least SAMPLE_SIZE in all, and SAMPLE_SIZE_OF_CLASS of each class.

    If these are more than MAX_SAMPLE_SIZE, groups that are larger than their share keep evenly spaced rows only, and
    the rarer class keeps its share of the rows, or SAMPLE_SIZE_OF_CLASS if that is more.
    """
    names = sorted({row.group or row.sha256 for row in rows})
    members: dict[str, list[int]] = {name: [] for name in names}
    for index, row in enumerate(rows):
        members[row.group or row.sha256].append(index)
    drawn: list[list[int]] = []
    counts = [0, 0]
    for position in np.random.default_rng(seed).permutation(len(names)):
        if sum(counts) >= SAMPLE_SIZE and min(counts) >= SAMPLE_SIZE_OF_CLASS:
            break
        group = members[names[position]]
        drawn.append(group)
        if len(group) <= MAX_SAMPLE_SIZE:  # a larger one must not be the whole sample
            for index in group:
                counts[rows[index].label] += 1
    sample = [index for group in drawn for index in group]
    if len(sample) > MAX_SAMPLE_SIZE:
        of_classes = [[[index for index in group if rows[index].label == label] for group in drawn] for label in (0, 1)]
        rare, common = sorted(of_classes, key=lambda groups: sum(map(len, groups)))
        n_rare = sum(map(len, rare))
        most = min(n_rare, max(SAMPLE_SIZE_OF_CLASS, MAX_SAMPLE_SIZE * n_rare // len(sample)))
        sample = _evenly(rare, most) + _evenly(common, MAX_SAMPLE_SIZE - most)
    return tuple(rows[index] for index in sorted(sample))


def _evenly(groups: Sequence[list[int]], most: int) -> list[int]:
    """At most `most` elements of the groups, with equal shares of those that are larger than their share."""
    groups = [group for group in groups if group][:most]
    sizes = np.array([len(group) for group in groups], dtype=np.int64)
    share = bisect_right(range(most + 1), most, key=lambda share: np.minimum(sizes, share).sum()) - 1
    shares = np.minimum(sizes, share)
    shares[np.flatnonzero(sizes > share)[: most - shares.sum()]] += 1
    return [
        group[number * len(group) // n] for group, n in zip(groups, shares.tolist(), strict=True) for number in range(n)
    ]


def choose_views(config: PairConfig, probe: AdaptationProbe) -> PairConfig:
    """Return `config` with the strongest level of views that keeps the labels predictable where settings are auto.

    A probe on the features of unchanged images predicts views of images of its held-out folds. The levels are tried
    from the weakest on, up to the first one whose NLL is more than MAX_VIEW_LOSS above that of the unchanged images.
    """
    if not config.auto_settings:
        return config
    weakest, *_ = VIEW_LEVELS
    try:
        level, reason = _strongest_level(config, probe)
    except DataError as error:  # a class with one group
        level, reason = weakest, f"the views cannot be compared: {error.message}"
    chosen = config.at_level(level)
    values = [f"phase4a.views.{name}={_value(getattr(chosen, name))}" for name in config.auto_settings]
    probe.context.progress.auto_setting(" ".join(values), reason)
    return chosen


def _strongest_level(config: PairConfig, probe: AdaptationProbe) -> tuple[str, str]:
    fitted = probe.fit()
    assert fitted.out_of_fold is not None
    rng = np.random.default_rng(probe.context.settings(ExPLoRAConfig).seed)
    positions = np.sort(rng.permutation(len(probe.rows))[:VIEW_IMAGES]).tolist()
    labels = probe.labels[positions]
    limit = _nll(labels, fitted.out_of_fold[positions]) + MAX_VIEW_LOSS
    chosen, losses = next(iter(VIEW_LEVELS)), []
    for level in VIEW_LEVELS:
        loss = _nll(np.repeat(labels, 2), probe.predict_views(fitted, config.at_level(level), positions))
        losses.append(f"{level} {loss:.3f}")
        if loss > limit:
            break
        chosen = level
    return chosen, (
        f"{chosen} views; NLL of a probe on TRAIN: unchanged images {limit - MAX_VIEW_LOSS:.3f}, views "
        f"{', '.join(losses)}; at most {MAX_VIEW_LOSS:g} more is allowed, else the weakest level is used"
    )


def _nll(labels: NDArray[np.int64], margins: NDArray[np.float64]) -> float:
    return nll(labels, positive_probability(two_logits(margins).numpy()))


def _value(value: object) -> str:
    return f"[{','.join(f'{part:g}' for part in value)}]" if isinstance(value, tuple) else f"{value:g}"
