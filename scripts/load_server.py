"""Load a server for a while with many clients, a fifth of whose requests are malformed, and say how it held.

python scripts/load_server.py --bundle outputs/demo/export --images outputs/demo/scenes/images --seconds 60
"""

import argparse
import asyncio
import io
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
from PIL import Image

from streetvision import load_bundle

PORT = 8765
ADDRESS = f"http://127.0.0.1:{PORT}"
TOLERANCE = 1e-4


def main() -> None:
    """Measure the bare model, start the server in a process of its own, load it, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=200)
    asked = parser.parse_args()
    predictor = load_bundle(asked.bundle)
    files = [path.read_bytes() for path in sorted(asked.images.iterdir())[:64]]
    expected = [answer.probability for answer in predictor.predict(files)]
    started = time.perf_counter()
    for _ in range(5):
        predictor.predict(files, batch_size=16)
    bare = 5 * len(files) / (time.perf_counter() - started)
    command = [sys.executable, "-m", "streetvision", "serve", "--bundle", str(asked.bundle), "--port", str(PORT)]
    server = subprocess.Popen(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})  # noqa: S603
    try:
        asyncio.run(_load(server.pid, files, expected, asked, bare))
    finally:
        server.terminate()
        server.wait()


async def _load(pid: int, files: list[bytes], expected: list[float], asked: argparse.Namespace, bare: float) -> None:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=ADDRESS, limits=limits, timeout=60) as client:
        while not await _is_up(client):
            await asyncio.sleep(0.2)
        statuses: Counter[int] = Counter()
        waits: list[float] = []
        wrong: list[int] = []
        memory: list[int] = []
        until = time.perf_counter() + asked.seconds
        malformed = [files[0][: len(files[0]) // 2], _bomb(), b"GIF89a, or so", b"", bytes(21_000_000)]

        async def one(number: int) -> None:
            turn = number
            while time.perf_counter() < until:
                turn += 1
                bad = turn % 5 == 0
                which = turn % len(files)
                data = malformed[turn // 5 % len(malformed)] if bad else files[which]
                began = time.perf_counter()
                reply = await client.post("/predict", files={"image": ("a.jpg", data, "image/jpeg")})
                statuses[reply.status_code] += 1
                if reply.status_code == 200:
                    waits.append(time.perf_counter() - began)
                    if abs(reply.json()["probability"] - expected[which]) > TOLERANCE:
                        wrong.append(which)
                elif reply.status_code == 503:
                    await asyncio.sleep(float(reply.headers["Retry-After"]))

        async def watch() -> None:
            while time.perf_counter() < until:
                memory.append(_resident_megabytes(pid))
                await asyncio.sleep(1)

        await asyncio.gather(watch(), *(one(number) for number in range(asked.clients)))
    warm = memory[len(memory) // 3 :]
    rate = statuses[200] / asked.seconds
    print(f"bare model       {bare:.0f} images/s, decoding included, before the server started")  # noqa: T201
    print(f"answered         {rate:.0f} images/s, {rate / bare:.2f} of the bare model; clients share the cores")  # noqa: T201
    print(f"99th percentile  {statistics.quantiles(waits, n=100)[98]:.2f} s")  # noqa: T201
    print(f"statuses         {dict(sorted(statuses.items()))}; wrong answers {len(wrong)}")  # noqa: T201
    print(f"memory           {warm[0]} MB after a third of the time, {warm[-1]} MB at the end, {max(warm)} MB at most")  # noqa: T201


async def _is_up(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/healthz")).status_code == 200
    except httpx.TransportError:
        return False


def _bomb() -> bytes:
    written = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(written, "PNG")
    return written.getvalue()


def _resident_megabytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1_000_000


if __name__ == "__main__":
    main()
