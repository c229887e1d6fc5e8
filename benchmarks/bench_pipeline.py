"""`streetvision dev bench pipeline`: from labeled images to an evaluated bundle, compared with a baseline script."""

import importlib.util
import subprocess
import sys
import tempfile
from itertools import count
from pathlib import Path

from benchmarks.figures import Figure, interleaved_median
from streetvision.contracts.errors import StreetVisionError
from streetvision.contracts.progress import Progress
from streetvision.synthetic.scenes import SceneConfig, write_scenes

IMAGES = 600
REPEATS = 3


def bench_pipeline(progress: Progress) -> list[Figure]:
    """Two commands each in interpreters of their own; raises StreetVisionError where one of them fails."""
    if importlib.util.find_spec("sklearn") is None:
        raise StreetVisionError(
            "scikit-learn, which the peer of this benchmark needs, is not installed",
            "install it: pip install scikit-learn",
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scenes, numbers = folder / "scenes", count()
        write_scenes(scenes, SceneConfig(count=IMAGES), progress)

        def ours() -> None:
            run = folder / f"run_{next(numbers)}"
            _python("-m", "streetvision", "train", "training=frozen", f"data.root={scenes}", f"run_dir={run}")
            _python("-m", "streetvision", "evaluate", "--bundle", str(run / "export"))

        def again() -> None:
            _python(
                "-m", "streetvision", "train", "training=frozen", f"data.root={scenes}", f"run_dir={folder / 'run_0'}"
            )

        def loose() -> None:
            _python("-m", "benchmarks.baseline_script", str(scenes), str(folder / "loose.pt"))

        first, by_hand = interleaved_median(ours, loose, repeats=REPEATS)
        repeated, fresh = interleaved_median(again, ours, repeats=1)
    return [
        Figure(f"from {IMAGES} scenes to an evaluated bundle", first, "a loose script, nothing checked", by_hand),
        Figure("`train` once more, all being done", repeated, "the first time, with `evaluate`", fresh),
    ]


def _python(*arguments: str) -> None:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)  # noqa: S603 (our own words)
    if done.returncode:
        raise StreetVisionError(f"{' '.join(arguments[:3])} failed: {done.stderr.strip()}", None)
