"""The image in a request body, multipart or base64 in JSON, counted as it streams in."""

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncIterator

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

FIELD = "image"
MEGABYTE = 1_000_000
JSON_OVERHEAD = 1.4
"""How much longer base64 in JSON is than what it encodes, at most, with some spaces."""
MOST_JSON_PARTS = 64
"""Lists, objects and commas of a body: one of millions would take many times its length in memory."""


class Refusal(Exception):  # noqa: N818 (what it is, not that it went wrong here)
    """A request that is answered with an error status of its sender's making."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


async def read_upload(request: Request, *, max_megabytes: float) -> bytes:
    """The bytes of the image; raises Refusal: 413 for a body that is too long, 422 for one that holds no image."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _from_form(request, max_megabytes)
    if kind == "application/json":
        body = b"".join([chunk async for chunk in _counted(request, max_megabytes * JSON_OVERHEAD)])
        return await asyncio.to_thread(_from_json, body)
    raise Refusal(422, f"send multipart/form-data or application/json with a field {FIELD!r}")


async def _counted(request: Request, max_megabytes: float) -> AsyncIterator[bytes]:
    """The body as it comes, until it is longer than allowed, whatever its Content-Length says."""
    left = max_megabytes * MEGABYTE
    async for chunk in request.stream():
        left -= len(chunk)
        if left < 0:
            raise Refusal(413, f"an image may have {max_megabytes:g} MB")
        yield chunk


async def _from_form(request: Request, max_megabytes: float) -> bytes:
    chunks = _counted(request, max_megabytes + 0.01)  # the boundaries and headers of the form
    try:
        form = await MultiPartParser(request.headers, chunks, max_files=1, max_fields=4).parse()  # type: ignore[arg-type]
    except (MultiPartException, KeyError, ValueError) as error:
        raise Refusal(422, "the form is damaged or cut off") from error
    part = form.get(FIELD)
    if not isinstance(part, UploadFile):
        raise Refusal(422, f"the form has no file {FIELD!r}")
    try:
        return await part.read()
    finally:
        await form.close()


def _from_json(body: bytes) -> bytes:
    try:
        if sum(body.count(mark) for mark in (b"[", b"{", b",")) > MOST_JSON_PARTS:
            raise ValueError("more than an image and a few words beside it")
        value = json.loads(body)
        return base64.b64decode(value[FIELD], validate=True)
    except (ValueError, TypeError, KeyError, binascii.Error) as error:
        raise Refusal(422, f'expected {{"{FIELD}": "<base64>"}}') from error
