"""Loaders over the rows that a phase was granted: bytes in, batches of uint8 images and labels out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from streetvision.contracts.split_contracts import Row
from streetvision.data.augmentation import BatchTransform, Transform
from streetvision.data.cache import ImageCache
from streetvision.data.config import DecodeLimits
from streetvision.data.decode import UndecodableImage, read_image

Key = tuple[int, int]
Sample = tuple[Any, int, Key] | UndecodableImage
Batch = tuple[Any, Tensor]
"""Inputs, a tensor or a named tuple of them, and labels."""


class ImageDataset(Dataset[Sample]):
    """Rows as (image uint8 (3, S, S), label); a key is (epoch, position). A transform may make a tuple of tensors.

    What is random in the transform depends on seed, epoch and position alone, never on the worker that draws it.
    An image that cannot be read is returned as its error, since an error raised in a worker loses its words.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        root: Path,
        transform: Transform,
        limits: DecodeLimits,
        seed: int = 0,
        cache: ImageCache | None = None,
    ) -> None:
        self.rows, self.transform, self.limits, self.seed = rows, transform, limits, seed
        self.paths = [cache.path(row, root=root) if cache else root / row.path for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Key) -> Sample:
        epoch, position = key
        try:
            with _drawn_from(self.seed, epoch, position):
                return self.draw(position), self.rows[position].label, key
        except UndecodableImage as error:
            return error

    def draw(self, position: int) -> Any:
        """What the transform makes of a row's image."""
        return self.transform(self.read(position))

    def read(self, position: int) -> Tensor:
        """The image of a row, uint8 (3, H, W)."""
        return read_image(self.paths[position], limits=self.limits)


class EpochBatchSampler(Sampler[list[Key]]):
    """Batches of keys (epoch, position): in order, or in a new seeded order each time it is walked through.

    A batch of `batch_size` rows is cut into `parts` for each of `world` processes, of which this one is `rank`. All
    parts of a batch are equally long, so that their means average to the batch's: the last batch of an epoch is filled
    up with the epoch's first rows to a multiple of the number of parts.
    """

    def __init__(
        self,
        n: int,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        parts: int = 1,
        rank_of: tuple[int, int] = (0, 1),
    ) -> None:
        self.n, self.batch_size, self.shuffle, self.seed, self.parts = n, batch_size, shuffle, seed, parts
        self.rank, self.world = rank_of
        self.epoch = self.skip = 0

    def __len__(self) -> int:
        return -(-self.n // self.batch_size) * self.parts

    def __iter__(self) -> Iterator[list[Key]]:
        # Nothing may happen before the first batch is asked for: torch's loader makes two iterators and uses one.
        epoch, self.epoch = self.epoch, self.epoch + 1
        skip, self.skip = self.skip, 0
        for part in self.positions(epoch)[skip:]:
            yield [(epoch, position) for position in part]

    def resume(self, *, epoch: int, skip: int) -> None:
        """Go on in `epoch`, counted from 0, after its first `skip` parts."""
        self.epoch, self.skip = epoch, skip

    def positions(self, epoch: int) -> list[list[int]]:
        """The rows of every part of this process in `epoch`."""
        order = (shuffled(self.n, seed=self.seed, epoch=epoch) if self.shuffle else torch.arange(self.n)).tolist()
        pieces = self.parts * self.world
        mine = []
        for start in range(0, self.n, self.batch_size):
            batch = order[start : start + self.batch_size]
            batch += list(islice(cycle(order), -len(batch) % pieces))
            mine += [batch[piece::pieces] for piece in range(self.rank, pieces, self.world)]
        return mine


class Trained:
    """What both kinds of training batches know of their place: `order` decides it, `names` tell the rows."""

    order: EpochBatchSampler
    names: Sequence[str]
    row_labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.order)

    def resume(self, *, epoch: int, skip: int) -> None:
        """Go on in `epoch`, counted from 0, after its first `skip` batches; called before the first is asked for."""
        self.order.resume(epoch=epoch, skip=skip)

    def rows_of(self, *, epoch: int, batch: int) -> list[str]:
        """Names of the rows in a batch, both counted from 0."""
        return [self.names[position] for position in self.order.positions(epoch)[batch]]


class ImageLoader(Trained):
    """Batches of (images uint8 (B, 3, S, S), labels int64 (B,)); worker processes live until the loader is left.

    Raises UndecodableImage for an image that cannot be read by now.
    """

    def __init__(
        self, dataset: ImageDataset, order: EpochBatchSampler, *, workers: int, mix: BatchTransform | None = None
    ) -> None:
        self.order = order
        self.names = [row.path for row in dataset.rows]
        self.row_labels = [row.label for row in dataset.rows]
        self._loader: DataLoader[Sample] = DataLoader(
            dataset,
            batch_sampler=order,
            num_workers=workers,
            generator=torch.Generator().manual_seed(dataset.seed),  # else it would draw from the global one
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=partial(_collate, mix=mix, seed=dataset.seed),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # A trainer keeps its loaders in a cycle: collected there, a loader has lost the threads that would tell its
        # workers to stop, and waits five seconds for each.
        del self._loader

    def __iter__(self) -> Iterator[Batch]:
        """One pass over the rows."""
        for batch in self._loader:
            if isinstance(batch, UndecodableImage):
                raise batch
            yield batch


def _collate(samples: Sequence[Sample], *, mix: BatchTransform | None, seed: int) -> Batch | UndecodableImage:
    """One batch; what `mix` draws depends on the seed and the keys alone."""
    whole = [sample for sample in samples if not isinstance(sample, UndecodableImage)]
    if len(whole) < len(samples):
        return next(sample for sample in samples if isinstance(sample, UndecodableImage))
    images, labels = default_collate([image for image, _, _ in whole]), torch.tensor([label for _, label, _ in whole])
    if mix is None:
        return images, labels
    with _drawn_from(seed, -1, *(number for _, _, key in whole for number in key)):
        return mix(images, labels)


class FeatureBatches(Trained):
    """Batches of rows that already lie in memory: (features (B, P), labels (B,)), without a loader's overhead."""

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        seed: int | None = None,
        parts: int = 1,
        names: Sequence[str] | None = None,
    ) -> None:
        self.features, self.labels = features, labels
        self.order = EpochBatchSampler(
            len(labels), batch_size=batch_size, shuffle=seed is not None, seed=seed or 0, parts=parts
        )
        self.row_labels = labels.tolist()
        self.names = names if names is not None else [f"row {i}" for i in range(len(labels))]

    def __iter__(self) -> Iterator[Batch]:
        """One pass; in a new seeded order each time when a seed was given."""
        for keys in self.order:
            chosen = [position for _, position in keys]
            yield self.features[chosen], self.labels[chosen]


@contextmanager
def _drawn_from(*numbers: int) -> Iterator[None]:
    """Draw what is drawn inside from `numbers`, and leave the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed the accelerators anew for every image.
        torch.default_generator.manual_seed(hash(numbers) % 2**63)
        yield


def shuffled(n: int, *, seed: int, epoch: int) -> Tensor:
    """A permutation (n,) that seed and epoch alone decide."""
    generator = torch.Generator().manual_seed(hash((seed, epoch)) % 2**63)
    return torch.randperm(n, generator=generator)
