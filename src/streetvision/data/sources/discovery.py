"""Find the images that `data.root` and `data.unlabeled` name, without opening them."""

import os
from collections.abc import Sequence
from pathlib import Path

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import DataError
from streetvision.data.config import HF_SPLIT
from streetvision.data.records import (
    ImageListing,
    ImageRecord,
    RejectedFile,
    check_both_classes,
    class_names_hint,
    image_suffix,
)
from streetvision.data.sources.csv_json import ColumnNames, list_csv, list_labels_json, list_paths
from streetvision.data.sources.huggingface import is_local_dataset, list_dataset
from streetvision.data.sources.parquet_index import INDEX, list_parquet

SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini"})
"""Files that operating systems create in image folders. Like hidden files they are ignored and not reported."""

TABLES = {".csv": list_csv, ".json": list_labels_json, ".parquet": list_parquet}
"""Suffix of a file that lists images -> its reader."""

UNLABELED = -1
"""Label of an image without a label."""

HUB_PREFIX = "hf://"
"""Prefix of owner/name on the Hugging Face hub. Without it nothing is downloaded, so a mistyped folder stays local."""


def list_images(
    root: str,
    *,
    class_names: tuple[str, str],
    import_to: Path,
    hf_split: str = HF_SPLIT,
    group_column: str | None = None,
    source_column: str | None = None,
) -> ImageListing:
    """List every image of `data.root`.

    The kind of the data set is detected. The first of these that applies is used: a table (index.csv, index.parquet,
    labels.json), a Hugging Face dataset, class folders. So an index.csv, which may name groups, is preferred to the
    class folders next to it.

    Args:
        root: A folder, a table, or hf://owner/name.
        class_names: Names of class 0 and class 1.
        import_to: Folder for the images of a Hugging Face dataset; nothing else is written.
        hf_split: Split of a Hugging Face dataset.
        group_column: Column with the group; None: `group` if it exists.
        source_column: Column with the source; None: `source` if it exists.

    Raises:
        DataError: `root` is not of a known kind, has no images of a class, or has an invalid line.
    """
    path = Path(root).expanduser()
    columns = ColumnNames(group_column, source_column)
    tables = [file for file in (path, path / "index.csv", path / INDEX, path / "labels.json") if file.is_file()]
    table = next((file for file in tables if file.suffix.lower() in TABLES), None)
    if table is None and (root.startswith(HUB_PREFIX) or is_local_dataset(path)):
        dataset = root.removeprefix(HUB_PREFIX)
        return list_dataset(dataset, split=hf_split, class_names=class_names, columns=columns, import_to=import_to)
    if hf_split != HF_SPLIT:
        raise DataError(
            f"data.hf_split={hf_split} has no effect when data.root {root!r} is not a Hugging Face dataset",
            "leave data.hf_split out",
        )
    if table is not None:
        return TABLES[table.suffix.lower()](table, class_names=class_names, columns=columns)
    if path.is_dir():
        columns.resolve((), f"data.root {root!r} consists of class folders and")
        return list_class_folders(path, class_names=class_names)
    raise DataError(
        f"data.root {root!r} " + ("is a file, but not .csv, .json or .parquet" if path.exists() else "does not exist"),
        f"set data.root to a folder with one sub-folder per class, a CSV, or {HUB_PREFIX}owner/name",
    )


def list_class_folders(root: Path, *, class_names: tuple[str, str]) -> ImageListing:
    """List the images of a folder with one sub-folder per class; names of classes match in any case.

    Sub-folders of a class folder are searched too, but they define no groups; an index.csv can. Files without the
    suffix of an image, and folders that are not a class, are in `skipped`.

    Raises:
        DataError: A class has no images.
    """
    labels = {name.casefold(): label for label, name in enumerate(class_names)}
    images: list[ImageRecord] = []
    skipped: list[RejectedFile] = []
    counts: dict[str, int] = {}
    for child in sorted(entry for entry in root.iterdir() if not _is_ignored(entry.name)):
        if not child.is_dir():
            skipped.append(RejectedFile(child.name, "is not in a class folder"))
            continue
        paths, others = files_under(child, root)
        counts[child.name] = len(paths)
        label = labels.get(child.name.casefold())
        if label is None:
            skipped.append(RejectedFile(child.name, f"is not a class folder (images in it: {len(paths):,})"))
            continue
        images += [ImageRecord(path, label) for path in paths]
        skipped += others
    hint = f"each class is a folder under data.root; {class_names_hint(class_names)}"
    check_both_classes(root, counts, class_names=class_names, hint=hint)
    return ImageListing(root, tuple(images), tuple(skipped))


def list_unlabeled(sources: Sequence[Path]) -> ImageListing:
    """List every image of `data.unlabeled` by absolute path.

    Args:
        sources: Folders, or CSVs with the column path and optionally group.

    Raises:
        DataError: A source has no images.
    """
    images: dict[str, ImageRecord] = {}
    skipped: list[RejectedFile] = []
    for source in sources:
        path = source.expanduser().absolute()
        if path.is_dir():
            names, others = files_under(path, Path("/"))
            records = [ImageRecord(f"/{name}", UNLABELED) for name in names]
            skipped += [RejectedFile(f"/{file.path}", file.reason) for file in others]
        elif path.suffix.casefold() == ".csv" and path.is_file():
            records = [ImageRecord(name, UNLABELED, group=group) for name, group in list_paths(path)]
        else:
            raise DataError(
                f"data.unlabeled {str(path)!r} is not a folder and not a CSV", "set it to folders or CSVs that exist"
            )
        if not records:
            raise DataError(f"data.unlabeled {str(source)!r} has no images", "remove it from data.unlabeled")
        images |= {record.path: record for record in records}
    return ImageListing(Path("/"), tuple(images.values()), tuple(skipped))


def files_under(folder: Path, root: Path) -> tuple[list[str], list[RejectedFile]]:
    """Return the images in `folder`, and its other files with a reason.

    Both are sorted Posix paths relative to `root`. The folder of a run is ignored, because its plots are not photos.
    """
    images: list[str] = []
    others: list[RejectedFile] = []
    for parent, folders, names in os.walk(folder):
        # Assigning to the slice makes os.walk leave out the removed folders.
        folders[:] = [
            name
            for name in folders
            if not _is_ignored(name) and not ArtifactSchema(Path(parent, name)).splits_json.is_file()
        ]
        within = Path(parent).relative_to(root)
        for name in folders:
            if Path(parent, name).is_symlink():
                link = _printable((within / name).as_posix())
                others.append(RejectedFile(link, "is a link to a folder, which is not followed"))
        for name in (name for name in names if not _is_ignored(name)):
            path = (within / name).as_posix()
            if _printable(path) != path:
                others.append(RejectedFile(_printable(path), "has a name that is not UTF-8"))
            elif image_suffix(name):
                images.append(path)
            else:
                others.append(RejectedFile(path, "does not have the suffix of an image"))
    return sorted(images), sorted(others, key=lambda file: file.path)


def _printable(path: str) -> str:
    """The path with bytes that are not UTF-8 escaped."""
    return path.encode(errors="backslashreplace").decode()


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name.casefold() in SYSTEM_FILES
