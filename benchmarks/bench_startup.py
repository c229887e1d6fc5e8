"""`streetvision dev bench startup`: the help text, an error, and the first prediction of a server's process.

They are compared with starting Python, importing torch, and importing the libraries of the server. The seconds of a
first prediction are CPU time of its process.
"""

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.bench_inference import export_to, scene_bundle
from benchmarks.figures import REPEATS, Figure, interleaved_median
from streetvision.contracts.progress import Progress

USER_ERROR = 2
"""What the command ends with when it is the user's mistake."""
SCENES = 24
LIBRARIES = "import fastapi, jinja2, numpy, onnxruntime, PIL.Image, safetensors, scipy.special, simplejpeg"
FIRST_PREDICTION = """
import sys
import streetvision.serving.launch
from streetvision import load_bundle
load_bundle(sys.argv[1]).predict(sys.argv[2])
assert "torch" not in sys.modules
"""
REPORT = """
import re, time
print(time.process_time(), re.search("VmHWM: *([0-9]+)", open("/proc/self/status").read().replace("\\t", " "))[1])
"""


def bench_startup(progress: Progress) -> list[Figure]:
    """Seconds until the command has ended; then those of a first prediction, and its memory."""

    def python(*arguments: str, code: int = 0) -> Callable[[], object]:
        return partial(_run, arguments, code)

    ours, floor = interleaved_median(python("-m", "streetvision", "--help"), python("-c", "pass"))
    mistake, torch = interleaved_median(
        python("-m", "streetvision", "train", "training.mode=froze", code=USER_ERROR), python("-c", "import torch")
    )
    return [
        Figure("streetvision --help", ours, "python -c pass", floor),
        Figure("a setting that does not exist, refused", mistake, "python -c 'import torch'", torch),
        *_first_prediction(progress),
    ]


def _first_prediction(progress: Progress) -> list[Figure]:
    """Import of the server, and the first prediction of a bundle for ONNX Runtime with the packaged backbone."""
    # These load torch, which the measured processes do not.
    from streetvision.models.config import ModelConfig
    from streetvision.models.module import load_classifier
    from streetvision.pipeline.config import compose_config

    with tempfile.TemporaryDirectory() as name:
        config = ModelConfig(backbone=compose_config([]).model.backbone, pooling="cls", layers=1)
        made, images, labels = scene_bundle(
            load_classifier(config).eval(), Path(name), progress, fitted=SCENES, evaluated=SCENES
        )
        bundle = export_to("onnx", "fp32", made, images, labels, Path(name) / "onnx", progress)
        ours, theirs = [], []
        for _ in range(REPEATS):
            ours.append(_cost(FIRST_PREDICTION, str(bundle.folder), str(images[0])))
            theirs.append(_cost(LIBRARIES))
    seconds, memory = map(statistics.median, zip(*ours, strict=True))
    libraries, base = map(statistics.median, zip(*theirs, strict=True))
    peer = "import of its libraries"
    return [
        Figure("import of the server and a first prediction, ONNX Runtime", seconds, peer, libraries),
        Figure("the same: memory", memory, peer, base, "MB"),
    ]


def _cost(code: str, *arguments: str) -> tuple[float, float]:
    """Seconds of CPU time and the largest memory in MB of a process that runs `code`."""
    command = [sys.executable, "-c", code + REPORT, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    seconds, kilobytes = done.stdout.split()[-2:]
    return float(seconds), int(kilobytes) * 1024 / 1e6


def _run(arguments: Sequence[str], code: int) -> None:
    done = subprocess.run([sys.executable, *arguments], check=False, capture_output=True)  # noqa: S603
    assert done.returncode == code, done.stderr
