"""Load test of the server: many clients, a fifth of their requests malformed; prints throughput, latency and errors.

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
"""Largest accepted difference of a probability; it depends on the batch."""


def main() -> None:
    """Measure the model without a server, then start the server in another process and load it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=200)
    arguments = parser.parse_args()
    predictor = load_bundle(arguments.bundle)
    files = [path.read_bytes() for path in sorted(arguments.images.iterdir())[:64]]
    expected = [prediction.probability for prediction in predictor.predict(files)]
    started = time.perf_counter()
    for _ in range(5):
        predictor.predict(files, batch_size=16)
    offline_rate = 5 * len(files) / (time.perf_counter() - started)
    command = [sys.executable, "-m", "streetvision", "serve", "--bundle", str(arguments.bundle), "--port", str(PORT)]
    server = subprocess.Popen(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})  # noqa: S603
    try:
        asyncio.run(_load(server.pid, files, expected, arguments, offline_rate))
    finally:
        server.terminate()
        server.wait()


async def _load(
    pid: int, files: list[bytes], expected: list[float], arguments: argparse.Namespace, offline_rate: float
) -> None:
    while not await _is_up():
        await asyncio.sleep(0.2)
    statuses: Counter[int] = Counter()
    latencies: list[float] = []
    wrong: list[int] = []
    memory: list[int] = []
    good = [_request(data) for data in files]
    # A truncated JPEG, a decompression bomb, a truncated GIF, an empty file, and a file above max_megabytes.
    malformed = [files[0][: len(files[0]) // 2], _decompression_bomb(), b"GIF89a, truncated", b"", bytes(21_000_000)]
    bad = [_request(data) for data in malformed]
    end = time.perf_counter() + arguments.seconds

    async def run_client(number: int) -> None:
        request_number, connection = number, Connection()
        while time.perf_counter() < end:
            request_number += 1
            image = request_number % len(files)
            started = time.perf_counter()
            is_bad = request_number % 5 == 0
            response = await connection.send(bad[request_number // 5 % len(bad)] if is_bad else good[image])
            statuses[response.status] += 1
            if response.status == 200:
                latencies.append(time.perf_counter() - started)
                if abs(json.loads(response.body)["probability"] - expected[image]) > TOLERANCE:
                    wrong.append(image)
            elif response.status == 503:
                await asyncio.sleep(float(response.headers["retry-after"]))

    async def record_memory() -> None:
        while time.perf_counter() < end:
            memory.append(_resident_megabytes(pid))
            await asyncio.sleep(1)

    await asyncio.gather(record_memory(), *(run_client(number) for number in range(arguments.clients)))
    warm = memory[len(memory) // 3 :]
    rate = statuses[200] / arguments.seconds
    print(f"without server   {offline_rate:.0f} images/s, decoding included")
    share = rate / offline_rate
    print(f"throughput       {rate:.0f} images/s, {share:.2f} of the rate without server; clients share the cores")
    print(f"99th percentile  {statistics.quantiles(latencies, n=100)[98]:.2f} s")
    print(f"statuses         {dict(sorted(statuses.items()))}; wrong predictions {len(wrong)}")
    print(f"memory           {warm[0]} MB after a third of the time, {warm[-1]} MB at the end, maximum {max(warm)} MB")


class Response(NamedTuple):
    """An HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """One client with a persistent HTTP connection.

    It is written with streams, because the connection pool of an HTTP library took more CPU time than the server.
    """

    def __init__(self) -> None:
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, request: bytes) -> Response:
        """Send a request and read its response."""
        reader, writer = self._streams = self._streams or await asyncio.open_connection(HOST, PORT)
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
            self._streams = None
        return Response(status, headers, body)


def _request(image: bytes) -> bytes:
    boundary = "0123456789abcdef"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'.encode()
    body = head + image + f"\r\n--{boundary}--\r\n".encode()
    lines = ("POST /predict HTTP/1.1", f"Host: {HOST}", f"Content-Type: multipart/form-data; boundary={boundary}")
    return "\r\n".join((*lines, f"Content-Length: {len(body)}", "", "")).encode() + body


async def _is_up() -> bool:
    try:
        response = await Connection().send(f"GET /healthz HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
    except OSError:
        return False
    return response.status == 200


def _decompression_bomb() -> bytes:
    file = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(file, "PNG")
    return file.getvalue()


def _resident_megabytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1_000_000


if __name__ == "__main__":
    main()
