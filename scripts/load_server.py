"""Load a server with many clients, a fifth of whose requests are malformed, and print throughput and errors.

python scripts/load_server.py --bundle outputs/demo/export --images outputs/demo/scenes/images --seconds 60
"""

import argparse
import asyncio
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from streetvision import load_bundle

HOST, PORT = "127.0.0.1", 8765
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
    expected = [prediction.probability for prediction in predictor.predict(files)]
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
    while not await _is_up():
        await asyncio.sleep(0.2)
    statuses: Counter[int] = Counter()
    waits: list[float] = []
    wrong: list[int] = []
    memory: list[int] = []
    good = [_request(data) for data in files]
    malformed = [files[0][: len(files[0]) // 2], _bomb(), b"GIF89a, or so", b"", bytes(21_000_000)]
    bad = [_request(data) for data in malformed]
    until = time.perf_counter() + asked.seconds

    async def one(number: int) -> None:
        turn, connection = number, Connection()
        while time.perf_counter() < until:
            turn += 1
            which = turn % len(files)
            began = time.perf_counter()
            reply = await connection.ask(bad[turn // 5 % len(bad)] if turn % 5 == 0 else good[which])
            statuses[reply.status] += 1
            if reply.status == 200:
                waits.append(time.perf_counter() - began)
                if abs(json.loads(reply.body)["probability"] - expected[which]) > TOLERANCE:
                    wrong.append(which)
            elif reply.status == 503:
                await asyncio.sleep(float(reply.headers["retry-after"]))

    async def watch() -> None:
        while time.perf_counter() < until:
            memory.append(_resident_megabytes(pid))
            await asyncio.sleep(1)

    await asyncio.gather(watch(), *(one(number) for number in range(asked.clients)))
    warm = memory[len(memory) // 3 :]
    rate = statuses[200] / asked.seconds
    print(f"bare model       {bare:.0f} images/s, decoding included, before the server started")  # noqa: T201
    print(f"throughput       {rate:.0f} images/s, {rate / bare:.2f} of the bare model; clients share the cores")  # noqa: T201
    print(f"99th percentile  {statistics.quantiles(waits, n=100)[98]:.2f} s")  # noqa: T201
    print(f"statuses         {dict(sorted(statuses.items()))}; wrong predictions {len(wrong)}")  # noqa: T201
    print(f"memory           {warm[0]} MB after a third of the time, {warm[-1]} MB at the end, {max(warm)} MB at most")  # noqa: T201


class Reply(NamedTuple):
    """An HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """One client: a connection that is kept while the server keeps it.

    By hand, since a client library's pool of 200 connections took more of the cores than the server.
    """

    def __init__(self) -> None:
        self._open: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> Reply:
        """Send a whole request and read the whole reply."""
        reader, writer = self._open = self._open or await asyncio.open_connection(HOST, PORT)
        writer.write(request)
        with contextlib.suppress(ConnectionError):  # a body over the limit gets an early response
            await writer.drain()
        status = int((await reader.readline()).split()[1])
        headers = {}
        while line := (await reader.readline()).decode().strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = await reader.readexactly(int(headers["content-length"]))
        if status == 413 or headers.get("connection") == "close":
            writer.close()
            self._open = None
        return Reply(status, headers, body)


def _request(image: bytes) -> bytes:
    mark = "0123456789abcdef"
    head = f'--{mark}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'.encode()
    body = head + image + f"\r\n--{mark}--\r\n".encode()
    lines = ("POST /predict HTTP/1.1", f"Host: {HOST}", f"Content-Type: multipart/form-data; boundary={mark}")
    return "\r\n".join((*lines, f"Content-Length: {len(body)}", "", "")).encode() + body


async def _is_up() -> bool:
    try:
        found = await Connection().ask(f"GET /healthz HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
    except OSError:
        return False
    return found.status == 200


def _bomb() -> bytes:
    written = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(written, "PNG")
    return written.getvalue()


def _resident_megabytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1_000_000


if __name__ == "__main__":
    main()
