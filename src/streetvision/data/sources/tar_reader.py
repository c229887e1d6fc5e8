"""Read tar archives that may be damaged or hostile: what can be read is read, and what is lost is named.

`tarfile` ends without an error at the first header that it does not understand, and trusts sizes and extended headers.
Here every number of a header is bounded, a damaged header is skipped up to the next valid one, and the end of the
archive must be reached.
"""

import bz2
import gzip
import io
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from streetvision.data.image_header import UndecodableImage

BLOCK = 512
ZEROS = bytes(BLOCK)
CHUNK = 2**20
MAX_EXTENDED_BYTES = 2**20
"""Size of an extended header: a long name, or the records of PAX."""
MAX_PADDING = 16 * 2**20
"""Zeros after the end of an archive that are read; other members may follow them."""
MAX_EXPANSION = 100
"""Size of the content of a compressed archive relative to its file; images do not get much smaller."""
MAX_FAULTS = 5
"""Faults of an archive that are named; the others are counted."""
REGULAR, LINKS, WITHOUT_DATA = b"0\x007", b"12", b"123456"
"""Types of members: regular files, links, and everything without data."""
PAX_RECORD = re.compile(rb"(\d{1,7}) ([^=\n]{1,200})=")
SPARSE = "GNU.sparse."
"""Start of the keys of a sparse file."""
USED_RECORDS = frozenset({"path", "size", SPARSE})
COMPRESSED: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
"""First bytes of a compressed archive -> function that opens it."""

STREAM_ERRORS = (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error)
"""Errors of reading a file and of decompressing it."""


@dataclass(frozen=True)
class TarMember:
    """A file of an archive."""

    name: str
    size: int
    """Bytes."""
    offset: int
    """Position of its first byte in the uncompressed archive."""
    reason: str = ""
    """Why it cannot be read; completes the sentence "this file ..."; empty if it can."""


class TarReader:
    """The members of an archive, in their order.

    Args:
        stream: The archive, uncompressed; it can be sought.
        limit: Bytes of the archive that are read; None: all.
    """

    def __init__(self, stream: IO[bytes], *, limit: int | None = None) -> None:
        self._stream, self._limit = stream, limit
        self._length: int | None = None
        if isinstance(stream, io.BufferedReader):
            self._length = os.fstat(stream.fileno()).st_size
        self._faults: list[str] = []
        self._n_faults = 0

    @property
    def fault(self) -> str | None:
        """What is wrong with the archive as a whole, after the last member; None: nothing."""
        if not self._faults:
            return None
        more = self._n_faults - len(self._faults)
        return "; ".join(self._faults) + (f"; and {more} more faults" if more > 0 else "")

    def __iter__(self) -> Iterator[TarMember]:
        """Yield files and links; other members are skipped. A member that cannot be read has a reason.

        Raises:
            OSError: The operating system cannot read the file.
        """
        try:
            yield from self._members()
        except STREAM_ERRORS as error:
            _raise_system_error(error)
            self._add_fault(f"cannot be read after byte {self._stream.seek(0, os.SEEK_CUR):,}: {error}")

    def read(self, member: TarMember) -> bytes:
        """Return the content of a member; raises UndecodableImage if the archive ends before, OSError as above."""
        try:
            self._stream.seek(member.offset)
            data = self._stream.read(member.size)
        except STREAM_ERRORS as error:
            _raise_system_error(error)
            raise UndecodableImage(f"cannot be read: {error}") from error
        if len(data) < member.size:
            raise UndecodableImage("is truncated")
        return data

    def _add_fault(self, fault: str) -> None:
        self._n_faults += 1
        if len(self._faults) < MAX_FAULTS:
            self._faults.append(fault)

    def _members(self) -> Iterator[TarMember]:
        position, zeros, searching = 0, 0, False
        defaults: dict[str, str] = {}
        extended: dict[str, str] = {}
        problem, pending = "", b""
        while True:
            if self._limit is not None and position > self._limit:
                self._add_fault(f"expands to more than {MAX_EXPANSION} times its size; the rest is not read")
                return
            self._stream.seek(position)
            block = self._stream.read(BLOCK)
            if len(block) < BLOCK:
                self._length = position + len(block)
                if not zeros:
                    self._add_fault(f"ends at byte {self._length:,} without the mark of its end")
                return
            start, position = position, position + BLOCK
            if block == ZEROS:
                zeros += 1
                if zeros * BLOCK > MAX_PADDING:
                    self._add_fault(f"has more than {MAX_PADDING // 2**20} MiB of zeros before byte {position:,}")
                    return
                continue
            header = _parse_header(block, strict=searching)
            if header is None:
                if not searching:
                    self._add_fault(f"has a damaged header at byte {start:,}")
                searching, zeros, extended, problem, pending = True, 0, {}, "", b""
                continue
            if zeros == 1 and not searching:
                self._add_fault(f"has a single block of zeros at byte {start - BLOCK:,}")
            zeros, searching = 0, False
            name, size, kind = header

            if kind in b"xgLK":
                bounded = 0 <= size <= MAX_EXTENDED_BYTES
                body = self._stream.read(size) if bounded else b""
                records = _parse_extended(body, kind) if bounded and len(body) == size else None
                if kind in pending:
                    self._add_fault(f"has an extended header without a member before byte {start:,}")
                elif kind != b"g":
                    pending += kind
                if records is None:
                    # The name of the next member may be that of an image.
                    self._add_fault(f"has a damaged or too large extended header at byte {start:,}")
                    problem = "has a damaged or too large extended header"
                elif kind == b"g":
                    defaults |= records
                else:
                    extended |= records
                if bounded or (size > 0 and self._is_inside(position + size)):
                    position += _padded(size)
                else:
                    searching = True
                continue
            if kind == b"S":
                while block[482 if position == start + BLOCK else 504] and position - start < MAX_EXTENDED_BYTES:
                    block, position = self._stream.read(BLOCK).ljust(BLOCK, b"\0"), position + BLOCK
            records = defaults | extended
            name = records.get("path", name)
            if "size" in records:
                digits = records["size"]
                size = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 20 else -1
            if kind == b"S" or SPARSE in records:
                problem = problem or "is a sparse file, which is not read"
            has_data = kind not in WITHOUT_DATA and not (kind in REGULAR and name.endswith("/"))
            if has_data and (size < 0 or not self._is_inside(position + size)):
                problem = "is truncated" if 0 <= size < 2**32 else "has an impossible size"
                # Members up to the next header that is found are lost without a name.
                self._add_fault(f"has a member with a wrong size at byte {start:,}")
                searching, size = True, max(size, 0)
            elif kind in LINKS:
                problem = problem or "is a link, which is not followed"
            elif has_data and kind not in REGULAR + b"S":
                problem = problem or "is of a type that is not read"
            if has_data or kind in LINKS:
                yield TarMember(name, size, position, problem)
            if has_data and not searching:
                if self._length is None and self._stream.seek(position + size) < position + size:
                    # The length of a compressed archive is known at its end; `read` gave less than the size.
                    self._length, searching = self._stream.seek(0, os.SEEK_CUR), True
                else:
                    position += _padded(size)
            extended, problem, pending = {}, "", b""

    def _is_inside(self, position: int) -> bool:
        """Whether a position is in the archive; True if its length is unknown."""
        longest = self._length if self._length is not None else self._limit
        return longest is None or position <= longest


@contextmanager
def open_tar(path: Path, *, compressed: bool = True) -> Iterator[TarReader]:
    """Open an archive.

    Args:
        path: A regular file.
        compressed: Whether the archive may be compressed with gzip, bzip2 or xz.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not a regular file, or is compressed although that is not allowed.
    """
    if not path.is_file():
        raise ValueError("it is not a regular file")
    with path.open("rb") as file:
        magic = file.read(6)
        file.seek(0)
        decompress = next((opened for start, opened in COMPRESSED.items() if magic.startswith(start)), None)
        if decompress is None:
            yield TarReader(file)
            return
        if not compressed:
            raise ValueError("it is compressed; decompress it first")
        with decompress(file) as stream:
            yield TarReader(stream, limit=MAX_EXPANSION * path.stat().st_size + CHUNK)


def _parse_header(block: bytes, *, strict: bool) -> tuple[str, int, bytes] | None:
    """Name, size and type of a member; None if the block is no header. The size is -1 if it cannot be read.

    With `strict` it must have the magic of a tar since 1988: content of files may be taken for an older header.
    """
    if strict and block[257:262] != b"ustar":
        return None
    checksum = _parse_number(block[148:156])
    rest = block[:148] + block[156:]
    total = sum(rest) + 8 * ord(" ")
    # Some old programs added the bytes as signed numbers.
    if checksum != total and checksum != total - 256 * sum(byte > 127 for byte in rest):
        return None
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0" and (prefix := block[345:500].partition(b"\0")[0]):
        name = prefix + b"/" + name
    return name.decode(errors="surrogateescape"), _parse_number(block[124:136]), block[156:157]


def _parse_number(field: bytes) -> int:
    """An octal or base-256 number; -1 if it is negative or not a number."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:])
    text = field.partition(b"\0")[0].strip()
    return int(text or b"0", 8) if re.fullmatch(rb"[0-7]*", text) else -1


def _parse_extended(body: bytes, kind: bytes) -> dict[str, str] | None:
    """The USED_RECORDS of an extended header; None if a record is damaged."""
    if kind in b"LK":
        name = body.partition(b"\0")[0].decode(errors="surrogateescape")
        return {"path": name} if kind == b"L" else {}
    records: dict[str, str] = {}
    position = 0
    while position < len(body) and body[position : position + 1] != b"\0":
        match = PAX_RECORD.match(body, position)
        end = position + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(body) or body[end - 1 : end] != b"\n":
            return None
        key = SPARSE if match[2].startswith(SPARSE.encode()) else match[2].decode(errors="replace")
        if key in USED_RECORDS:
            records[key] = body[match.end() : end - 1].decode(errors="surrogateescape")
        position = end
    return records


def _raise_system_error(error: Exception) -> None:
    """Raise an error of the operating system again; one of the content of an archive has no `errno`."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
