"""Datasets, samplers and loaders over rows: from image files to batches of uint8 images and labels."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from streetvision.contracts.split_contracts import Row
from streetvision.data.cache import ImageCache
from streetvision.data.config import DecodeLimits
from streetvision.data.decode import read_image, read_row
from streetvision.data.image_file import UndecodableImage
from streetvision.io.resize import DecodeSize

if TYPE_CHECKING:
    # It imports torchvision, which takes as long as torch, and which only training needs.
    from streetvision.data.augmentation import BatchTransform, Transform

Key = tuple[int, int]
"""(epoch, position of the row)."""
Sample = tuple[Any, int, Key] | UndecodableImage
Batch = tuple[Any, Tensor]
"""Inputs (a tensor, or a named tuple of tensors), and labels."""


class ImageDataset(Dataset[Sample]):
    """Rows as (transformed image, label, key), by key (epoch, position).

    Random transforms depend on seed, epoch and position only, not on the worker process. An image that cannot be read
    is returned as its error, because an error raised in a worker process loses its message.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        root: Path,
        transform: "Transform",
        limits: DecodeLimits,
        seed: int = 0,
        cache: ImageCache | None = None,
        decode_size: DecodeSize | None = None,
    ) -> None:
        self.rows, self.transform, self.limits, self.seed = rows, transform, limits, seed
        self.root, self.cache, self.decode_size = root, cache, decode_size

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Key) -> Sample:
        epoch, position = key
        try:
            with _seeded(self.seed, epoch, position):
                return self.draw(position), self.rows[position].label, key
        except UndecodableImage as error:
            return error

    def draw(self, position: int) -> Any:
        """Return the transformed image of a row."""
        return self.transform(self.read(position))

    def read(self, position: int) -> Tensor:
        """Return the image of a row, or its small copy, uint8 (3, H, W), as small as `decode_size` allows."""
        row = self.rows[position]
        original = self.root / row.path
        path = original if self.cache is None else self.cache.path(row, root=self.root)
        if path == original:
            return read_row(self.root, row, limits=self.limits, decode_size=self.decode_size)
        # The name of a copy has the digest of the original.
        return read_image(path, limits=self.limits, decode_size=self.decode_size)


class EpochBatchSampler(Sampler[list[Key]]):
    """Batches of keys (epoch, position), in order or shuffled in each epoch. Each iteration is one epoch.

    If the last batch of an epoch would have less than half of the rows of the others, half of the rows of the batch
    before it move to it, because a step on a single row would be noisy and a BatchNorm refuses it.

    A batch is divided into `micro_batches` for each of `world_size` processes. All micro-batches of a batch have the
    same length, so the mean of their means is the mean of the batch. For this, the last batches of an epoch are
    extended by the first rows of the epoch to a multiple of their number.

    Args:
        n: Number of rows.
        batch_size: Rows per batch, over all processes; the last two batches may have fewer, at least half as many.
        shuffle: Whether each epoch has its own order.
        seed: Seed of the orders.
        micro_batches: Micro-batches per batch and process.
        rank_and_world_size: Rank of this process, and number of processes.
    """

    def __init__(
        self,
        n: int,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        micro_batches: int = 1,
        rank_and_world_size: tuple[int, int] = (0, 1),
    ) -> None:
        self.n, self.batch_size, self.shuffle, self.seed = n, batch_size, shuffle, seed
        self.micro_batches = micro_batches
        self.rank, self.world_size = rank_and_world_size
        self.epoch = self.skip = 0

    def __len__(self) -> int:
        return -(-self.n // self.batch_size) * self.micro_batches

    def __iter__(self) -> Iterator[list[Key]]:
        # This is a generator, so the epoch advances with the first batch and not with the iterator: torch's loader
        # creates two iterators and uses one.
        epoch, self.epoch = self.epoch, self.epoch + 1
        skip, self.skip = self.skip, 0
        for micro_batch in self.positions(epoch)[skip:]:
            yield [(epoch, position) for position in micro_batch]

    def resume(self, *, epoch: int, skip: int) -> None:
        """Continue in `epoch`, counted from 0, after its first `skip` micro-batches."""
        self.epoch, self.skip = epoch, skip

    def positions(self, epoch: int) -> list[list[int]]:
        """Return the rows of every micro-batch of this process in `epoch`."""
        order = (shuffled(self.n, seed=self.seed, epoch=epoch) if self.shuffle else torch.arange(self.n)).tolist()
        total = self.micro_batches * self.world_size
        of_this_rank = []
        edges = [*range(0, self.n, self.batch_size), self.n]
        if len(edges) > 2 and 2 * (edges[-1] - edges[-2]) < self.batch_size:
            edges[-2] -= self.batch_size // 2  # also a multiple of the usual numbers of micro-batches
        for start, stop in pairwise(edges):
            batch = order[start:stop]
            batch += list(islice(cycle(order), -len(batch) % total))
            of_this_rank += [batch[number::total] for number in range(self.rank, total, self.world_size)]
        return of_this_rank


class ResumableBatches:
    """Base of training batches: an iterable over epochs that can be resumed within an epoch.

    Attributes:
        order: Determines the batches.
        names: Name of each row.
        row_labels: Label of each row.
    """

    order: EpochBatchSampler
    names: Sequence[str]
    row_labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.order)

    def resume(self, *, epoch: int, skip: int) -> None:
        """Continue in `epoch`, counted from 0, after its first `skip` batches; call it before the first iteration."""
        self.order.resume(epoch=epoch, skip=skip)

    def rows_of(self, *, epoch: int, batch: int) -> list[str]:
        """Return the names of the rows in a batch; epoch and batch are counted from 0."""
        return [self.names[position] for position in self.order.positions(epoch)[batch]]


class ImageLoader(ResumableBatches):
    """Batches of (images uint8 (B, 3, h, w), labels int64 (B,)). As a context manager, it stops its workers on exit.

    Args:
        dataset: The rows.
        order: The batches.
        workers: Number of worker processes; 0: decode in this process.
        mix: Transform of whole batches, such as MixUp.

    Raises:
        UndecodableImage: While iterating, for an image that cannot be read.
    """

    def __init__(
        self, dataset: ImageDataset, order: EpochBatchSampler, *, workers: int, mix: "BatchTransform | None" = None
    ) -> None:
        self.order = order
        self.names = [row.path for row in dataset.rows]
        self.row_labels = [row.label for row in dataset.rows]
        self._loader: DataLoader[Sample] = DataLoader(
            dataset,
            batch_sampler=order,
            num_workers=workers,
            generator=torch.Generator().manual_seed(dataset.seed),  # otherwise it draws from the global generator
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=partial(_collate, mix=mix, seed=dataset.seed),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # A trainer has reference cycles to its loaders. If the garbage collector removes a loader, its threads that
        # stop the workers are gone, and it waits five seconds for each worker.
        del self._loader

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over one epoch."""
        for batch in self._loader:
            if isinstance(batch, UndecodableImage):
                raise batch
            yield batch


def _collate(samples: Sequence[Sample], *, mix: "BatchTransform | None", seed: int) -> Batch | UndecodableImage:
    """Stack samples to a batch, or return the first error among them."""
    valid = []
    for sample in samples:
        if isinstance(sample, UndecodableImage):
            return sample
        valid.append(sample)
    images, labels = default_collate([image for image, _, _ in valid]), torch.tensor([label for _, label, _ in valid])
    if mix is None:
        return images, labels
    # Seeding by all keys makes the mix independent of the worker; -1 separates it from the seeds of single images.
    with _seeded(seed, -1, *(number for _, _, key in valid for number in key)):
        return mix(images, labels)


class FeatureBatches(ResumableBatches):
    """Batches (features (B, P), labels (B,)) of rows in memory, without the overhead of a loader.

    Args:
        features: (N, P).
        labels: (N,).
        batch_size: Rows per batch.
        seed: Seed of the order of each epoch; None: rows are not shuffled.
        micro_batches: Micro-batches per batch.
        names: Name of each row; default "row 0", "row 1", ...
    """

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        seed: int | None = None,
        micro_batches: int = 1,
        names: Sequence[str] | None = None,
    ) -> None:
        self.features, self.labels = features, labels
        self.order = EpochBatchSampler(
            len(labels), batch_size=batch_size, shuffle=seed is not None, seed=seed or 0, micro_batches=micro_batches
        )
        self.row_labels = labels.tolist()
        self.names = names if names is not None else [f"row {i}" for i in range(len(labels))]

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over one epoch."""
        for keys in self.order:
            positions = [position for _, position in keys]
            yield self.features[positions], self.labels[positions]


@contextmanager
def _seeded(*numbers: int) -> Iterator[None]:
    """Seed the global CPU generator by `numbers` inside the context, and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the accelerators, for every image.
        torch.default_generator.manual_seed(hash(numbers) % 2**63)
        yield


def shuffled(n: int, *, seed: int, epoch: int) -> Tensor:
    """Return a permutation (n,) that depends on seed and epoch only."""
    generator = torch.Generator().manual_seed(hash((seed, epoch)) % 2**63)
    return torch.randperm(n, generator=generator)
