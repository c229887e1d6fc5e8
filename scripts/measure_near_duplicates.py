"""Speed, recall and false merges of the near-duplicate search.

python scripts/measure_near_duplicates.py                                          # speed, and drawn scenes
python scripts/measure_near_duplicates.py --tracks $STREETVISION_REAL_DATA/gtsrb_roadwork
python scripts/measure_near_duplicates.py --photographs $STREETVISION_REAL_DATA/pothole_br_df/images
"""

import csv
import io
import resource
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from streetvision.data.config import RADIUS
from streetvision.data.decode import as_tensor, read_image
from streetvision.data.grouping.hamming import pairs_within
from streetvision.data.grouping.near_duplicates import find_near_duplicates
from streetvision.data.grouping.perceptual_hash import PerceptualHash, compute_hash, stack_hashes
from streetvision.data.image_file import decode_file
from streetvision.data.scan import scan_size
from streetvision.synthetic.scenes import SceneConfig, draw_scene

SCENES = 400


def trimmed(image: Image.Image, share: float) -> Image.Image:
    """The image without the fraction `share` of its width and height at each edge."""
    x, y = round(image.width * share), round(image.height * share)
    return image.crop((x, y, image.width - x, image.height - y))


def captioned(image: Image.Image) -> Image.Image:
    """The image with white text on a black bar over its lower twelfth."""
    image = image.copy()
    top, draw = image.height * 11 // 12, ImageDraw.Draw(image)
    draw.rectangle((0, top, image.width, image.height), fill="black")
    draw.text((4, top + 2), "2026-05-01 12:03:11  km 12.3", fill="white")
    return image


ALTERATIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "encoded again at 40": lambda image: image,
    "brighter by 25 %": lambda image: ImageEnhance.Brightness(image).enhance(1.25),
    "2.5 % off each edge": lambda image: trimmed(image, 0.025),
    "5 % off each edge": lambda image: trimmed(image, 0.05),
    "5 % off two edges": lambda image: image.crop((0, 0, round(image.width * 0.95), round(image.height * 0.95))),
    "rotated by 2 degrees": lambda image: image.rotate(2, Image.Resampling.BICUBIC),
    "caption over the lower twelfth": lambda image: captioned(image),
    "caption below": lambda image: captioned(ImageOps.expand(image, (0, 0, 0, image.height // 12))),
}


def jpeg_hash(image: Image.Image, quality: int) -> PerceptualHash:
    """The perceptual hash of an image after JPEG compression with `quality`."""
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=quality)
    return compute_hash(as_tensor(decode_file(jpeg.getvalue(), decode_size=scan_size).pixels))


def speed() -> None:
    """Time to find all pairs of similar hashes on one core, and the peak memory of the process."""
    for count in (100_000, 1_000_000):
        hashes = np.random.default_rng(0).integers(0, 2**64, count, dtype=np.uint64)
        started = time.process_time()
        pairs = pairs_within(hashes, RADIUS)
        seconds = time.process_time() - started
        mebibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print_line(
            f"{count:,} hashes, radius {RADIUS}: {seconds:.2f} s of one core, {len(pairs):,} pairs, "
            f"{mebibytes:,.0f} MiB"
        )


def copies(name: str, pictures: Sequence[Image.Image], originals: Sequence[PerceptualHash]) -> None:
    """Recall of altered copies of pictures, and the number of different pictures that are near-duplicates."""
    n = len(pictures)
    started = time.process_time()
    duplicates = find_near_duplicates(stack_hashes(originals))
    seconds = time.process_time() - started
    print_line(
        f"{n} {name}: of {n * (n - 1) // 2} pairs of different ones, {duplicates.candidates} have similar hashes, "
        f"{duplicates.copies.sum()} are copies, {(~duplicates.copies).sum()} are similar views; {seconds:.2f} s"
    )
    for alteration, alter in ALTERATIONS.items():
        quality = 40 if alteration == "encoded again at 40" else 85
        altered = [jpeg_hash(alter(picture), quality) for picture in pictures]
        duplicates = find_near_duplicates(stack_hashes([*originals, *altered]))
        # The altered copy of picture i is image i + n.
        related = duplicates.pairs[:, 1] - duplicates.pairs[:, 0] == n
        found, exact = related.sum() / n, (related & duplicates.copies).sum() / n
        print_line(f"  {alteration}: {found:.3f} found, {exact:.3f} as copies")


def scenes() -> None:
    """The measurement on drawn scenes."""
    pictures = [Image.fromarray(draw_scene(seed, SceneConfig()).image) for seed in range(SCENES)]
    copies("scenes", pictures, [jpeg_hash(picture, 90) for picture in pictures])


def photographs(folder: Path) -> None:
    """The measurement on the photographs of a folder, which must not contain copies."""
    paths = sorted(folder.iterdir())
    pictures = [Image.open(path).convert("RGB") for path in paths]
    copies("photographs", pictures, [compute_hash(read_image(path, decode_size=scan_size)) for path in paths])


def tracks(folder: Path) -> None:
    """Recall of neighboring frames of a track, and merges of different tracks, for several correlation limits."""
    rows = list(csv.DictReader((folder / "index.csv").open()))
    hashes = stack_hashes(compute_hash(read_image(folder / row["path"], decode_size=scan_size)) for row in rows)
    track = np.array([row["group"] for row in rows])
    order = np.lexsort((np.array([row["path"] for row in rows]), track))
    neighbors = {tuple(sorted(pair)) for pair in pairwise(order) if track[pair[0]] == track[pair[1]]}
    different = sum(int((track != name).sum()) for name in track) // 2
    print_line(f"{len(rows)} crops, {hashes.tiny.mean():.0%} of them under 64 pixels")
    for correlation in (0.90, 0.95, 0.97):
        duplicates = find_near_duplicates(hashes, correlation=correlation)
        pairs = duplicates.pairs
        false = int((track[pairs[:, 0]] != track[pairs[:, 1]]).sum())
        recall = len(neighbors & set(map(tuple, pairs.tolist()))) / len(neighbors)
        largest = np.bincount(duplicates.clusters).max()
        print_line(
            f"  correlation {correlation}: {recall:.3f} of neighbors found, {false / different * 1e6:.0f} merges per "
            f"million pairs of different tracks, largest cluster {largest}"
        )


def print_line(text: str) -> None:
    """Print a line without buffering."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    match sys.argv[1:]:
        case []:
            speed()
            scenes()
        case ["--tracks", folder]:
            tracks(Path(folder))
        case ["--photographs", folder]:
            photographs(Path(folder))
        case _:
            sys.exit(__doc__)
