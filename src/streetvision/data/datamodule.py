"""Loaders over the rows that a phase was granted: bytes in, batches of uint8 images and labels out."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from streetvision.contracts.split_contracts import Row
from streetvision.data.augmentation import Transform
from streetvision.data.decode import DecodeLimits, UndecodableImage, read_image

Key = tuple[int, int]
Sample = tuple[Tensor, int] | UndecodableImage
Batch = tuple[Tensor, Tensor]


class LoaderConfig(BaseModel):
    """How images reach the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(default=64, ge=1)
    """Images a forward pass when nothing is trained."""
    workers: int | None = Field(default=None, ge=0)
    """Processes that decode; None takes one a core beyond the second, none on one or two cores."""
    max_megapixels: float = Field(default=100.0, gt=0, le=178)
    """Millions of pixels above which an image is refused; Pillow itself refuses some formats beyond 178."""

    @property
    def limits(self) -> DecodeLimits:
        """What one image file may cost before it is refused."""
        return DecodeLimits(max_megapixels=self.max_megapixels)

    @property
    def worker_count(self) -> int:
        """The number of processes that `workers` stands for on this machine."""
        return max(0, (os.cpu_count() or 1) - 2) if self.workers is None else self.workers


class ImageDataset(Dataset[Sample]):
    """Rows as (image uint8 (3, S, S), label); a key is (epoch, position).

    What is random in the transform depends on seed, epoch and position alone, never on the worker that draws it.
    An image that cannot be read is returned as its error, since an error raised in a worker loses its words.
    """

    def __init__(
        self, rows: Sequence[Row], *, root: Path, transform: Transform, limits: DecodeLimits, seed: int = 0
    ) -> None:
        self.rows, self.root, self.transform, self.limits, self.seed = rows, root, transform, limits, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Key) -> Sample:
        epoch, position = key
        row = self.rows[position]
        try:
            image = read_image(self.root / row.path, limits=self.limits)
        except UndecodableImage as error:
            return error
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed the accelerators anew for every image.
            torch.default_generator.manual_seed(hash((self.seed, epoch, position)) % 2**63)
            return self.transform(image), row.label


class EpochSampler(Sampler[Key]):
    """Keys (epoch, position): in order, or in a new seeded order each time it is walked through."""

    def __init__(self, n: int, *, shuffle: bool, seed: int = 0) -> None:
        self.n, self.shuffle, self.seed = n, shuffle, seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[Key]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        order = shuffled(self.n, seed=self.seed, epoch=epoch) if self.shuffle else torch.arange(self.n)
        return iter([(epoch, position) for position in order.tolist()])


class ImageLoader:
    """Batches of (images uint8 (B, 3, S, S), labels int64 (B,)); worker processes live as long as the loader.

    Raises UndecodableImage for an image that cannot be read by now.
    """

    def __init__(self, dataset: ImageDataset, *, batch_size: int, workers: int, shuffle: bool = False) -> None:
        self._loader: DataLoader[Sample] = DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=EpochSampler(len(dataset), shuffle=shuffle, seed=dataset.seed),
            num_workers=workers,
            generator=torch.Generator().manual_seed(dataset.seed),  # else it would draw from the global one
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=_collate,
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        """One pass over the rows."""
        for batch in self._loader:
            if isinstance(batch, UndecodableImage):
                raise batch
            yield batch


def _collate(samples: Sequence[Sample]) -> Batch | UndecodableImage:
    images, labels = [], []
    for sample in samples:
        if isinstance(sample, UndecodableImage):
            return sample
        images.append(sample[0])
        labels.append(sample[1])
    return torch.stack(images), torch.tensor(labels)


class FeatureBatches:
    """Batches of rows that already lie in memory: (features (B, P), labels (B,)), without a loader's overhead."""

    def __init__(self, features: Tensor, labels: Tensor, *, batch_size: int, seed: int | None = None) -> None:
        self.features, self.labels, self.batch_size, self.seed = features, labels, batch_size, seed
        self.epoch = 0

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """One pass; in a new seeded order each time when a seed was given."""
        epoch, self.epoch = self.epoch, self.epoch + 1
        n = len(self.labels)
        order = torch.arange(n) if self.seed is None else shuffled(n, seed=self.seed, epoch=epoch)
        for start in range(0, n, self.batch_size):
            chosen = order[start : start + self.batch_size]
            yield self.features[chosen], self.labels[chosen]


def shuffled(n: int, *, seed: int, epoch: int) -> Tensor:
    """A permutation (n,) that seed and epoch alone decide."""
    generator = torch.Generator().manual_seed(hash((seed, epoch)) % 2**63)
    return torch.randperm(n, generator=generator)
