"""Fuzzing of images, configurations, splits, policies and bundles: each input gives a result or one error, quickly.

python -m tests.robustness.fuzz images --n 5000
python -m tests.robustness.fuzz files --n 2000
"""

import argparse
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from streetvision.contracts.errors import StreetVisionError
from tests.conftest import edit_bundle_json

MEGABYTES = 300.0
"""Maximum additional memory of one case."""
SECONDS = 2.0
"""Maximum CPU time of one case."""
TIMEOUT_SECONDS = 30
"""After this wall time, SIGALRM ends the process."""

Check = Callable[[], object]


@dataclass
class Tally:
    """The results of all cases."""

    outcomes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    most_megabytes: float = 0.0
    most_seconds: float = 0.0


def run_cases(cases: Iterator[tuple[str, Check]], *, most_megabytes: float = MEGABYTES) -> Tally:
    """Run every (name, case). A result or a StreetVisionError passes; other errors, slow and large cases do not."""
    tally = Tally()
    for name, case in cases:
        before, started = _memory("VmRSS", reset=True), time.process_time()
        signal.alarm(TIMEOUT_SECONDS)
        try:
            case()
            outcome = "result"
        except StreetVisionError as error:
            outcome = "error" if "\n" not in error.message else f"an error of several lines: {error.message}"
        except Exception as error:
            outcome = f"{type(error).__name__}: {error} {traceback.extract_tb(error.__traceback__)[-1]}"
        signal.alarm(0)
        seconds, megabytes = time.process_time() - started, _memory("VmHWM") - before
        tally.most_seconds = max(tally.most_seconds, seconds)
        tally.most_megabytes = max(tally.most_megabytes, megabytes)
        tally.outcomes[outcome if outcome in {"result", "error"} else "crash"] += 1
        if outcome not in {"result", "error"}:
            tally.problems.append(f"{name}: {outcome}")
        if seconds > SECONDS or megabytes > most_megabytes:
            tally.problems.append(f"{name}: {seconds:.2f} s, {megabytes:.0f} MB ({outcome})")
    return tally


def _memory(field: str, *, reset: bool = False) -> float:
    """Memory of this process in MB: the current value (VmRSS), or the peak since the last reset (VmHWM)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) / 1024


def mutated(data: bytes, rng: random.Random) -> bytes:
    """`data` with one to four mutations that often break parsers."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(changed) + 1)
        # Sizes are in the headers, so half of the mutations are there.
        place = min(place, rng.randrange(64)) if rng.random() < 0.5 else place
        mutate = rng.choice(MUTATIONS)
        mutate(changed, place, rng)
    return bytes(changed)


def _flip(data: bytearray, place: int, rng: random.Random) -> None:
    for offset in range(min(rng.randint(1, 3), len(data) - place)):
        data[place + offset] ^= 1 << rng.randrange(8)


def _number(data: bytearray, place: int, rng: random.Random) -> None:
    width = rng.choice((1, 2, 4))
    value = rng.choice((0, 1, 0x7F, 0xFF, 0x1000, 0x2000, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF))
    data[place : place + width] = (value % 256**width).to_bytes(width, rng.choice(("little", "big")))


def _delete(data: bytearray, place: int, rng: random.Random) -> None:
    del data[place : place + rng.choice((1, 2, 16, len(data)))]


def _repeat(data: bytearray, place: int, rng: random.Random) -> None:
    part = data[place : place + rng.randint(1, 64)]
    data[place:place] = part * rng.choice((1, 2, 200))


def _noise(data: bytearray, place: int, rng: random.Random) -> None:
    data[place : place + rng.randint(1, 8)] = rng.randbytes(rng.randint(0, 8))


MUTATIONS = (_flip, _number, _delete, _repeat, _noise)


def image_cases(n: int, seed: int) -> Iterator[tuple[str, Check]]:
    """`n` mutated images of every supported format."""
    from streetvision.data.decode import decode_image

    seeds = image_seeds()
    for number in range(n):
        rng = random.Random(f"{seed} {number}")
        kind = sorted(seeds)[number % len(seeds)]
        mutant = mutated(seeds[kind], rng)
        yield f"{kind} {number}", lambda mutant=mutant: decode_image(mutant)


def image_seeds() -> dict[str, bytes]:
    """One small file of each format, and of variants that are decoded differently."""
    grain = np.random.default_rng(0).integers(0, 60, (48, 64, 3))
    y, x = np.mgrid[0:48, 0:64]
    picture = Image.fromarray((np.stack([3 * x, 4 * y, x + y], axis=-1) + grain).clip(0, 255).astype(np.uint8))
    deep = Image.fromarray((np.asarray(picture.convert("L")).astype(np.uint16)) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = {"save_all": True, "append_images": [picture.rotate(90), picture.rotate(180)]}
    kinds = {
        "jpeg": (picture, "JPEG", {"exif": exif}),
        "jpeg progressive": (picture, "JPEG", {"progressive": True}),
        "jpeg cmyk": (picture.convert("CMYK"), "JPEG", {}),
        "png": (picture, "PNG", {"exif": exif}),
        "png palette": (picture.convert("P"), "PNG", {"transparency": 0}),
        "png 16 bit": (deep, "PNG", {}),
        "webp": (picture, "WEBP", {}),
        "webp lossless": (picture.convert("RGBA"), "WEBP", {"lossless": True}),
        "webp animated": (picture, "WEBP", frames),
        "bmp": (picture, "BMP", {}),
        "bmp palette": (picture.convert("P"), "BMP", {}),
        "gif": (picture, "GIF", {}),
        "gif animated": (picture, "GIF", frames),
        "tiff": (picture, "TIFF", {"exif": exif}),
        "tiff lzw": (picture, "TIFF", {"compression": "tiff_lzw"}),
        "tiff deflate": (deep, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "tiff jpeg": (picture, "TIFF", {"compression": "jpeg"}),
    }
    seeds = {}
    for name, (image, kind, options) in kinds.items():
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        seeds[name] = buffer.getvalue()
    return seeds


def file_cases(n: int, seed: int, run: Path, scratch: Path) -> Iterator[tuple[str, Check]]:
    """`n` mutated files of a finished `run`, each read by its own reader."""
    targets = (
        ("config", run / "config.yaml", _read_config),
        ("splits", run / "splits.json", _read_splits),
        ("thresholds", run / "phase2" / "thresholds.json", _read_policy),
        ("scrc", run / "phase5_scrc" / "scrc_params.json", _read_policy),
        ("bundle", run / "export" / "bundle.json", _read_bundle),
        ("model", run / "export" / "model_config.json", _read_bundle),
        ("weights", run / "export" / "model.pth", _read_bundle),
    )
    for number in range(n):
        rng = random.Random(f"{seed} {number}")
        name, source, read = targets[number % len(targets)]
        original = source.read_bytes()
        structural = source.suffix == ".json" and rng.random() < 0.7
        mutant = _restructured(original, rng) if structural else mutated(original, rng)
        folder = scratch / "case"
        shutil.rmtree(folder, ignore_errors=True)
        if read is _read_bundle:
            shutil.copytree(run / "export", folder)
        folder.mkdir(exist_ok=True)
        (folder / source.name).write_bytes(mutant)
        if name in {"model", "weights"}:
            _update_digest(folder, source.name)
        elif name == "bundle" and structural:
            edit_bundle_json(folder, lambda _: None)
        yield f"{name} {number}", lambda read=read, path=folder / source.name: read(path)


ODD_VALUES = (None, True, -1, 0, 1e308, 10**30, 2**31, "", "../../x", "\u0000", [], {}, [[]], {"a": 1}, "9" * 5000, 0.5)


def _restructured(text: bytes, rng: random.Random) -> bytes:
    """The JSON with one to three values replaced, removed or duplicated."""
    value = json.loads(text)
    for _ in range(rng.randint(1, 3)):
        container, key = _random_place(value, rng)
        if container is None:
            break
        action = rng.randrange(3)
        if action == 0:
            container[key] = rng.choice(ODD_VALUES)
        elif action == 1:
            del container[key]
        elif isinstance(container, dict):
            container[f"{key}x"] = container[key]
        else:
            container.append(container[key])
    return json.dumps(value).encode()


def _random_place(value: object, rng: random.Random) -> tuple[dict | list | None, object]:
    container: dict | list | None = None
    key: object = None
    while isinstance(value, dict | list) and value and (container is None or rng.random() < 0.8):
        container = value
        key = rng.choice(sorted(value)) if isinstance(value, dict) else rng.randrange(len(value))
        value = value[key]
    return container, key


def _update_digest(folder: Path, name: str) -> None:
    """Update the digests in bundle.json for a mutated file, as an attacker would."""
    from streetvision.io.manifests import file_digest

    def update(bundle: dict[str, Any]) -> None:
        bundle["files"][name] = file_digest(folder / name).model_dump()
        if name == "model.pth":
            bundle["policy"]["scores"]["model_sha256"] = bundle["files"][name]["sha256"]

    edit_bundle_json(folder, update)


def _read_config(path: Path) -> None:
    from streetvision.pipeline.config import compose_config

    compose_config([], file=path)


def _read_splits(path: Path) -> None:
    from streetvision.data.splitting.splits_json import partition_from_json
    from streetvision.io.atomic import read_json

    partition_from_json(read_json(path), path)


def _read_policy(path: Path) -> None:
    from streetvision.io.validators import PolicyValidator

    PolicyValidator().validate(path)


def _read_bundle(path: Path) -> None:
    from streetvision.bundle.predictor import load_bundle

    load_bundle(path.parent).predict(np.zeros((48, 64, 3), dtype=np.uint8))


def finished_run(root: Path) -> Path:
    """A run of every phase on tiny scenes, with a configuration file."""
    from streetvision.cli.app import main as streetvision
    from tests.robustness.chaos import TINY_RUN

    try:
        streetvision(["train", f"run_dir={root}", *TINY_RUN])
    except SystemExit as stop:
        assert not stop.code
    write_config(root)
    return root


def write_config(root: Path) -> None:
    """Write a YAML file of settings to mutate."""
    from tests.robustness.chaos import TINY_RUN

    nested: dict[str, object] = {}
    for setting in [*TINY_RUN, "data.root=photos", "data.class_names=[a,b]", "phase5.method=temperature"]:
        key, _, value = setting.partition("=")
        *parents, last = key.split(".")
        place = nested
        for parent in parents:
            if not isinstance(place.get(parent), dict):
                place[parent] = {}
            place = place[parent]
        place[last] = yaml.safe_load(value)
    nested.pop("model", None)
    (root / "config.yaml").write_text(yaml.safe_dump(nested))


def main() -> int:
    """Print a line for each failed case, and a summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", choices=("images", "files"))
    parser.add_argument("--n", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if options.inputs == "images":
            cases = image_cases(options.n, options.seed)
        else:
            cases = file_cases(options.n, options.seed, finished_run(scratch / "run"), scratch)
        tally = run_cases(cases)
    for problem in tally.problems:
        sys.stdout.write(f"{problem}\n")
    most = f"at most {tally.most_seconds:.2f} s and {tally.most_megabytes:.0f} MB"
    sys.stdout.write(f"{options.n} {options.inputs}: {dict(tally.outcomes)}, {most}; {len(tally.problems)} problems\n")
    return min(1, len(tally.problems))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
