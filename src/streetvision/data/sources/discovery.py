"""Find the images that `data.root` and `data.unlabeled` name, without opening them."""

import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from itertools import islice
from pathlib import Path

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import DataError
from streetvision.contracts.settings import list_setting
from streetvision.data.config import CLASS_NAMES, HF_SPLIT, CocoConfig
from streetvision.data.file_search import NO_IMAGE, RUN_FOLDER, files_under, is_ignored, printable, search_folder
from streetvision.data.grouping.name_pattern import groups_by_name
from streetvision.data.records import (
    ImageListing,
    ImageRecord,
    RejectedFile,
    check_both_classes,
    class_names_hint,
    fold_name,
    image_suffix,
)
from streetvision.data.sources.coco import is_coco, list_coco
from streetvision.data.sources.csv_json import ColumnNames, list_csv, list_labels_json, list_paths, read_json_table
from streetvision.data.sources.huggingface import OWN_TABLES, is_local_dataset, list_dataset
from streetvision.data.sources.parquet_index import INDEX, list_parquet
from streetvision.data.sources.webdataset import find_shards

TABLES = {".csv": list_csv, ".json": list_labels_json, ".parquet": list_parquet}
"""Suffix of a file that lists images -> its reader."""

NO_COCO = CocoConfig()
MAX_NEIGHBORS = 1000
"""Names in the parent folder of a path that does not exist that are compared with it, for a hint."""
MAX_UNLISTED_NAMED = 2
"""Images that a table does not list and the warning names."""

UNLABELED = -1
"""Label of an image without a label."""

HUB_PREFIX = "hf://"
"""Prefix of owner/name on the Hugging Face hub. Without it nothing is downloaded, so a mistyped folder stays local."""


def find_table(root: Path) -> Path | None:
    """Return the file that lists the images of `root`: itself, or one in this folder; None if there is none."""
    tables = [file for file in (root, root / "index.csv", root / INDEX, root / "labels.json") if file.is_file()]
    return next((file for file in tables if file.suffix.lower() in TABLES), None)


def is_dataset(root: str, class_names: tuple[str, str]) -> bool:
    """Whether `data.root` is a Hugging Face dataset: on the hub, or in a folder without a table and class folders."""
    if root.startswith(HUB_PREFIX):
        return True
    path = Path(root)
    return is_local_dataset(path) and find_table(path) is None and not _has_class_folders(path, class_names)


def _has_class_folders(folder: Path, class_names: tuple[str, str]) -> bool:
    """Whether a folder has one sub-folder for each class."""
    children = {fold_name(child.name) for child in folder.iterdir() if child.is_dir()}
    return children >= {fold_name(name) for name in class_names}


def list_images(
    root: str,
    *,
    class_names: tuple[str, str],
    import_to: Path,
    hf_split: str = HF_SPLIT,
    group_column: str | None = None,
    source_column: str | None = None,
    coco: CocoConfig = NO_COCO,
    one_class: bool = False,
    other_folders: bool = False,
) -> ImageListing:
    """List every image of `data.root`.

    The kind of the data set is detected. The first of these that applies is used: a table (index.csv, index.parquet,
    labels.json, a JSON file of COCO), two class folders, a Hugging Face dataset, one class folder. So an index.csv,
    which may name groups, is preferred to the class folders next to it. A warning counts the images in the folder that
    its index.csv or labels.json does not list.

    Args:
        root: A folder, a table, or hf://owner/name.
        class_names: Names of class 0 and class 1.
        import_to: Folder for the images of a Hugging Face dataset; nothing else is written.
        hf_split: Split of a Hugging Face dataset.
        group_column: Column with the group; None: `group` if it exists.
        source_column: Column with the source; None: `source` if it exists.
        coco: Which objects of a COCO file make an image class 1.
        one_class: Whether images of one class alone are accepted.
        other_folders: Whether `one_class` also holds for a class folder next to other folders with images.

    Raises:
        DataError: `root` is not of a known kind, has no images of a class, or has an invalid line.
    """
    path, columns = Path(root), ColumnNames(group_column, source_column)
    try:
        table = find_table(path)
        if table is not None and table.suffix.lower() == ".json" and is_coco(content := read_json_table(table)):
            return list_coco(table, content, coco, class_names=class_names, columns=columns, one_class=one_class)
        if coco != NO_COCO:
            raise DataError(
                f"data.coco has no effect when data.root {root!r} is not a JSON file of COCO", "leave data.coco out"
            )
        if is_dataset(root, class_names):
            return list_dataset(
                root.removeprefix(HUB_PREFIX),
                split=hf_split,
                class_names=class_names,
                columns=columns,
                import_to=import_to,
                one_class=one_class,
            )
        if hf_split != HF_SPLIT:
            raise DataError(
                f"data.hf_split={hf_split} has no effect when data.root {root!r} is not a Hugging Face dataset",
                "leave data.hf_split out",
            )
        if table is not None:
            listing = TABLES[table.suffix.lower()](table, class_names=class_names, columns=columns, one_class=one_class)
            # A table that data.root names is a choice, and an index of an import has images of other folders.
            if table == path or table.name == INDEX:
                return listing
            return replace(listing, warnings=(*listing.warnings, *_unlisted_warnings(table, listing.images)))
        if path.is_dir():
            columns.resolve((), f"data.root {root!r} consists of class folders and")
            return list_class_folders(path, class_names=class_names, one_class=one_class, other_folders=other_folders)
        kind = "is a file, but not .csv, .json or .parquet" if path.exists() else "does not exist"
    except PermissionError as error:
        raise DataError(
            f"{error.filename or root!r} cannot be read: {error.strerror}", "give read permission"
        ) from error
    hint = f"give a folder with one sub-folder per class, a CSV, or {HUB_PREFIX}owner/name"
    if find_shards(path):
        hint = _import_hint(path)
    with suppress(OSError):  # the parent does not exist either, or cannot be listed
        neighbors = sorted(entry.name for entry in islice(path.parent.iterdir(), MAX_NEIGHBORS))
        if kind == "does not exist" and (similar := get_close_matches(path.name, neighbors, n=1)):
            hint = f"did you mean {str(path.with_name(similar[0]))!r}?"
    raise DataError(f"data.root {root!r} {kind}", hint)


def _unlisted_warnings(table: Path, images: Sequence[ImageRecord]) -> list[str]:
    """A warning if images in the folder of `table` are not in it."""
    folder = table.parent.absolute()
    listed = {os.path.normpath(os.path.join(folder, image.path)) for image in images}  # noqa: PTH118 (speed)
    found = (file.path for file in search_folder(Path(os.path.normpath(folder))) if not file.reason)
    unlisted = sorted(path for path in found if path not in listed)
    if not unlisted:
        return []
    first = ", ".join(printable(os.path.relpath(path, folder)) for path in unlisted[:MAX_UNLISTED_NAMED])
    return [
        f"{len(unlisted):,} images in {str(table.parent)!r} are not used, because {table.name} does not list them: "
        f"{first}" + (", ..." if len(unlisted) > MAX_UNLISTED_NAMED else "")
    ]


def class_names_warning(listing: ImageListing, class_names: tuple[str, str]) -> str | None:
    """What to warn of if labels that are not names get the default ones, and no folder above the images has one."""
    words = " ".join(listing.root.absolute().parts[1:]).casefold()
    if not listing.unnamed_labels or class_names != CLASS_NAMES or CLASS_NAMES[1].casefold() in words:
        return None
    labels = " and ".join(listing.unnamed_labels)
    return (
        f"the labels are {labels}; reports call them {class_names[0]} and {class_names[1]}: "
        "set 'data.class_names=[NAME_OF_0,NAME_OF_1]' if the question is another one"
    )


def list_class_folders(
    root: Path, *, class_names: tuple[str, str], one_class: bool = False, other_folders: bool = False
) -> ImageListing:
    """List the images of a folder with one sub-folder per class; names of classes match in any case.

    Sub-folders of a class folder are searched too, but they define no groups; an index.csv can. Everything else in
    `root` that is not ignored is in `skipped`.

    Raises:
        DataError: A class has no images (with `one_class`: both have none, or another folder has images and
            `other_folders` is false), or a folder cannot be read.
    """
    labels = {fold_name(name): label for label, name in enumerate(class_names)}
    images: list[ImageRecord] = []
    skipped: list[RejectedFile] = []
    unread: list[RejectedFile] = []
    counts: dict[str, int] = {}
    loose = 0
    for child in sorted(entry for entry in root.iterdir() if not is_ignored(entry.name)):
        label = labels.get(fold_name(child.name))
        if not child.is_dir():
            loose += bool(image_suffix(child.name))
            skipped.append(RejectedFile(printable(child.name), "is not in a class folder"))
        elif label is None and ArtifactSchema(child).splits_json.is_file():
            skipped.append(RejectedFile(child.name, RUN_FOLDER))
        else:
            paths, others = files_under(child, root)
            counts[child.name] = len(paths)
            if label is None:
                reason = f"is not a class folder (images in it: {len(paths):,})"
                skipped.append(RejectedFile(printable(child.name), reason))
            else:
                images += [ImageRecord(path, label) for path in paths]
                skipped += others
                unread += others if not paths else []
    found = counts | ({"images outside of class folders": loose} if loose else {})
    hint = _unread_hint(unread) or partial(_layout_hint, root, counts, class_names=class_names)
    # The other folder may be the other class under another name.
    one_class = one_class and (
        other_folders or not any(counts[name] for name in counts if fold_name(name) not in labels)
    )
    check_both_classes(root, found, class_names=class_names, hint=hint, one_class=one_class)
    return ImageListing(root, tuple(images), tuple(skipped))


def _unread_hint(files: Sequence[RejectedFile]) -> str | None:
    """The first of the files that may be or have images, and why it is not read; None if there is none."""
    return next((f"{file.path} {file.reason}" for file in files if file.reason != NO_IMAGE), None)


def _layout_hint(root: Path, counts: Mapping[str, int], *, class_names: tuple[str, str]) -> str:
    """The setting that fits the content of `root`, which lacks a class folder."""
    tables = [
        path
        for path in sorted(root.iterdir())
        if path.suffix.lower() in TABLES and path.name not in OWN_TABLES and path.is_file()
    ]
    # The images to train on first: test sorts before train.
    folders = sorted(root.iterdir(), key=lambda path: (not path.name.casefold().startswith("train"), path))
    inner = [folder for folder in folders if folder.is_dir() and _has_class_folders(folder, class_names)]
    inner += [folder for folder in folders if (folder / "index.csv").is_file()]
    filled = [name for name, count in counts.items() if count]
    if tables:
        return f"if {tables[0].name} lists the images, set data.root={shlex.quote(str(tables[0]))}"
    if inner:
        others = f" (also possible: {', '.join(folder.name for folder in inner[1:4])})" if inner[1:] else ""
        return f"set data.root={shlex.quote(str(inner[0]))}{others}; its images are divided into the four splits"
    if find_shards(root):
        return _import_hint(root)
    if len(filled) == 2:
        labels = {fold_name(name): label for label, name in enumerate(class_names)}
        filled.sort(key=lambda name: labels.get(fold_name(name), 0.5))  # a known class keeps its place
        setting, swapped = (list_setting("data.class_names", names) for names in (filled, filled[::-1]))
        return f"set {setting} to find {filled[1]!r}, or {swapped} to find {filled[0]!r}"
    return f"each class is a folder under data.root, or an index.csv lists path,label; {class_names_hint(class_names)}"


def _import_hint(tars: Path) -> str:
    """The command that imports a tar, or the tars of a folder."""
    return f"import the tars first: {shlex.join(['streetvision', 'data', 'import', str(tars), '--to', 'FOLDER'])}"


def list_unlabeled(sources: Sequence[Path], *, group_pattern: str | None = None) -> ImageListing:
    """List every image of `data.unlabeled`, or of `label --images`, by absolute path.

    Args:
        sources: Folders, or CSVs with the column path and optionally group.
        group_pattern: The setting data.group_pattern, for images without a group; paths start at the folder or CSV.

    Raises:
        DataError: A source has no images, or two sources give one image different groups.
    """
    images: dict[str, ImageRecord] = {}
    names_below: dict[str, str] = {}
    skipped: list[RejectedFile] = []
    for source in sources:
        path, others = source.absolute(), list[RejectedFile]()
        folder = path if path.is_dir() else path.parent
        if path.is_dir():
            names, left_out = files_under(path, Path("/"))
            records = [ImageRecord(f"/{name}", UNLABELED) for name in names]
            others = [RejectedFile(f"/{file.path}", file.reason) for file in left_out]
            skipped += others
        elif path.suffix.casefold() == ".csv" and path.is_file():
            records = [ImageRecord(name, UNLABELED, group=group) for name, group in list_paths(path)]
        else:
            raise DataError(
                f"{str(path)!r} is not a folder and not a CSV",
                "give data.unlabeled, or --images of `streetvision label`, folders or CSVs that exist",
            )
        if not records:
            hint = _unread_hint(others) or "remove it from data.unlabeled or --images"
            raise DataError(f"{str(source)!r} has no images", hint)
        for record in records:
            earlier = images.get(record.path, record)
            if len(groups := {earlier.group, record.group} - {None}) > 1:
                found = " and ".join(map(repr, groups))
                raise DataError(f"{str(source)!r}: {record.path!r} has the groups {found}", "give it one group")
            images[record.path] = earlier if record.group is None else record
            names_below.setdefault(record.path, record.path.removeprefix(f"{folder}/"))
    listed = tuple(images.values())
    if group_pattern is not None:
        found_groups = groups_by_name([names_below[image.path] for image in listed], group_pattern)
        listed = tuple(
            replace(image, group=image.group or group) for image, group in zip(listed, found_groups, strict=True)
        )
    return ImageListing(Path("/"), listed, tuple(skipped))
