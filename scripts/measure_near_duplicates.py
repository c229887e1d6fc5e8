"""How fast near-duplicates are found, how many altered copies are, and how much else.

python scripts/measure_near_duplicates.py                                   # speed, and drawn scenes
python scripts/measure_near_duplicates.py $STREETVISION_REAL_DATA/gtsrb_roadwork   # and crops by track
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
    """The image without `share` of its width and height at each edge."""
    x, y = round(image.width * share), round(image.height * share)
    return image.crop((x, y, image.width - x, image.height - y))


ALTERED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "encoded again at 40": lambda image: image,
    "brighter by 25 %": lambda image: ImageEnhance.Brightness(image).enhance(1.25),
    "2.5 % off each edge": lambda image: trimmed(image, 0.025),
    "5 % off each edge": lambda image: trimmed(image, 0.05),
    "5 % off two edges": lambda image: image.crop((0, 0, round(image.width * 0.95), round(image.height * 0.95))),
}


def encoded_look(image: Image.Image, quality: int) -> PerceptualHash:
    """The look of an image after a JPEG of `quality`."""
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=quality)
    return compute_hash(decode_image(jpeg.getvalue()))


def speed() -> None:
    """Time of all pairs among hashes, on one core, and the most memory held so far."""
    for count in (100_000, 1_000_000):
        hashes = np.random.default_rng(0).integers(0, 2**64, count, dtype=np.uint64)
        started = time.process_time()
        pairs = pairs_within(hashes, RADIUS)
        took, held = time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        say(f"{count:,} hashes, radius {RADIUS}: {took:.2f} s of one core, {len(pairs):,} pairs, {held:,.0f} MiB")


def copies() -> None:
    """Share of altered copies of drawn scenes that are found, and pairs of different scenes that are merged."""
    pictures = [Image.fromarray(draw_scene(seed, SceneConfig()).image) for seed in range(SCENES)]
    originals = [encoded_look(picture, 90) for picture in pictures]
    merged = len(find_near_duplicates(stack_hashes(originals)).pairs)
    say(f"{SCENES} scenes: {merged} of {SCENES * (SCENES - 1) // 2} pairs of different ones merged")
    for name, alter in ALTERED.items():
        quality = 40 if name == "encoded again at 40" else 85
        altered = [encoded_look(alter(picture), quality) for picture in pictures]
        found = find_near_duplicates(stack_hashes([*originals, *altered]))
        right = sum(other - one == SCENES for one, other in found.pairs.tolist())
        say(f"  {name}: {right / SCENES:.3f} found")


def tracks(folder: Path) -> None:
    """Recall of a track's neighbours and merges across tracks, for some limits of the correlation."""
    rows = list(csv.DictReader((folder / "index.csv").open()))
    looks = stack_hashes(compute_hash(read_image(folder / row["path"])) for row in rows)
    track = np.array([row["group"] for row in rows])
    order = np.lexsort((np.array([row["path"] for row in rows]), track))
    neighbours = {tuple(sorted(pair)) for pair in pairwise(order) if track[pair[0]] == track[pair[1]]}
    different = sum(int((track != one).sum()) for one in track) // 2
    say(f"{len(rows)} crops, {looks.tiny.mean():.0%} of them under 64 pixels")
    for correlation in (0.90, 0.95, 0.97):
        found = find_near_duplicates(looks, correlation=correlation)
        pairs = found.pairs
        false = int((track[pairs[:, 0]] != track[pairs[:, 1]]).sum())
        recall = len(neighbours & set(map(tuple, pairs.tolist()))) / len(neighbours)
        largest = np.bincount(found.clusters).max()
        say(
            f"  correlation {correlation}: {recall:.3f} of neighbours found, {false / different * 1e6:.0f} merges in a "
            f"million pairs of different tracks, largest cluster {largest}"
        )


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    speed()
    copies()
    for argument in sys.argv[1:]:
        tracks(Path(argument))
