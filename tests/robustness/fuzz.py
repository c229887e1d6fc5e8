"""Mutated images, configurations, splits, policies and bundles: each gives an answer or one clear error, soon.

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
from tests.conftest import reseal

MEGABYTES = 300.0
"""Most memory that one case may take beyond what there was."""
SECONDS = 2.0
"""Most processor time that one case may take."""
HANGS = 30
"""Seconds after which a case is taken for one that never ends."""

Check = Callable[[], object]


@dataclass
class Tally:
    """What became of the cases."""

    endings: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    most_megabytes: float = 0.0
    most_seconds: float = 0.0


def judge(cases: Iterator[tuple[str, Check]], *, most_megabytes: float = MEGABYTES) -> Tally:
    """Run every (name, case): an answer or a StreetVisionError is well; all else, too long and too much is not."""
    tally = Tally()
    for name, case in cases:
        before, started = _memory("VmRSS", reset=True), time.process_time()
        signal.alarm(HANGS)
        try:
            case()
            ending = "answer"
        except StreetVisionError as error:
            ending = "error" if "\n" not in error.message else f"an error of several lines: {error.message}"
        except Exception as error:
            ending = f"{type(error).__name__}: {error} {traceback.extract_tb(error.__traceback__)[-1]}"
        signal.alarm(0)
        seconds, megabytes = time.process_time() - started, _memory("VmHWM") - before
        tally.most_seconds = max(tally.most_seconds, seconds)
        tally.most_megabytes = max(tally.most_megabytes, megabytes)
        tally.endings[ending if ending in {"answer", "error"} else "crash"] += 1
        if ending not in {"answer", "error"}:
            tally.problems.append(f"{name}: {ending}")
        if seconds > SECONDS or megabytes > most_megabytes:
            tally.problems.append(f"{name}: {seconds:.2f} s, {megabytes:.0f} MB ({ending})")
    return tally


def _memory(what: str, *, reset: bool = False) -> float:
    """Megabytes of this process now (VmRSS), or at most since the last reset (VmHWM)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(what))
    return int(line.split()[1]) / 1024


def mutated(data: bytes, rng: random.Random) -> bytes:
    """`data` with one to four damages of the kinds that parsers trip over."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(changed) + 1)
        # Headers are where the sizes stand.
        place = min(place, rng.randrange(64)) if rng.random() < 0.5 else place
        damage = rng.choice(DAMAGES)
        damage(changed, place, rng)
    return bytes(changed)


def _flip(data: bytearray, place: int, rng: random.Random) -> None:
    for offset in range(min(rng.randint(1, 3), len(data) - place)):
        data[place + offset] ^= 1 << rng.randrange(8)


def _number(data: bytearray, place: int, rng: random.Random) -> None:
    width = rng.choice((1, 2, 4))
    value = rng.choice((0, 1, 0x7F, 0xFF, 0x1000, 0x2000, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF))
    data[place : place + width] = (value % 256**width).to_bytes(width, rng.choice(("little", "big")))


def _cut(data: bytearray, place: int, rng: random.Random) -> None:
    del data[place : place + rng.choice((1, 2, 16, len(data)))]


def _repeat(data: bytearray, place: int, rng: random.Random) -> None:
    part = data[place : place + rng.randint(1, 64)]
    data[place:place] = part * rng.choice((1, 2, 200))


def _noise(data: bytearray, place: int, rng: random.Random) -> None:
    data[place : place + rng.randint(1, 8)] = rng.randbytes(rng.randint(0, 8))


DAMAGES = (_flip, _number, _cut, _repeat, _noise)


def image_cases(n: int, seed: int) -> Iterator[tuple[str, Check]]:
    """`n` mutants of pictures in every format that is read."""
    from streetvision.data.decode import decode_image

    seeds = image_seeds()
    for number in range(n):
        rng = random.Random(f"{seed} {number}")
        kind = sorted(seeds)[number % len(seeds)]
        mutant = mutated(seeds[kind], rng)
        yield f"{kind} {number}", lambda mutant=mutant: decode_image(mutant)


def image_seeds() -> dict[str, bytes]:
    """One small file of each format and of the variants that are decoded another way."""
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
    """`n` mutants of the YAML and JSON files of a finished `run`, each read as its reader does."""
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
            _seal_again(folder, source.name)
        elif name == "bundle" and structural:
            reseal(folder, lambda _: None)
        yield f"{name} {number}", lambda read=read, path=folder / source.name: read(path)


ODD_VALUES = (None, True, -1, 0, 1e308, 10**30, 2**31, "", "../../x", "\u0000", [], {}, [[]], {"a": 1}, "9" * 5000, 0.5)


def _restructured(text: bytes, rng: random.Random) -> bytes:
    """The JSON with one to three of its values replaced, removed or doubled."""
    value = json.loads(text)
    for _ in range(rng.randint(1, 3)):
        holder, key = _somewhere(value, rng)
        if holder is None:
            break
        action = rng.randrange(3)
        if action == 0:
            holder[key] = rng.choice(ODD_VALUES)
        elif action == 1:
            del holder[key]
        elif isinstance(holder, dict):
            holder[f"{key}x"] = holder[key]
        else:
            holder.append(holder[key])
    return json.dumps(value).encode()


def _somewhere(value: object, rng: random.Random) -> tuple[dict | list | None, object]:
    holder: dict | list | None = None
    key: object = None
    while isinstance(value, dict | list) and value and (holder is None or rng.random() < 0.8):
        holder = value
        key = rng.choice(sorted(value)) if isinstance(value, dict) else rng.randrange(len(value))
        value = value[key]
    return holder, key


def _seal_again(folder: Path, name: str) -> None:
    """Make the table of contents vouch for the damaged file, as whoever sends a hostile bundle would."""
    from streetvision.io.manifests import file_digest

    def vouch(bundle: dict[str, Any]) -> None:
        bundle["files"][name] = file_digest(folder / name).model_dump()
        if name == "model.pth":
            bundle["policy"]["scores"]["model_sha256"] = bundle["files"][name]["sha256"]

    reseal(folder, vouch)


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
    """A run of every phase on tiny scenes, with a configuration file beside it."""
    from streetvision.cli.app import main as streetvision
    from tests.robustness.chaos import TINY_RUN

    try:
        streetvision(["train", f"run_dir={root}", *TINY_RUN])
    except SystemExit as stop:
        assert not stop.code
    write_config(root)
    return root


def write_config(root: Path) -> None:
    """A YAML file of settings to mutate."""
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
    """Run the cases and print what went wrong, and a line in the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("images", "files"))
    parser.add_argument("--n", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if options.what == "images":
            cases = image_cases(options.n, options.seed)
        else:
            cases = file_cases(options.n, options.seed, finished_run(scratch / "run"), scratch)
        tally = judge(cases)
    for problem in tally.problems:
        sys.stdout.write(f"{problem}\n")
    most = f"at most {tally.most_seconds:.2f} s and {tally.most_megabytes:.0f} MB"
    sys.stdout.write(f"{options.n} {options.what}: {dict(tally.endings)}, {most}; {len(tally.problems)} problems\n")
    return min(1, len(tally.problems))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
