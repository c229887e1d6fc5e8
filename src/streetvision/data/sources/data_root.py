"""From `data.root` to the list of its images: which kind of data set it is, and what it names."""

import os
from collections.abc import Sequence
from pathlib import Path

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import DataError
from streetvision.data.config import HF_SPLIT
from streetvision.data.records import BadFile, Listed, Listing, check_classes, image_suffix, naming_hint
from streetvision.data.sources.csv_json import Columns, list_csv, list_labels_json, list_paths
from streetvision.data.sources.huggingface import is_local_dataset, list_dataset
from streetvision.data.sources.parquet_index import INDEX, list_parquet

UNMENTIONED = frozenset({"thumbs.db", "desktop.ini"})
"""Files that systems leave in folders of images; like hidden ones they are passed over in silence."""

TABLES = {".csv": list_csv, ".json": list_labels_json, ".parquet": list_parquet}
"""Suffix of a file that lists images -> what reads it."""

NO_LABEL = -1
"""Of an image that nobody labelled."""
HUB_PREFIX = "hf://"
"""Before owner/name of a dataset on the Hugging Face hub: a mistyped folder must never go to the network."""


def list_images(
    root: str,
    *,
    class_names: tuple[str, str],
    import_to: Path,
    hf_split: str = HF_SPLIT,
    group_column: str | None = None,
    source_column: str | None = None,
) -> Listing:
    """Every image that `root` names, before any is read.

    `import_to` takes the images of a Hugging Face dataset; nothing else is written. Where a folder is of several kinds,
    the first in the chain below counts: an index.csv, which may know groups, wins over the class folders beside it.
    Raises DataError when `root` is of no known kind, names no images of a class, or has a line that makes no sense.
    """
    path = Path(root).expanduser()
    columns = Columns(group_column, source_column)
    tables = [file for file in (path, path / "index.csv", path / INDEX, path / "labels.json") if file.is_file()]
    table = next((file for file in tables if file.suffix.lower() in TABLES), None)
    if table is None and (root.startswith(HUB_PREFIX) or is_local_dataset(path)):
        dataset = root.removeprefix(HUB_PREFIX)
        return list_dataset(dataset, split=hf_split, class_names=class_names, columns=columns, import_to=import_to)
    if hf_split != HF_SPLIT:
        raise DataError(f"data.hf_split={hf_split} is read of a Hugging Face dataset, and {root!r} is none")
    if table is not None:
        return TABLES[table.suffix.lower()](table, class_names=class_names, columns=columns)
    if path.is_dir():
        columns.resolve((), f"data.root {root!r} is class folders and")
        return list_folders(path, class_names=class_names)
    raise DataError(
        f"data.root {root!r} is {'a file, and neither .csv nor .json' if path.exists() else 'not there'}",
        f"give a folder with one sub-folder a class, a CSV, or {HUB_PREFIX}owner/name of a dataset on the hub",
    )


def list_folders(root: Path, *, class_names: tuple[str, str]) -> Listing:
    """The images under one folder a class, at any depth; class folders match in any case.

    No group is guessed from deeper folders: an index.csv can name it. Files that do not look like images, and folders
    of no class, are in `left_out`.
    """
    labels = {name.casefold(): label for label, name in enumerate(class_names)}
    images: list[Listed] = []
    left_out: list[BadFile] = []
    found: dict[str, int] = {}
    for child in sorted(entry for entry in root.iterdir() if _is_mentioned(entry.name)):
        if not child.is_dir():
            left_out.append(BadFile(child.name, "lies in no class folder"))
            continue
        pictures, others = files_under(child, root)
        found[child.name] = len(pictures)
        if (label := labels.get(child.name.casefold())) is None:
            left_out.append(BadFile(child.name, f"is a folder of no class (images in it: {len(pictures):,})"))
            continue
        images += [Listed(path, label) for path in pictures]
        left_out += others
    hint = f"each class is a folder under data.root; {naming_hint(class_names)}"
    check_classes(root, found, class_names=class_names, hint=hint)
    return Listing(root, tuple(images), tuple(left_out))


def list_unlabeled(sources: Sequence[Path]) -> Listing:
    """Every image that the sources name, and the files left out, by absolute path; DataError if a source names none.

    A source is a folder, or a CSV with the column path and, where images belong together, group.
    """
    images: dict[str, Listed] = {}
    left_out: list[BadFile] = []
    for source in sources:
        found, others = _unlabeled(source.expanduser().absolute())
        if not found:
            raise DataError(f"data.unlabeled {str(source)!r} names no images")
        images |= {listed.path: listed for listed in found}
        left_out += others
    return Listing(Path("/"), tuple(images.values()), tuple(left_out))


def files_under(folder: Path, root: Path) -> tuple[list[str], list[BadFile]]:
    """Posix paths relative to `root` of the images in `folder`, and the other files with what is wrong, both sorted.

    What lies in the folder of a run is passed over: its plots are no photos.
    """
    pictures: list[str] = []
    others: list[BadFile] = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if _is_mentioned(name) and not _is_run(Path(place, name))]
        linked = [name for name in folders if Path(place, name).is_symlink()]
        others += [
            BadFile(_shown(Path(place, name), root), "is a link to a folder, and none is followed") for name in linked
        ]
        for name in filter(_is_mentioned, names):
            path = Path(place, name).relative_to(root).as_posix()
            if not _is_text(path):
                others.append(BadFile(_shown(Path(place, name), root), "has a name that is not UTF-8"))
            elif image_suffix(name):
                pictures.append(path)
            else:
                others.append(BadFile(path, "is not an image by its name"))
    return sorted(pictures), sorted(others, key=lambda bad: bad.path)


def _shown(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix().encode(errors="backslashreplace").decode()


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_run(folder: Path) -> bool:
    return ArtifactSchema(folder).splits_json.is_file()


def _is_mentioned(name: str) -> bool:
    return not name.startswith(".") and name.casefold() not in UNMENTIONED


def _unlabeled(source: Path) -> tuple[list[Listed], list[BadFile]]:
    if source.is_dir():
        pictures, others = files_under(source, Path("/"))
        return [Listed(f"/{path}", NO_LABEL) for path in pictures], [BadFile(f"/{o.path}", o.reason) for o in others]
    if source.suffix.casefold() != ".csv" or not source.is_file():
        raise DataError(f"data.unlabeled {str(source)!r} is neither a folder nor a CSV")
    return [Listed(path, NO_LABEL, group=group) for path, group in list_paths(source)], []
