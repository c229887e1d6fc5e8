"""Read the image of a request, with a limit on the bytes received: a form, base64 in JSON, or the image itself."""

import asyncio
import base64
import binascii
import json
import re
from collections.abc import AsyncIterator

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

FIELD = "image"
MEGABYTE = 1_000_000
MAX_FILES, MAX_FIELDS = 1, 4
"""Largest number of files and of other fields in a form."""
FORM_LIMITS = {
    "Too many files": "the form has more than one file: send one image per request",
    "Too many fields": f"the form has more than {MAX_FIELDS} fields other than the file",
    "Part exceeded": "a field of the form that is not a file is longer than 1 MiB",
}
"""First words of an error of the parser -> the limit that the form exceeds."""
DATA_URL = re.compile(r"\s*data:[^,]{0,200};base64,", re.IGNORECASE)
"""What browsers put before base64."""
WHITE_SPACE = b" \t\r\n"
"""What base64 may contain between its characters."""
JSON_OVERHEAD = 1.4
"""Maximum length of a JSON body, relative to the image that it contains in base64."""
MAX_JSON_TOKENS = 64
"""Maximum number of lists, objects and commas in a body. Millions of them would take many times the body's length in
memory."""


async def read_upload(request: Request, *, max_megabytes: float) -> bytes:
    """Return the bytes of the uploaded image.

    Raises:
        HTTPException: status 413 if the body is too long, 422 if it does not contain an image, 507 if a large form does
            not fit into the temporary folder.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "multipart/form-data":
        return await _read_form(request, max_megabytes)
    if media_type == "application/json":
        body = b"".join([chunk async for chunk in _limited(request, max_megabytes, overhead=JSON_OVERHEAD)])
        return await asyncio.to_thread(_parse_json, body)
    if media_type.startswith("image/") or media_type == "application/octet-stream":
        return b"".join([chunk async for chunk in _limited(request, max_megabytes, overhead=1)])
    raise HTTPException(
        422, f"send multipart/form-data or application/json with a field {FIELD!r}, or the image itself as image/jpeg"
    )


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
        # A file of up to MultiPartParser.spool_max_size bytes stays in memory.
        parser = MultiPartParser(request.headers, chunks, max_files=MAX_FILES, max_fields=MAX_FIELDS)  # type: ignore[arg-type]
        form = await parser.parse()
    except MultiPartException as error:
        limit = next((text for start, text in FORM_LIMITS.items() if error.message.startswith(start)), None)
        raise HTTPException(422, limit or "the form is malformed or incomplete") from error
    except (KeyError, ValueError) as error:
        raise HTTPException(422, "the form is malformed or incomplete") from error
    except OSError as error:
        raise HTTPException(507, f"the server cannot write to its temporary folder: {error.strerror}") from error
    try:
        part = form.get(FIELD)
        if not isinstance(part, UploadFile):
            raise HTTPException(422, f"the form has no file {FIELD!r}")
        return await part.read()
    except OSError as error:
        raise HTTPException(507, f"the server cannot read its temporary folder: {error.strerror}") from error
    finally:
        await form.close()


def _parse_json(body: bytes) -> bytes:
    if sum(body.count(token) for token in (b"[", b"{", b",")) > MAX_JSON_TOKENS:
        raise HTTPException(422, f"the JSON has more than {MAX_JSON_TOKENS} lists, objects and fields")
    try:
        text = json.loads(body)[FIELD]
        if match := DATA_URL.match(text):
            text = text[match.end() :]
        return base64.b64decode(text.encode("ascii").translate(None, WHITE_SPACE), validate=True)
    except (ValueError, TypeError, KeyError, AttributeError, binascii.Error) as error:
        raise HTTPException(422, f'expected {{"{FIELD}": "<base64>"}}') from error
