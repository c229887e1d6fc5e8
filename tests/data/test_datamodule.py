import shutil
from multiprocessing import active_children

import pytest
import torch

from streetvision.contracts.split_contracts import Row
from streetvision.data.augmentation import get_batch_transform, get_train_transforms, get_val_transforms
from streetvision.data.config import DEFAULT_LIMITS, AugmentationConfig, LoaderConfig
from streetvision.data.datamodule import EpochBatchSampler, FeatureBatches, ImageDataset, ImageLoader, shuffled
from streetvision.data.image_file import UndecodableImage
from streetvision.io.atomic import sha256_file


def rows_of(scenes):
    lines = (scenes / "index.csv").read_text().splitlines()[1:17]
    fields = (line.split(",") for line in lines)
    return tuple(Row(f[0], int(f[1]), sha256_file(scenes / f[0]), 96, 72, brightness=0.5) for f in fields)


def loader(scenes, *, workers=0, seed=0, augment=True, mix=None):
    train = get_train_transforms(AugmentationConfig(), image_size=32)
    transform = train if augment else get_val_transforms(image_size=32)
    rows = rows_of(scenes)
    dataset = ImageDataset(rows, root=scenes, transform=transform, limits=DEFAULT_LIMITS, seed=seed)
    return ImageLoader(
        dataset, EpochBatchSampler(len(rows), batch_size=5, shuffle=augment, seed=seed), workers=workers, mix=mix
    )


def epochs(batches, n=2):
    return [torch.cat([images for images, _ in batches]) for _ in range(n)]


def test_evaluation_images_are_in_order_and_deterministic(scenes):
    batches = loader(scenes, augment=False)
    assert [tuple(images.shape) for images, _ in batches] == [(5, 3, 32, 32)] * 2 + [(3, 3, 32, 32)] * 2
    first, second = epochs(batches)
    assert first.dtype == torch.uint8
    assert torch.equal(first, second)
    labels = torch.cat([labels for _, labels in batches]).tolist()
    assert labels == [row.label for row in rows_of(scenes)]


def test_random_transforms_depend_on_seed_and_epoch_and_not_on_workers(scenes):
    alone = epochs(loader(scenes))
    assert not torch.equal(alone[0], alone[1])
    shared = epochs(loader(scenes, workers=2))
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))
    assert not torch.equal(alone[0], epochs(loader(scenes, seed=1))[0])


def test_the_global_generator_is_not_changed(scenes):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(loader(scenes, augment=False))
    assert torch.equal(torch.rand(3), expected)


def test_workers_stop_on_exit_even_if_a_reference_cycle_keeps_the_loader(scenes):
    with loader(scenes, workers=1) as batches:
        batches.trainer = [batches]
        list(batches)
        assert len(active_children()) == 1
    assert active_children() == []


@pytest.mark.parametrize("workers", [0, 1])
def test_the_error_names_a_missing_image(scenes, workers):
    missing = Row(path="images/missing.jpg", label=0, sha256="0" * 64, width=1, height=1, brightness=0.5)
    transform = get_val_transforms(image_size=8)
    dataset = ImageDataset((*rows_of(scenes), missing), root=scenes, transform=transform, limits=DEFAULT_LIMITS)
    order = EpochBatchSampler(17, batch_size=4, shuffle=False)
    with ImageLoader(dataset, order, workers=workers) as batches, pytest.raises(UndecodableImage) as caught:
        list(batches)
    assert caught.value.message == f"{str(scenes / missing.path)!r} does not exist"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_has_changed_is_named(scenes, tmp_path, workers):
    folder = shutil.copytree(scenes, tmp_path / "photos")
    rows = rows_of(scenes)
    (folder / rows[5].path).write_bytes((folder / rows[5].path).read_bytes() + b"x")
    dataset = ImageDataset(rows, root=folder, transform=get_val_transforms(image_size=8), limits=DEFAULT_LIMITS)
    with pytest.raises(UndecodableImage) as caught:
        list(ImageLoader(dataset, EpochBatchSampler(16, batch_size=4, shuffle=False), workers=workers))
    assert str(folder / rows[5].path) in caught.value.message
    assert "has changed" in caught.value.message


@pytest.mark.parametrize(("n", "batch_size"), [(10, 3), (9, 3), (2, 5)])
def test_feature_batches_have_every_row_once_per_epoch(n, batch_size):
    features, labels = torch.arange(n)[:, None].float(), torch.arange(n)
    batches = FeatureBatches(features, labels, batch_size=batch_size, seed=3)
    first = list(batches)
    assert len(first) == len(batches)
    for x, y in first:
        assert torch.equal(x[:, 0].long(), y)
    assert sorted(torch.cat([y for _, y in first]).tolist()) == list(range(n))


@pytest.mark.parametrize(("n", "batch_size"), [(33, 16), (17, 16), (32, 16), (5, 16), (1, 16), (50, 7), (101, 10)])
def test_no_batch_of_an_epoch_is_much_shorter_than_the_others(n, batch_size):
    order = EpochBatchSampler(n, batch_size=batch_size, shuffle=True)
    sizes = [len(batch) for batch in order.positions(0)]
    assert len(sizes) == len(order) == -(-n // batch_size)
    assert max(sizes) <= batch_size
    assert min(sizes) >= min(n, batch_size / 2)
    assert sorted(row for batch in order.positions(0) for row in batch) == list(range(n))


@pytest.mark.parametrize(("n", "batch_size"), [(20, 16), (36, 16), (56, 16), (68, 32)])
def test_no_row_is_repeated_where_the_micro_batches_divide_the_rows(n, batch_size):
    rows = []
    for rank in range(2):
        order = EpochBatchSampler(
            n, batch_size=batch_size, shuffle=True, micro_batches=2, rank_and_world_size=(rank, 2)
        )
        rows += [row for batch in order.positions(0) for row in batch]
    assert sorted(rows) == list(range(n))


def test_orders_differ_by_epoch_and_seed():
    assert torch.equal(shuffled(50, seed=0, epoch=0), shuffled(50, seed=0, epoch=0))
    assert not torch.equal(shuffled(50, seed=0, epoch=0), shuffled(50, seed=0, epoch=1))
    assert not torch.equal(shuffled(50, seed=0, epoch=0), shuffled(50, seed=1, epoch=0))


@pytest.mark.slow
def test_mixed_batches_depend_on_seed_and_epoch_and_not_on_workers(scenes):
    mix = get_batch_transform(AugmentationConfig(mixup_alpha=1.0), image_size=(32, 32), patch_size=16)
    results = []
    for workers in (0, 2):
        with loader(scenes, workers=workers, mix=mix) as batches:
            results.append([(images, shares) for _ in range(2) for images, shares in batches])
    alone, shared = results
    assert all(torch.equal(a, b) for one, two in zip(alone, shared, strict=True) for a, b in zip(one, two, strict=True))
    assert alone[0][1].shape == (5, 2)


@pytest.mark.parametrize(
    ("n", "batch_size", "micro_batches", "world_size"),
    [(20, 8, 2, 2), (21, 8, 4, 1), (3, 8, 2, 2), (16, 4, 1, 2), (20, 16, 2, 2)],
)
def test_micro_batches_of_all_processes_form_the_batches_of_one(n, batch_size, micro_batches, world_size):
    settings = {"batch_size": batch_size, "shuffle": True, "seed": 4}
    whole = EpochBatchSampler(n, **settings).positions(1)
    per_rank = [
        EpochBatchSampler(n, **settings, micro_batches=micro_batches, rank_and_world_size=(rank, world_size)).positions(
            1
        )
        for rank in range(world_size)
    ]
    assert {len(batches) for batches in per_rank} == {len(whole) * micro_batches}
    for number, batch in enumerate(whole):
        pieces = [
            piece for batches in per_rank for piece in batches[number * micro_batches : (number + 1) * micro_batches]
        ]
        assert len({len(piece) for piece in pieces}) == 1
        rows = [row for piece in pieces for row in piece]
        assert set(batch) <= set(rows)
        assert len(rows) - len(batch) < micro_batches * world_size


def test_an_epoch_can_be_resumed_after_some_batches(scenes):
    batches = loader(scenes)
    whole = [images for images, _ in batches]
    batches.resume(epoch=0, skip=2)
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], [images for images, _ in batches], strict=True))
    assert batches.rows_of(epoch=0, batch=0) == [rows_of(scenes)[i].path for i in batches.order.positions(0)[0]]


def test_the_number_of_workers_follows_the_cpu_cores_unless_it_is_set(monkeypatch):
    for cores, expected in ((1, 0), (2, 0), (8, 6)):
        monkeypatch.setattr("streetvision.data.config.usable_cores", lambda cores=cores: cores)
        assert LoaderConfig().worker_count == expected
    assert LoaderConfig(num_workers=3).worker_count == 3
