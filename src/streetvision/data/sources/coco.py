"""Images with annotated objects, in the format of COCO: the objects of an image decide its label.

References:
    The format: Lin et al., arXiv 1405.0312; cocodataset.org, "Data format".
"""

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from streetvision.contracts.errors import DataError, unknown_name
from streetvision.data.config import CocoConfig
from streetvision.data.file_search import existing_name, files_under, folder_of_names
from streetvision.data.records import (
    ImageListing,
    ImageRecord,
    RejectedFile,
    check_both_classes,
    count_classes,
    fold_name,
    parse_group,
)
from streetvision.data.sources.csv_json import ColumnNames

FORMAT_HINT = (
    "COCO has lists `images` (id, file_name, width, height), `annotations` (image_id, category_id), `categories`"
)
OWN_FIELDS = frozenset({"id", "file_name", "width", "height", "license", "flickr_url", "coco_url", "date_captured"})
"""Fields of an image that are no metadata, except as its group or source."""
MAX_SIDE = 2**20
"""Pixels; a larger width or height is not one."""
IMAGES = "images"


def is_coco(content: object) -> bool:
    """Return whether the content of a JSON file has the form of COCO."""
    return isinstance(content, dict) and IMAGES in content and "annotations" in content


def list_coco(
    path: Path,
    content: Any,
    config: CocoConfig,
    *,
    class_names: tuple[str, str],
    columns: ColumnNames,
    one_class: bool = False,
) -> ImageListing:
    """List the images of a COCO file. Those with objects of the categories are class 1, those without any class 0.

    Images whose objects cover less than `config.min_area` are skipped: whether they are of class 1 is not clear.

    Args:
        path: The file.
        content: Its content.
        config: Which objects count, and where the images are.
        class_names: Names of class 0 and class 1.
        columns: Fields of an image with its group and its source.
        one_class: Whether images of one class alone are accepted.

    Raises:
        DataError: An entry is not valid, a category does not exist, or a class has no image.
    """
    counted = _categories(path, content, config)
    entries = _images(path, content)
    objects: dict[Any, int] = defaultdict(int)
    covered: dict[Any, float] = defaultdict(float)
    for number, annotation in enumerate(_entries(path, content, "annotations"), start=1):
        where = f"{path.name} annotation {number}"
        image = entries.get(_id(annotation, "image_id", where))
        if image is None:
            raise DataError(f"{where}: image_id {annotation['image_id']!r} is not in `images`", FORMAT_HINT)
        category = _id(annotation, "category_id", where)
        if category not in counted:
            raise DataError(f"{where}: category_id {category!r} is not in `categories`", FORMAT_HINT)
        if counted[category]:
            objects[image["id"]] += 1
            if config.min_area:
                pixels = _side(image, "width", path) * _side(image, "height", path)
                covered[image["id"]] += _area(annotation, where) / pixels
    folder = _image_folder(path, (image["file_name"] for image in entries.values()), config)
    fields = columns.resolve(dict.fromkeys(fold_name(name) for image in entries.values() for name in image), path.name)
    images: list[ImageRecord] = []
    skipped: list[RejectedFile] = []
    for identity, image in entries.items():
        name = existing_name(folder, PurePosixPath(image["file_name"]).as_posix())
        if objects[identity] and covered[identity] < config.min_area:
            share = f"{config.min_area:.2%}"
            skipped.append(
                RejectedFile(name, f"has objects, but they cover less than {share} of it (data.coco.min_area)")
            )
            continue
        values = {
            fold_name(key): str(value)
            for key, value in image.items()
            if isinstance(value, str | int | float) and str(value).strip()
        }
        metadata = {field: parse_group(values.pop(column, None)) for field, column in fields.items()}
        further = {key: value for key, value in values.items() if key not in OWN_FIELDS}
        images.append(ImageRecord(name, int(objects[identity] > 0), **metadata, columns=further))
    if config.negatives is not None:
        negatives = config.negatives.absolute()
        if not negatives.is_dir():
            raise DataError(f"data.coco.negatives {str(negatives)!r} is not a folder", "set it to a folder of images")
        found, others = files_under(negatives, Path("/"))
        images += [ImageRecord(f"/{name}", 0) for name in found]
        skipped += [RejectedFile(f"/{file.path}", file.reason) for file in others]
    check_both_classes(
        path,
        count_classes(images, class_names),
        class_names=class_names,
        hint="choose data.coco.categories, or give images without these objects in data.coco.negatives",
        one_class=one_class,
    )
    return ImageListing(folder, tuple(images), tuple(skipped))


def _categories(path: Path, content: Mapping[str, Any], config: CocoConfig) -> dict[Any, bool]:
    """Category id -> whether its objects make an image class 1."""
    names: dict[Any, str] = {}
    for number, category in enumerate(_entries(path, content, "categories"), start=1):
        where = f"{path.name} category {number}"
        name = category.get("name")
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{where}: {'name'!r} is {name!r}, not text", FORMAT_HINT)
        names[_id(category, "id", where)] = name
    chosen = {fold_name(name) for name in config.categories}
    for name in config.categories:
        if fold_name(name) not in map(fold_name, names.values()):
            error = unknown_name("category", name, names.values())
            raise DataError(f"data.coco.categories: {error.message}", error.hint)
    return {identity: not chosen or fold_name(name) in chosen for identity, name in names.items()}


def _images(path: Path, content: Mapping[str, Any]) -> dict[Any, dict[str, Any]]:
    """Id -> entry of each image."""
    images: dict[Any, dict[str, Any]] = {}
    files: set[str] = set()
    for number, image in enumerate(_entries(path, content, IMAGES), start=1):
        where = f"{path.name} image {number}"
        name = image.get("file_name")
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{where}: 'file_name' is {name!r}, not the name of a file", FORMAT_HINT)
        identity = _id(image, "id", where)
        if identity in images or name in files:
            raise DataError(
                f"{where}: {name!r} or its id {identity!r} is already listed above", "list every image once"
            )
        images[identity] = image
        files.add(name)
    return images


def _entries(path: Path, content: Mapping[str, Any], field: str) -> list[dict[str, Any]]:
    entries = content.get(field)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{path.name}: {field!r} is not a list of objects", FORMAT_HINT)
    return entries


def _id(entry: Mapping[str, Any], field: str, where: str) -> int | str:
    value = entry.get(field)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(f"{where}: {field!r} is {value!r}, neither a whole number nor text", FORMAT_HINT)
    return value


def _side(image: Mapping[str, Any], field: str, path: Path) -> int:
    value = image.get(field)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MAX_SIDE:
        raise DataError(
            f"{path.name}, {image['file_name']!r}: {field!r} is {value!r}, not a size in pixels", FORMAT_HINT
        )
    return value


def _area(annotation: Mapping[str, Any], where: str) -> float:
    """Area of an object in square pixels: its own, or that of its box."""
    box = annotation.get("bbox")
    area = annotation.get("area")
    if area is None and isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)):
        area = box[2] * box[3]
    if not _is_number(area) or area < 0:  # type: ignore[operator]
        raise DataError(f"{where}: 'area' is {area!r}, not a number of square pixels", FORMAT_HINT)
    return float(area)  # type: ignore[arg-type]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _image_folder(path: Path, names: Iterable[str], config: CocoConfig) -> Path:
    """The folder that file names are relative to."""
    if config.images is not None:
        folder = config.images
        if not folder.is_dir():
            raise DataError(f"data.coco.images {str(folder)!r} is not a folder", "set it to the folder of the images")
        return folder
    usual = (path.parent / IMAGES, path.parent.parent / IMAGES, path.parent)
    return folder_of_names((*usual, path.parent.parent), names)
