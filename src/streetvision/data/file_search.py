"""Search folders for images. Every command lists the images of a folder with `search_folder`, by the same rules.

Hidden names and the files and folders that operating systems and file servers create are ignored. Everything else that
is not an image is reported with a reason. Links to folders are not followed; links to files are.
"""

import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePath

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import DataError
from streetvision.data.records import IMAGE_SUFFIXES, RejectedFile
from streetvision.io.system_files import is_system_name

UNSUPPORTED_FORMATS = (
    {".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".j2k", ".jpx", ".jxr", ".svg", ".psd", ".ico", ".dds", ".exr"}
    | {".hdr", ".pbm", ".pgm", ".ppm", ".pnm", ".tga", ".dib", ".mpo", ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw"}
    | {".arw", ".srf", ".sr2", ".orf", ".rw2", ".raf", ".pef", ".srw", ".x3f", ".3fr", ".iiq", ".insp"}
)
"""Suffixes of image formats that are not read."""
ARCHIVES = frozenset({".tar", ".tgz", ".gz", ".bz2", ".xz", ".zip", ".7z", ".rar"})
RUN_FOLDER = "is the folder of a run"
NO_IMAGE = "does not have the suffix of an image"
DRIVE = re.compile(r"[A-Za-z]:[\\/]")
MAX_NAMED = 50
"""Files that LeftOut names; the others are counted."""
MAX_COMPARED = 20
"""Listed names by which the folder of a table's images is chosen."""


@dataclass(frozen=True)
class FoundFile:
    """One entry of a searched folder that is not ignored."""

    path: str
    """The path, with the searched folder in front."""
    reason: str = ""
    """Why it is not used; completes the sentence "this file ...". Empty for a file to use."""
    unreadable: bool = False
    """Whether it is a folder that cannot be read."""


def is_ignored(name: str) -> bool:
    """Whether a name is hidden, or is a file or folder of the operating system or a file server."""
    return name.startswith(".") or is_system_name(name)


def search_folder(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> Iterator[FoundFile]:
    """Yield everything in `folder` and its sub-folders that is not ignored: the files of a folder by name, then its
    sub-folders by name.

    Files with one of the suffixes are to be used. Other files, links to folders, folders of runs and folders that
    cannot be read are yielded with a reason. Memory holds the names of one folder, and the sub-folders that are still
    to be searched.
    """
    pending = [str(folder)]
    while pending:
        here, folders = pending.pop(), list[str]()
        try:
            with os.scandir(here) as listing:
                entries = sorted((entry for entry in listing if not is_ignored(entry.name)), key=lambda e: e.name)
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    yield FoundFile(entry.path, _reason_against(entry, suffixes))
                # The plots of a run are not photographs. Path.is_file raises if the folder is closed.
                elif os.path.isfile(ArtifactSchema(Path(entry.path)).splits_json):  # noqa: PTH113
                    yield FoundFile(entry.path, RUN_FOLDER)
                else:
                    folders.append(entry.path)
        except OSError as error:
            yield FoundFile(here, f"cannot be read: {error.strerror or error}", unreadable=True)
        pending.extend(reversed(folders))


def _reason_against(entry: "os.DirEntry[str]", suffixes: Collection[str]) -> str:
    """Why a file or link is not used; empty if it is."""
    suffix = PurePath(entry.name).suffix.lower()
    if entry.is_symlink() and os.path.isdir(entry.path):  # noqa: PTH112 (Path.is_dir raises if the target is closed)
        return "is a link to a folder, which is not followed"
    return "" if suffix in suffixes else reason_against_suffix(suffix)


def reason_against_suffix(suffix: str) -> str:
    """Return why a file with this lower-case suffix is not used; the suffix is not that of a supported image."""
    if suffix in UNSUPPORTED_FORMATS:
        return f"has a format that is not read ({suffix[1:].upper()}): convert it to JPEG or PNG"
    return "is an archive" if suffix in ARCHIVES else NO_IMAGE


def printable(path: str) -> str:
    """Return a path with bytes that are not UTF-8 escaped."""
    return path.encode(errors="backslashreplace").decode()


class LeftOut:
    """Counts the files that are left out, and keeps the first of them with their reasons."""

    def __init__(self) -> None:
        self.count, self.first = 0, list[RejectedFile]()

    def add(self, file: RejectedFile) -> None:
        """Count a file."""
        self.count += 1
        if len(self.first) < MAX_NAMED:
            self.first.append(file)

    def lines(self) -> list[str]:
        """Return a line with the number of files, and one for each of the first; no line if there are none."""
        if not self.count:
            return []
        more = [f"  and {self.count - MAX_NAMED:,} more"] if self.count > MAX_NAMED else []
        title = f"{self.count:,} {'file or folder is' if self.count == 1 else 'files and folders are'} left out:"
        return [title, *(f"  {file.path} {file.reason}" for file in self.first), *more]


def existing_name(folder: Path, name: str) -> str:
    """Return the form of the relative path `name` that exists in `folder`; `name` itself if none does.

    macOS writes names with accents decomposed (NFD), and most programs write them composed (NFC). Both are tried.
    """
    if name.isascii() or _exists(folder / name):
        return name
    found = Path("/") if name.startswith("/") else Path()
    for part in Path(name).parts:
        forms = (part, unicodedata.normalize("NFC", part), unicodedata.normalize("NFD", part))
        form = next((form for form in forms if _exists(folder / found / form)), None)
        if form is None:
            return name
        found /= form
    return found.as_posix()


def folder_of_names(folders: Sequence[Path], names: Iterable[str]) -> Path:
    """Return the folder in which most of the first listed names exist; of equal ones the first that is a folder.

    Args:
        folders: Possible folders, the usual ones first.
        names: Listed names, relative to one of the folders.
    """
    first = list(islice(names, MAX_COMPARED))
    existing = [folder for folder in folders if folder.is_dir()] or folders
    return max(existing, key=lambda folder: sum(_exists(folder / existing_name(folder, name)) for name in first))


def missing_reason(folder: Path, name: str) -> str:
    """Return why the listed file `name` is missing in `folder`; completes the sentence "this file ..."."""
    reason, path = "does not exist", Path(name.replace("\\", "/"))
    if "\\" in name and _exists(folder / path):
        return f"{reason}, but {path.as_posix()} does: write / instead of \\"
    if DRIVE.match(name):
        return f"{reason}: it is a path of another computer"
    # Path.is_dir raises if the folder is closed.
    places = [Path(place.name) for place in _entries(folder) if os.path.isdir(place)]  # noqa: PTH112
    siblings = [other.name for other in _entries((folder / path).parent)]
    expected, stem = path.name.casefold(), path.stem.casefold()
    near = [path.with_name(other) for other in siblings if other.casefold() == expected]
    near += [path.with_name(other) for other in siblings if Path(other).stem.casefold() == stem]
    near += [place / path for place in places if not path.is_absolute() and _exists(folder / place / path)]
    return f"{reason}, but {near[0].as_posix()} does" if near else reason


def _entries(folder: Path) -> list[Path]:
    """The entries of a folder; none if it does not exist or cannot be read."""
    try:
        return list(folder.iterdir())
    except (OSError, ValueError):
        return []


def _exists(path: Path) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:  # a NUL in the name
        return False


def files_under(folder: Path, root: Path) -> tuple[list[str], list[RejectedFile]]:
    """Return the images in `folder`, and its other files with a reason, as sorted Posix paths relative to `root`.

    Raises:
        DataError: A sub-folder cannot be read.
    """
    images: list[str] = []
    others: list[RejectedFile] = []
    prefix = "" if root == Path() else f"{str(root).rstrip('/')}/"
    for found in search_folder(folder):
        if found.unreadable:
            raise DataError(
                f"{printable(found.path)!r} {found.reason}", "give read permission, or move it out of the data set"
            )
        path = found.path.removeprefix(prefix)
        if found.reason:
            others.append(RejectedFile(printable(path), found.reason))
        elif printable(path) != path:
            others.append(RejectedFile(printable(path), "has a name that is not UTF-8"))
        else:
            images.append(path)
    return sorted(images), sorted(others, key=lambda file: file.path)
