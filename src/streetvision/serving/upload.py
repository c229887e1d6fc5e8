"""Read the image of a request: multipart/form-data or base64 in JSON, with a limit on the bytes received."""

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncIterator

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

FIELD = "image"
MEGABYTE = 1_000_000
JSON_OVERHEAD = 1.4
"""Maximum length of a JSON body, relative to the image that it contains in base64."""
MAX_JSON_TOKENS = 64
"""Maximum number of lists, objects and commas in a body. Millions of them would take many times the body's length in
memory."""


async def read_upload(request: Request, *, max_megabytes: float) -> bytes:
    """Return the bytes of the uploaded image.

    Raises:
        HTTPException: status 413 if the body is too long, 422 if it does not contain an image field.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "multipart/form-data":
        return await _read_form(request, max_megabytes)
    if media_type == "application/json":
        body = b"".join([chunk async for chunk in _limited(request, max_megabytes, overhead=JSON_OVERHEAD)])
        return await asyncio.to_thread(_parse_json, body)
    raise HTTPException(422, f"send multipart/form-data or application/json with a field {FIELD!r}")


async def _limited(request: Request, max_megabytes: float, *, overhead: float) -> AsyncIterator[bytes]:
    """The chunks of the body. The limit applies to the bytes received; Content-Length may be wrong."""
    remaining = max_megabytes * overhead * MEGABYTE
    async for chunk in request.stream():
        remaining -= len(chunk)
        if remaining < 0:
            raise HTTPException(413, f"the image is larger than {max_megabytes:g} MB")
        yield chunk


async def _read_form(request: Request, max_megabytes: float) -> bytes:
    overhead = 1 + 0.01 / max_megabytes  # 10 kB for the boundaries and headers of the form
    chunks = _limited(request, max_megabytes, overhead=overhead)
    try:
        form = await MultiPartParser(request.headers, chunks, max_files=1, max_fields=4).parse()  # type: ignore[arg-type]
    except (MultiPartException, KeyError, ValueError) as error:
        raise HTTPException(422, "the form is malformed or incomplete") from error
    part = form.get(FIELD)
    if not isinstance(part, UploadFile):
        raise HTTPException(422, f"the form has no file {FIELD!r}")
    try:
        return await part.read()
    finally:
        await form.close()


def _parse_json(body: bytes) -> bytes:
    try:
        if sum(body.count(token) for token in (b"[", b"{", b",")) > MAX_JSON_TOKENS:
            raise ValueError("too many lists, objects or fields")
        return base64.b64decode(json.loads(body)[FIELD], validate=True)
    except (ValueError, TypeError, KeyError, binascii.Error) as error:
        raise HTTPException(422, f'expected {{"{FIELD}": "<base64>"}}') from error
