"""Damaged and hostile archives: what can be read is read, what is lost is named, and nothing hangs."""

import errno
import io
import struct
import tarfile
import time
import tracemalloc
from pathlib import Path

import pytest

from streetvision.contracts.errors import DataError, MachineError
from streetvision.contracts.progress import Silent
from streetvision.data.config import DataConfig
from streetvision.data.image_file import UndecodableImage
from streetvision.data.sources.csv_json import ColumnNames
from streetvision.data.sources.image_stream import list_image_refs, read_image_refs
from streetvision.data.sources.importer import import_images
from streetvision.data.sources.parquet_index import list_parquet
from streetvision.data.sources.tar_reader import open_tar
from streetvision.data.sources.webdataset import read_shard

NAMES = [f"{letter}.jpg" for letter in "abcdef"]
BLOCK, END = 512, bytes(1024)


def block(name: str, data: bytes = b"", *, kind: bytes = b"0", size: bytes | None = None) -> bytes:
    """A header with any size field and a right checksum, and the padded data."""
    header = bytearray(BLOCK)
    header[:100] = name.encode().ljust(100, b"\0")
    header[100:124] = b"0000644\0" + b"0000000\0" * 2
    header[124:136] = (b"%011o\0" % len(data)) if size is None else size
    header[136:148] = b"00000000000\0"
    header[156:157], header[257:265] = kind, b"ustar\x0000"
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data + bytes(-len(data) % BLOCK)


def files(*names: str) -> list[bytes]:
    return [block(name, name[0].encode() * 700) for name in names]


def read(path):
    """Name -> content or reason, of all members, and the fault of the archive."""
    started = time.process_time()
    found = {}
    with open_tar(path) as archive:
        for member in archive:
            try:
                found[member.name] = member.reason or archive.read(member)
            except UndecodableImage as error:
                found[member.name] = error.reason
    assert time.process_time() - started < 2
    return found, archive.fault


def whole(*names: str) -> dict[str, bytes]:
    return {name: name[0].encode() * 700 for name in names}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_the_archives_of_other_programs_are_read(tmp_path, format, mode):
    names = [*NAMES, "d/" + "n" * 120 + "/e.jpg", "é" * 30 + ".jpg", "fa\udce9.jpg"]
    with tarfile.open(tmp_path / "x.tar", mode, format=format) as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 700
            archive.addfile(info, io.BytesIO(name[0].encode() * 350 if name[0] == "é" else name[0].encode() * 700))
        folder = tarfile.TarInfo("d")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    found, fault = read(tmp_path / "x.tar")
    assert list(found) == names
    assert found["a.jpg"] == b"a" * 700
    assert fault is None


DAMAGE = {
    "header": lambda parts: [*parts[:2], b"\xff" * BLOCK + parts[2][BLOCK:], *parts[3:]],
    "checksum": lambda parts: [*parts[:2], parts[2][:148] + b"0000001\0" + parts[2][156:], *parts[3:]],
    "zero block": lambda parts: [*parts[:3], bytes(BLOCK), *parts[3:]],
    "garbage": lambda parts: [*parts[:3], b"garbage!" * 64 * 3, *parts[3:]],
    "lost block": lambda parts: [*parts[:2], parts[2][:BLOCK], *parts[3:]],
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("compress", [False, True])
def test_members_behind_damage_are_read_and_the_damage_is_named(tmp_path, name, compress):
    import gzip

    data = b"".join([*DAMAGE[name](files(*NAMES)), END])
    (tmp_path / "x.tar").write_bytes(gzip.compress(data) if compress else data)
    found, fault = read(tmp_path / "x.tar")
    kept = {key: value for key, value in found.items() if key in NAMES and value == whole(key)[key]}
    assert {"a.jpg", "b.jpg", "e.jpg", "f.jpg"} <= set(kept)
    assert fault or "c.jpg" in found
    lost = set(NAMES) - set(kept)
    assert not lost or fault or all(isinstance(found.get(key), str | bytes) for key in lost)
    if name != "lost block":
        assert "byte" in fault


@pytest.mark.parametrize("end", [b"", END[:100]])
def test_an_archive_without_its_end_has_a_fault(tmp_path, end):
    (tmp_path / "x.tar").write_bytes(b"".join(files(*NAMES)) + end)
    found, fault = read(tmp_path / "x.tar")
    assert found == whole(*NAMES)
    assert "without the mark of its end" in fault


def test_archives_behind_each_other_are_read(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"".join(files(*NAMES[:3])) + END + b"".join(files(*NAMES[3:])) + END)
    assert read(tmp_path / "x.tar") == (whole(*NAMES), None)


SIZES = {
    "negative": b"\xff" * 12,
    "huge": b"\x80" + b"\xff" * 11,
    "larger than the file": b"77777777777\0",
    "text": b"12a4567890\0\0",
    "minus": b"-0000000001\0",
}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("compress", [False, True])
def test_a_member_with_an_impossible_size_fails_alone(tmp_path, size, compress):
    import gzip

    bad = block("bad.jpg", b"x" * 700, size=size)
    data = b"".join([*files("a.jpg"), bad, *files("b.jpg", "c.jpg"), END])
    (tmp_path / "x.tar").write_bytes(gzip.compress(data) if compress else data)
    found, fault = read(tmp_path / "x.tar")
    assert {key: found[key] for key in ("a.jpg", "b.jpg", "c.jpg")} == whole("a.jpg", "b.jpg", "c.jpg")
    assert isinstance(found["bad.jpg"], str)
    assert fault is not None  # members without a readable header may be behind it


def record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + len(str(len(body) + 3))
    return b"%d" % length + body


EXTENDED = {
    "digits": block("x", b"9" * 200_000, kind=b"x"),
    "size of digits": block("x", record(b"size", b"9" * 4000), kind=b"x"),
    "negative size": block("x", record(b"size", b"-5"), kind=b"x"),
    "too large": block("x", b"x" * (2**20 + 1), kind=b"x"),
    "long name too large": block("x", b"n" * (2**20 + 1), kind=b"L"),
    "negative header": block("x", kind=b"x", size=b"\xff" * 12),
    "huge header": block("x", kind=b"x", size=b"\x80" + b"\xff" * 11),
    "no equals sign": block("x", b"10 abcdefg\n", kind=b"x"),
    "sparse": block("x", record(b"GNU.sparse.major", b"1"), kind=b"x"),
}


@pytest.mark.parametrize("name", EXTENDED)
def test_a_member_with_a_bad_extended_header_fails_alone(tmp_path, name):
    data = b"".join([*files("a.jpg"), EXTENDED[name], *files("b.jpg", "c.jpg", "d.jpg"), END])
    (tmp_path / "x.tar").write_bytes(data)
    found, fault = read(tmp_path / "x.tar")
    assert {key: found[key] for key in ("a.jpg", "c.jpg", "d.jpg")} == whole("a.jpg", "c.jpg", "d.jpg")
    assert isinstance(found["b.jpg"], str) or fault


@pytest.mark.parametrize(
    "headers",
    [
        (block("g", record(b"key %d" % number, b"v" * 10_000), kind=b"g") for number in range(300)),
        [block("n", kind=b"L")] * 12_000,
    ],
    ids=["records", "faults"],
)
def test_memory_does_not_grow_with_the_headers(tmp_path, headers):
    (tmp_path / "x.tar").write_bytes(b"".join([*headers, *files("a.jpg"), END]))
    tracemalloc.start()
    try:
        found, _ = read(tmp_path / "x.tar")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert list(found.values()) == [b"a" * 700]


def test_faults_beyond_the_first_are_counted(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"".join([block("n", kind=b"L")] * 101 + files("a.jpg") + [END]))
    assert read(tmp_path / "x.tar")[1].endswith("; and 95 more faults")


def test_links_and_sparse_files_are_named(tmp_path):
    parts = [*files("a.jpg"), block("l.jpg", kind=b"2"), block("h.jpg", kind=b"1"), block("s.jpg", b"s" * 9, kind=b"S")]
    (tmp_path / "x.tar").write_bytes(b"".join([*parts, *files("b.jpg"), END]))
    refs = {ref.name.rpartition("/")[2]: ref for ref in list_image_refs([tmp_path / "x.tar"])}
    assert [name for name, ref in refs.items() if ref.reason] == ["l.jpg", "h.jpg", "s.jpg"]
    read_back = dict(read_image_refs([refs["a.jpg"], refs["b.jpg"]]))
    assert list(read_back.values()) == [b"a" * 700, b"b" * 700]


def test_a_compressed_archive_that_expands_without_limit_is_left(tmp_path):
    import gzip

    (tmp_path / "x.tar").write_bytes(gzip.compress(b"".join(files("a.jpg")) + b"\0" * 100 * 2**20))
    found, fault = read(tmp_path / "x.tar")
    assert found == whole("a.jpg")
    assert fault


def test_a_cut_compressed_archive_gives_what_is_there(tmp_path):
    import gzip
    import random

    noise = random.Random(0).randbytes(200_000)
    data = gzip.compress(b"".join([block("a.jpg", noise), block("b.jpg", noise), END]))
    (tmp_path / "x.tar").write_bytes(data[: int(len(data) * 0.8)])
    found, fault = read(tmp_path / "x.tar")
    assert found["a.jpg"] == noise
    assert fault


def test_an_import_reads_what_it_can_and_fails(tmp_path):
    def sample(key, label):
        return [block(f"{key}.jpg", key.encode() * 700), block(f"{key}.cls", label.encode())]

    parts = [*sample("a", "0"), b"\xff" * BLOCK, *sample("b", "1"), *sample("c", "1"), END]
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "x.tar").write_bytes(b"".join(parts))
    with pytest.raises(DataError, match=r"x\.tar.*byte 2,560"):
        import_images(str(tmp_path / "shards"), tmp_path / "out", config=DataConfig(), progress=Silent())
    listing = list_parquet(tmp_path / "out" / "index.parquet", class_names=("None", "Roadwork"), columns=ColumnNames())
    assert [image.label for image in listing.images] == [0, 1, 1]


@pytest.mark.parametrize(
    ("number", "expected"), [(errno.EACCES, DataError), (errno.EIO, MachineError), (errno.EMFILE, MachineError)]
)
@pytest.mark.parametrize("good_blocks", [0, 1, 5])
def test_a_system_error_is_not_damage(tmp_path, monkeypatch, number, expected, good_blocks):
    class Failing(io.BytesIO):
        reads = 0

        def read(self, size=-1):
            self.reads += 1
            if self.reads > good_blocks:
                raise OSError(number, "no")
            return super().read(size)

    data = b"".join([*files("a.jpg"), block("a.cls", b"1"), END])
    (tmp_path / "x.tar").write_bytes(data)
    monkeypatch.setattr(Path, "open", lambda *_: Failing(data))
    with pytest.raises(expected) as raised:
        list(read_shard(tmp_path / "x.tar"))
    assert raised.value.code == expected.code
    (ref,) = (ref for ref in list_image_refs([tmp_path / "x.tar"]) if ref.reason)
    assert ref.kind == "unreadable"


def test_a_header_with_signed_checksum_is_read(tmp_path):
    header = bytearray(block("é.jpg"))
    header[148:156] = b"        "
    total = sum(struct.unpack("512b", bytes(header[:512])))
    header[148:156] = b"%06o\0 " % total
    (tmp_path / "x.tar").write_bytes(bytes(header) + END)
    assert read(tmp_path / "x.tar") == ({"é.jpg": b""}, None)
