"""Speed, recall and false merges of the near-duplicate search.

python scripts/measure_near_duplicates.py                                   # speed, and procedural scenes
python scripts/measure_near_duplicates.py $STREETVISION_REAL_DATA/gtsrb_roadwork   # also crops by track
"""

import csv
import io
import resource
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance

from streetvision.data.config import RADIUS
from streetvision.data.decode import decode_image, read_image
from streetvision.data.grouping.hamming import pairs_within
from streetvision.data.grouping.near_duplicates import find_near_duplicates
from streetvision.data.grouping.perceptual_hash import PerceptualHash, compute_hash, stack_hashes
from streetvision.synthetic.scenes import SceneConfig, draw_scene

SCENES = 400


def trimmed(image: Image.Image, share: float) -> Image.Image:
    """The image without the fraction `share` of its width and height at each edge."""
    x, y = round(image.width * share), round(image.height * share)
    return image.crop((x, y, image.width - x, image.height - y))


ALTERATIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "encoded again at 40": lambda image: image,
    "brighter by 25 %": lambda image: ImageEnhance.Brightness(image).enhance(1.25),
    "2.5 % off each edge": lambda image: trimmed(image, 0.025),
    "5 % off each edge": lambda image: trimmed(image, 0.05),
    "5 % off two edges": lambda image: image.crop((0, 0, round(image.width * 0.95), round(image.height * 0.95))),
}


def jpeg_hash(image: Image.Image, quality: int) -> PerceptualHash:
    """The perceptual hash of an image after JPEG compression with `quality`."""
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=quality)
    return compute_hash(decode_image(jpeg.getvalue()))


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


def copies() -> None:
    """Recall of altered copies of procedural scenes, and the number of different scenes that are merged."""
    pictures = [Image.fromarray(draw_scene(seed, SceneConfig()).image) for seed in range(SCENES)]
    originals = [jpeg_hash(picture, 90) for picture in pictures]
    merged = len(find_near_duplicates(stack_hashes(originals)).pairs)
    print_line(f"{SCENES} scenes: {merged} of {SCENES * (SCENES - 1) // 2} pairs of different scenes merged")
    for name, alter in ALTERATIONS.items():
        quality = 40 if name == "encoded again at 40" else 85
        altered = [jpeg_hash(alter(picture), quality) for picture in pictures]
        duplicates = find_near_duplicates(stack_hashes([*originals, *altered]))
        # The altered copy of scene i is image i + SCENES.
        copies_found = sum(second - first == SCENES for first, second in duplicates.pairs.tolist())
        print_line(f"  {name}: {copies_found / SCENES:.3f} found")


def tracks(folder: Path) -> None:
    """Recall of neighbouring frames of a track, and merges of different tracks, for several correlation limits."""
    rows = list(csv.DictReader((folder / "index.csv").open()))
    hashes = stack_hashes(compute_hash(read_image(folder / row["path"])) for row in rows)
    track = np.array([row["group"] for row in rows])
    order = np.lexsort((np.array([row["path"] for row in rows]), track))
    neighbours = {tuple(sorted(pair)) for pair in pairwise(order) if track[pair[0]] == track[pair[1]]}
    different = sum(int((track != name).sum()) for name in track) // 2
    print_line(f"{len(rows)} crops, {hashes.tiny.mean():.0%} of them under 64 pixels")
    for correlation in (0.90, 0.95, 0.97):
        duplicates = find_near_duplicates(hashes, correlation=correlation)
        pairs = duplicates.pairs
        false = int((track[pairs[:, 0]] != track[pairs[:, 1]]).sum())
        recall = len(neighbours & set(map(tuple, pairs.tolist()))) / len(neighbours)
        largest = np.bincount(duplicates.clusters).max()
        print_line(
            f"  correlation {correlation}: {recall:.3f} of neighbours found, {false / different * 1e6:.0f} merges per "
            f"million pairs of different tracks, largest cluster {largest}"
        )


def print_line(text: str) -> None:
    """Print a line without buffering."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    speed()
    copies()
    for argument in sys.argv[1:]:
        tracks(Path(argument))
