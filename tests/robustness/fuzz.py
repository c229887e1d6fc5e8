"""Fuzzing of everything that is read: each input gives a result or one error, quickly, and nothing is lost silently.

python -m tests.robustness.fuzz images --n 5000
python -m tests.robustness.fuzz archives --n 5000
python -m tests.robustness.fuzz files --n 2000
python -m tests.robustness.fuzz arrays --n 500
python -m tests.robustness.fuzz requests --n 20000
"""

import argparse
import gzip
import io
import json
import os
import random
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import zlib
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
SECONDS = 3.0
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


def mutated_tiff(data: bytes, rng: random.Random) -> bytes:
    """The TIFF with some tags of another type, count or value, or with another tag in their place."""
    changed = bytearray(data)
    order = "<" if data[:2] == b"II" else ">"
    (table,) = struct.unpack_from(f"{order}L", changed, 4)
    (count,) = struct.unpack_from(f"{order}H", changed, table)
    for _ in range(rng.randint(1, 4)):
        place = table + 2 + 12 * rng.randrange(count)
        if place + 12 > len(changed):
            continue
        tag, kind, number, value = struct.unpack_from(f"{order}HHLL", changed, place)
        change = rng.randrange(4)
        tag = rng.choice((tag, 256, 257, 258, 259, 262, 277, 278, 317, 322, 323, 338, 339, 347, 34665, 34675))
        kind = rng.randint(0, 18) if change in {0, 3} else kind
        number = rng.choice((0, 1, 2, 3, 200, 65535, 2**24, 2**31, 2**32 - 1)) if change in {1, 3} else number
        value = rng.choice((0, 1, 8, 255, 65535, 2**24, 2**31, 2**32 - 1, len(data) - 4)) if change == 2 else value
        struct.pack_into(f"{order}HHLL", changed, place, tag, kind, number, value)
    return bytes(changed)


def mutated_png(data: bytes, rng: random.Random) -> bytes:
    """The PNG with chunks removed, repeated, swapped or added, with right checksums."""
    chunks, position = [], 8
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        chunks.append((kind, data[position + 8 : position + 8 + length]))
        position += 12 + length
    for _ in range(rng.randint(1, 3)):
        place, action = rng.randrange(len(chunks)), rng.randrange(4)
        if action == 0:
            chunks.insert(place, (rng.choice(PNG_KINDS), rng.choice(PNG_BODIES)(rng)))
        elif action == 1:
            chunks.insert(place, chunks[rng.randrange(len(chunks))])
        elif action == 2:
            kind, body = chunks[place]
            chunks[place] = (kind, mutated(body, rng))
        elif len(chunks) > 1:
            del chunks[place]
    packed = (struct.pack(">I4s", len(b), k) + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    return data[:8] + b"".join(packed)


def mutated_exif(data: bytes, rng: random.Random) -> bytes:
    """The JPEG with mutated EXIF data, which may be repeated."""
    exif = Image.Exif()
    exif[0x0112], exif[0x0132], exif[0x010F] = 6, "2026:01:02 03:04:05", "camera" * 20
    body = b"Exif\0\0" + mutated_tiff(exif.tobytes().removeprefix(b"Exif\0\0"), rng)
    segment = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
    return data[:2] + segment * rng.choice((1, 1, 2, 100)) + data[2:]


PNG_KINDS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf", b"iCCP", b"tEXt", b"zTXt", b"iTXt", b"acTL", b"fcTL")
PNG_BODIES = (
    lambda rng: b"",
    lambda rng: rng.randbytes(rng.choice((1, 4, 13, 26, 768, 3000))),
    lambda rng: struct.pack(">IIBBBBB", *rng.choices((1, 64, 65535, 2**31 - 1), k=2), 8, 2, 0, 0, 0),
    lambda rng: b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n  9\n" + b"0" * 2**21),
    lambda rng: b"profile\0\0" + zlib.compress(bytes(3 * 2**20)),
    lambda rng: b"II*\0\x08\0\0\0\xff\xff" + b"\x01\0\x07\0\xff\xff\0\0\0\0\0\0" * 500,
)
STRUCTURAL = {
    b"II": mutated_tiff,
    b"MM": mutated_tiff,
    b"\x89P": mutated_png,
    b"\xff\xd8": mutated_exif,
}
"""First bytes of a format -> mutations of its structure."""


def image_cases(n: int, seed: int) -> Iterator[tuple[str, Check]]:
    """`n` mutated images of every supported format."""
    from streetvision.data.decode import decode_image

    seeds = image_seeds()
    for number in range(n):
        rng = random.Random(f"{seed} {number}")
        kind = sorted(seeds)[number % len(seeds)]
        mutate = STRUCTURAL.get(seeds[kind][:2], mutated) if rng.random() < 0.5 else mutated
        mutant = mutate(seeds[kind], rng)
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


def archive_cases(n: int, seed: int, scratch: Path) -> Iterator[tuple[str, Check]]:
    """`n` mutated archives, each read by its own reader."""
    seeds = archive_seeds(scratch)
    for number in range(n):
        rng = random.Random(f"{seed} {number}")
        name = sorted(seeds)[number % len(seeds)]
        data, read = seeds[name]
        mutate = mutated_tar if name == "tar" and rng.random() < 0.6 else mutated
        if name == "gzip webdataset" and rng.random() < 0.6:
            mutant = gzip.compress(mutated_tar(gzip.decompress(data), rng), compresslevel=1)
        else:
            mutant = mutate(data, rng)
        path = scratch / ("case.parquet" if "parquet" in name else "case.tar")
        path.write_bytes(mutant)
        yield f"{name} {number}", lambda read=read, path=path: read(path)


ITEMS = 12


def archive_seeds(scratch: Path) -> dict[str, tuple[bytes, Callable[[Path], None]]]:
    """Name -> an archive of ITEMS images, and the function that reads it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Larger than what three mutations can remove: an archive without a whole member is another valid archive.
    pictures = [random.Random(number).randbytes(6000 + 100 * number) for number in range(ITEMS)]
    seeds: dict[str, tuple[bytes, Callable[[Path], None]]] = {}
    for format, name in ((tarfile.PAX_FORMAT, "tar"), (tarfile.GNU_FORMAT, "gnu tar")):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
            for number, data in enumerate(pictures):
                members = {f"{number}.jpg": data, f"{number}.cls": b"01"[number % 2 :][:1]}
                for member, content in (members | {f"{'long' * 40}{number}.txt": b"note"}).items():
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        seeds[name] = (buffer.getvalue(), _read_archive)
    seeds["webdataset"] = (seeds["gnu tar"][0], _read_samples)
    seeds["gzip webdataset"] = (gzip.compress(seeds["tar"][0]), _read_samples)
    for name, compression in (("parquet", "none"), ("parquet zstd", "zstd"), ("parquet snappy", "snappy")):
        table = pa.table({"label": [0, 1] * (ITEMS // 2), "image": pictures})
        pq.write_table(table, scratch / "seed.parquet", row_group_size=5, compression=compression)
        seeds[name] = ((scratch / "seed.parquet").read_bytes(), _read_archive)
    return seeds


def mutated_tar(data: bytes, rng: random.Random) -> bytes:
    """The tar with blocks removed, repeated, zeroed or overwritten, or with fields changed and their checksum right."""
    blocks = [bytearray(data[start : start + 512]) for start in range(0, len(data), 512)]
    for _ in range(rng.randint(1, 3)):
        headers = [number for number, block in enumerate(blocks) if block[257:262] == b"ustar"]
        place, action = rng.randrange(len(blocks)), rng.randrange(6)
        if action == 0:
            del blocks[place]
        elif action == 1:
            blocks.insert(place, bytearray(rng.choice((bytes(512), rng.randbytes(512), bytes(blocks[place])))))
        elif action == 2:
            blocks[place] = bytearray(512)
        elif action == 3:
            blocks[place] = bytearray(rng.randbytes(512))
        elif headers:
            block = blocks[rng.choice(headers)]
            if rng.random() < 0.6:
                sizes = (b"\xff" * 12, b"\x80" + b"\xff" * 11, b"77777777777\0", b"00000000000\0", b"-1\0".ljust(12))
                block[124:136] = rng.choice(sizes)
            else:
                block[156:157] = rng.choice((b"0", b"1", b"2", b"7", b"S", b"M", b"V", b"\0"))
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
        if not blocks:
            break
    return b"".join(bytes(block) for block in blocks)


def _read_archive(path: Path) -> None:
    from streetvision.data.image_file import UndecodableImage
    from streetvision.data.sources.image_stream import list_image_refs, read_image_refs

    contents = [content for _, content in read_image_refs(list_image_refs([path]))]
    failures = sum(isinstance(content, UndecodableImage) for content in contents)
    assert failures or len(contents) >= ITEMS, f"{ITEMS - len(contents)} images are lost without a failure"


def _read_samples(path: Path) -> None:
    from streetvision.data.records import RejectedFile
    from streetvision.data.sources.webdataset import read_shard

    samples = list(read_shard(path))
    failures = sum(isinstance(sample, RejectedFile) for sample in samples)
    assert failures or len(samples) >= ITEMS, f"{ITEMS - len(samples)} samples are lost without a failure"


def array_cases(n: int, seed: int) -> Iterator[tuple[str, Check]]:
    """`n` values of the Python API: arrays, tensors and Pillow images of any type, shape and layout."""
    import torch

    from streetvision.data.image_input import decode_input

    types = ("u1", "i1", "u2", "i4", "f2", "f4", "f8", "c8", "?", "O", "U3", "S3", "M8[s]", "m8[s]", "V3", "i4,f4")
    modes = ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "RGBX", "RGBa", "I;16")
    shapes = (
        (),
        (3,),
        (4, 5),
        (4, 5, 3),
        (3, 4, 5),
        (0, 5, 3),
        (4, 5, 1),
        (4, 5, 4),
        (1, 4, 5, 3),
        (1, 1, 3),
        (9, 9, 0),
    )
    dtypes = (torch.uint8, torch.int8, torch.float16, torch.bfloat16, torch.complex64, torch.bool, torch.int64)
    for number in range(n):
        rng = random.Random(f"{seed} {number}")
        shape = rng.choice(shapes)
        kind = rng.randrange(5)
        if kind == 0:
            value = np.zeros(shape, dtype=rng.choice(types))
        elif kind == 1:
            value = torch.zeros(shape, dtype=rng.choice(dtypes), device=rng.choice(("cpu", "meta")))
        elif kind == 2:
            value = Image.new(rng.choice(modes), rng.choice(((1, 1), (7, 5), (300, 2))))
            value.info |= {"exif": rng.randbytes(40), "transparency": rng.choice((0, b"", (1, 2, 3), None, "x"))}
        elif kind == 3:
            data = mutated(rng.choice(list(image_seeds().values())), rng)
            value = rng.choice((bytes, bytearray, memoryview))(data)
        else:
            value = rng.choice(
                (None, 1, "", "\0", b"", {}, [], [[0]], object(), np.broadcast_to(np.uint8(0), (9**5, 9**5, 3)))
            )
        yield f"value {number}", lambda value=value: decode_input(value)


def request_cases(n: int, seed: int, run: Path) -> Iterator[tuple[str, Check]]:
    """`n` mutated HTTP requests to a server with the bundle of `run`; each must be answered without a server error."""
    import asyncio
    import base64

    import httpx

    from streetvision.bundle.predictor import load_bundle
    from streetvision.serving.server import ServingConfig, create_app

    app = create_app(load_bundle(run / "export", threads=1), ServingConfig())
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server")
    loop = asyncio.new_event_loop()
    paths = ("/", "/healthz", "/metrics", "/predict/", "/%00", "/..", "//")
    seeds = image_seeds()
    types = (
        "multipart/form-data; boundary=b",
        "application/json",
        "image/jpeg",
        "text/plain",
        "multipart/form-data",
        "",
    )
    for number in range(n):
        rng = random.Random(f"{seed} {number}")
        picture = rng.choice(list(seeds.values()))
        picture = mutated(picture, rng) if rng.random() < 0.7 else picture
        form = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n' + picture + b"\r\n--b--\r\n"
        text = json.dumps({"image": base64.b64encode(picture).decode()}).encode()
        choice = rng.randrange(3)
        body, kind = ((form, types[0]), (text, types[1]), (picture, rng.choice(types)))[choice]
        if rng.random() < 0.5:
            body = mutated(body, rng)
        if rng.random() < 0.1:
            kind = rng.choice(types)
        method = "POST" if rng.random() < 0.9 else rng.choice(("GET", "HEAD", "PUT", "DELETE", "OPTIONS"))
        path = "/predict" if rng.random() < 0.9 else rng.choice(paths)

        def ask(method: str = method, path: str = path, body: bytes = body, kind: str = kind) -> None:
            call = client.request(method, f"http://server{path}", content=body, headers={"content-type": kind})
            response = loop.run_until_complete(call)
            assert response.status_code < 500, f"{response.status_code} {response.text[:200]}"

        yield f"request {number}", ask


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
    parser.add_argument("inputs", choices=("images", "archives", "files", "arrays", "requests"))
    parser.add_argument("--n", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if options.inputs == "images":
            cases = image_cases(options.n, options.seed)
        elif options.inputs == "archives":
            cases = archive_cases(options.n, options.seed, scratch)
        elif options.inputs == "arrays":
            cases = array_cases(options.n, options.seed)
        elif options.inputs == "requests":
            cases = request_cases(options.n, options.seed, finished_run(scratch / "run"))
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
