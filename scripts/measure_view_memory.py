"""Peak memory of `streetvision predict` with a multi-view bundle, on 10 and on 100 images of 4032 x 3024.

python scripts/measure_view_memory.py            # trains a small bundle first
python scripts/measure_view_memory.py BUNDLE
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 4032, 3024
COUNTS = (10, 100)
VIEWS = ["phase4c=cvfm", "phase4c.epochs=2", "pipeline.phases=[phase1,phase2,phase4c_cvfm,phase5,phase6]"]


def streetvision(*arguments: object) -> float:
    """Run a command in another process, discard its output, and return its peak memory in MiB."""
    command = [sys.executable, "-m", "streetvision", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss / 1024


def small_bundle(folder: Path) -> Path:
    """Train a bundle on a few small scenes, with the packaged backbone and multi-view fusion."""
    sizes = ["scenes.count=160", "scenes.width=96", "scenes.height=72", "training.epochs=4", "training.batch_size=16"]
    streetvision("train", f"run_dir={folder / 'run'}", *sizes, *VIEWS)
    return folder / "run" / "export"


def photographs(folder: Path, count: int) -> Path:
    """Write `count` large JPEG files of smooth noise, as hard links to one file."""
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT // 32, WIDTH // 32, 3), dtype=np.uint8)
    folder.mkdir()
    Image.fromarray(noise).resize((WIDTH, HEIGHT)).save(folder / "0.jpg", quality=90)
    for number in range(1, count):
        (folder / f"{number}.jpg").hardlink_to(folder / "0.jpg")
    return folder


def main(bundle: Path | None) -> None:
    """Print the peak memory and the time for each number of images."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = bundle or small_bundle(folder)
        for count in COUNTS:
            images, started = photographs(folder / str(count), count), time.perf_counter()
            peak = streetvision("predict", "--bundle", bundle, images)
            seconds = time.perf_counter() - started
            sys.stdout.write(f"{count} images of {WIDTH}x{HEIGHT}: peak {peak:,.0f} MiB, {seconds:.0f} s\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
