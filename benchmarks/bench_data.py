"""`streetvision dev bench data`: the training loader compared with ImageFolder and its own decoder, and the scan."""

import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from benchmarks.figures import Figure, interleaved_median, interleaved_medians
from streetvision.contracts.progress import Progress
from streetvision.contracts.split_contracts import Row
from streetvision.data.augmentation import get_train_transforms
from streetvision.data.cache import ImageCache
from streetvision.data.config import DEFAULT_LIMITS, AugmentationConfig, PairConfig
from streetvision.data.datamodule import EpochBatchSampler, ImageDataset, ImageLoader
from streetvision.data.decode import read_image
from streetvision.data.records import ImageListing, ImageRecord
from streetvision.data.scan import scan_images
from streetvision.data.two_views import TwoViews
from streetvision.io.atomic import sha256_file
from streetvision.synthetic.scenes import SceneConfig, write_scenes

IMAGES, WIDTH, HEIGHT = 96, 1024, 768
SCENES = 8
LARGE = (4032, 3024)
"""Width and height of 12 megapixels."""
GRAIN = 6.0
"""Standard deviation of the noise, in gray levels: files of about 250 kB."""
IMAGE_SIZE, BATCH, CACHE_PIXELS = 224, 16, 256


def bench_data(progress: Progress) -> list[Figure]:
    """Seconds for one pass over the same JPEGs with the same transforms, one worker each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = photographs(folder / "photos", progress, count=IMAGES)
        rows = [
            Row(path=str(path), label=i % 2, sha256=sha256_file(path), width=WIDTH, height=HEIGHT, brightness=0.5)
            for i, path in enumerate(paths)
        ]
        cache = ImageCache(folder / "cache", pixels=CACHE_PIXELS)
        workers = os.cpu_count() or 1
        cache.build(rows, root=folder, limits=DEFAULT_LIMITS, workers=workers, progress=progress)
        cached, plain = _ours(rows, folder, cache), _ours(rows, folder, None)
        theirs, ceiling = _walk(_image_folder(paths, folder)), _decoder(rows, folder, cache)
        figures = []
        for label, ours, baseline_label, baseline in (
            ("loader, from originals", plain, "ImageFolder, PIL, the same transforms", theirs),
            ("loader, from the cache", cached, "ImageFolder, PIL, the same transforms", theirs),
            ("loader, from the cache", cached, "decode and transform in a bare loop", ceiling),
        ):
            seconds = interleaved_median(_walk(ours), baseline)
            figures.append(Figure(f"{label}, {IMAGES} images", seconds[0], baseline_label, seconds[1]))
        figures.append(_scan(photographs(folder / "large", progress, count=2, size=LARGE)))
        return [*figures, _views(read_image(cache.path(rows[0], root=folder)))]


def photographs(folder: Path, progress: Progress, *, count: int, size: tuple[int, int] | None = None) -> list[Path]:
    """JPEGs of (width, height) as detailed as photographs: a few scenes, enlarged, each copy with its own noise."""
    width, height = size or (WIDTH, HEIGHT)
    write_scenes(folder / "scenes", SceneConfig(count=SCENES, width=width // 4, height=height // 4), progress)
    scenes = sorted((folder / "scenes").rglob("*.jpg"))
    paths = []
    for number in range(count):
        large = Image.open(scenes[number % SCENES]).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        grain = np.random.default_rng(number).normal(0.0, GRAIN, (height, width, 3))
        pixels = np.clip(np.asarray(large) + grain, 0, 255).astype(np.uint8)
        paths.append(folder / f"{number:03}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=90)
    return paths


def _scan(paths: list[Path]) -> Figure:
    """CPU seconds to scan a photograph, with its hashes, compared with decoding it at full size."""
    listing = ImageListing(paths[0].parent, tuple(ImageRecord(path.name, 0) for path in paths))
    ours, theirs = interleaved_medians(
        (
            lambda: scan_images(listing, class_names=("no", "yes"), with_hashes=True),
            lambda: [read_image(path) for path in paths],
        ),
        clock=time.process_time,
    )
    return Figure(
        "scan of a JPEG of 12 megapixels, with its hashes",
        ours / len(paths),
        "decoding it at full size",
        theirs / len(paths),
    )


def _ours(rows: list[Row], root: Path, cache: ImageCache | None) -> ImageLoader:
    transform = get_train_transforms(AugmentationConfig(), image_size=IMAGE_SIZE)
    dataset = ImageDataset(rows, root=root, transform=transform, limits=DEFAULT_LIMITS, cache=cache)
    return ImageLoader(dataset, EpochBatchSampler(len(rows), batch_size=BATCH, shuffle=True), workers=1)


def _image_folder(paths: list[Path], folder: Path) -> Iterable[object]:
    """The loader of a usual tutorial: PIL images through the same steps, tensors at the end."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    for i, path in enumerate(paths):
        link = folder / "folder" / str(i % 2) / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    policy = AugmentationConfig()
    jitter = policy.color_jitter
    steps = [
        v2.RandomResizedCrop(IMAGE_SIZE, scale=policy.crop_scale, ratio=(0.8, 1.8)),
        v2.RandomHorizontalFlip(policy.flip_probability),
        v2.ColorJitter(jitter, jitter, jitter, 0.1 * jitter),
    ]
    transform = v2.Compose([*steps, v2.PILToTensor()])
    dataset = ImageFolder(str(folder / "folder"), transform=transform)
    return DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=1, persistent_workers=True)


def _decoder(rows: list[Row], root: Path, cache: ImageCache) -> Callable[[], None]:
    """Decoding and transforms alone, image by image."""
    transform = get_train_transforms(AugmentationConfig(), image_size=IMAGE_SIZE)
    paths = [cache.path(row, root=root) for row in rows]

    def walk() -> None:
        for path in paths:
            transform(read_image(path))

    return walk


def _views(image: Tensor) -> Figure:
    """Two views of a small copy for self-supervised learning, ten times, compared with torchvision's own steps."""
    from torchvision.transforms import v2

    ours = TwoViews(PairConfig(), image_size=(IMAGE_SIZE, IMAGE_SIZE))
    steps = [
        v2.RandomResizedCrop(IMAGE_SIZE, scale=(0.2, 1.0), antialias=True),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
        v2.RandomGrayscale(0.2),
        v2.RandomApply([v2.GaussianBlur(2 * round(IMAGE_SIZE / 20) + 1, (0.1, 2.0))], p=0.5),
    ]
    theirs = v2.Compose(steps)
    seconds = interleaved_median(lambda: [ours(image) for _ in range(10)], lambda: [theirs(image) for _ in range(20)])
    return Figure("two views, ten times", seconds[0], "the same steps of torchvision", seconds[1])


def _walk(batches: Iterable[object]) -> Callable[[], None]:
    def walk() -> None:
        for _ in batches:
            pass

    return walk
