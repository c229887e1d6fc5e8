"""Labels in the formats of other tools: Label Studio's JSON, and CVAT for images 1.1 with one tag per image.

References:
    Label Studio, "Label Studio JSON format of annotated tasks"; labeling configuration Image and Choices.
    CVAT, "CVAT for image" annotation format, version 1.1, element `tag`.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.etree import ElementTree
from xml.parsers import expat

from streetvision.contracts.errors import ConfigError, DataError
from streetvision.data.labels.decisions import LabeledImage
from streetvision.data.records import image_suffix, parse_label
from streetvision.io.atomic import parse_json, read_bytes, write_bytes_atomic, write_json_atomic

CHOICE, IMAGE = "label", "image"
"""Names in the labeling configuration of Label Studio."""
MAX_IMAGES = 1_000_000
UPLOAD_PREFIX = re.compile("^[0-9a-f]{8}-")
"""What Label Studio puts before the name of an uploaded file."""


@dataclass(frozen=True)
class ForeignLabel:
    """A label in the file of another tool."""

    name: str
    """The image as the tool names it: a path, a URL or a file name."""
    label: int
    labeler: str | None = None


def write_label_studio(path: Path, images: Iterable[LabeledImage], class_names: tuple[str, str]) -> None:
    """Write tasks with one annotation each, as Label Studio imports them."""
    tasks = [
        {
            "data": {IMAGE: f"/data/local-files/?d={quote(image.path.lstrip('/'))}", "sha256": image.sha256},
            "annotations": [
                {
                    "result": [
                        {
                            "from_name": CHOICE,
                            "to_name": IMAGE,
                            "type": "choices",
                            "value": {"choices": [class_names[image.label]]},
                        }
                    ]
                }
            ],
        }
        for image in images
    ]
    write_json_atomic(path, tasks)


def read_label_studio(path: Path, class_names: tuple[str, str]) -> list[ForeignLabel]:
    """Return the labels of a JSON or JSON-MIN export of Label Studio; tasks without a label are left out.

    The image is the field IMAGE, or else the first field that names an image file.

    Raises:
        DataError: A task is malformed, or has a choice that is not a class.
    """
    try:
        tasks = parse_json(read_bytes(path))
    except ValueError as error:
        raise DataError(f"{str(path)!r} cannot be read as JSON: {error}") from error
    if not isinstance(tasks, list) or len(tasks) > MAX_IMAGES:
        raise DataError(f"{str(path)!r} is not a list of tasks", "export from Label Studio as JSON")
    found = []
    for number, task in enumerate(tasks, start=1):
        where = f"{path.name} task {number}"
        try:
            data = task.get("data", task)
            image = data[IMAGE] if IMAGE in data else next(value for value in data.values() if _is_image(value))
            name = _local_path(str(image))
            choices: list[tuple[object, object]] = []
            if "annotations" in task:
                for annotation in task["annotations"]:
                    if not annotation.get("was_cancelled"):
                        by = annotation.get("completed_by")
                        choices += [
                            (choice, by)
                            for result in annotation["result"]
                            if result["type"] == "choices"
                            for choice in result["value"]["choices"]
                        ]
            else:
                value = task.get("choice", task.get(CHOICE))
                choices = [] if value is None else [(value, task.get("annotator"))]
        except (AttributeError, KeyError, TypeError, ValueError, StopIteration) as error:
            raise DataError(
                f"{where} has no image, an invalid address or no list of choices", "export from Label Studio as JSON"
            ) from error
        for choice, by in choices:
            label = parse_label(str(choice), class_names=class_names, where=where)
            found.append(ForeignLabel(name, label, _person(by)))
    return found


def write_cvat(path: Path, images: Iterable[LabeledImage], class_names: tuple[str, str]) -> None:
    """Write an annotations.xml of CVAT for images 1.1 with one tag per image."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    labels = ElementTree.SubElement(task, "labels")
    for name in class_names:
        label = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(label, "name").text = name
        ElementTree.SubElement(label, "attributes")
    for number, image in enumerate(images):
        element = ElementTree.SubElement(root, "image", id=str(number), name=image.path.lstrip("/"))
        ElementTree.SubElement(element, "tag", label=class_names[image.label], source="manual")
    ElementTree.indent(root)
    write_bytes_atomic(path, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")


def read_cvat(path: Path, class_names: tuple[str, str]) -> list[ForeignLabel]:
    """Return the tags of an annotations.xml of CVAT for images 1.1; images without a tag are left out.

    Raises:
        DataError: The file is not XML, declares a document type, or has a tag that is not a class.
    """
    data = read_bytes(path)
    _check_xml(data, path)
    root = ElementTree.fromstring(data)  # noqa: S314 (checked: no document type, so no entities)
    if root.tag != "annotations":
        raise DataError(f"{str(path)!r} is not of CVAT: its root is {root.tag!r}", "export as 'CVAT for images 1.1'")
    found = []
    for image in root.iter("image"):
        name = image.get("name")
        where = f"{path.name} image {image.get('id')}"
        if not name:
            raise DataError(f"{where} has no name")
        for tag in image.iter("tag"):
            label = parse_label(tag.get("label", ""), class_names=class_names, where=where)
            found.append(ForeignLabel(name, label))
    return found


def _check_xml(data: bytes, path: Path) -> None:
    """Raise DataError unless the document is well formed, without a document type: entities may fill the memory."""

    def reject(*_: object) -> None:
        raise DataError(f"{str(path)!r} declares a document type, which CVAT does not write", "remove <!DOCTYPE ...>")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = reject
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, LookupError, ValueError) as error:  # the last two: its encoding
        raise DataError(f"{str(path)!r} is not XML: {error}", "export as 'CVAT for images 1.1', in UTF-8") from error


READERS: Mapping[str, Callable[[Path, tuple[str, str]], list[ForeignLabel]]] = {
    ".json": read_label_studio,
    ".xml": read_cvat,
}
WRITERS: Mapping[str, Callable[[Path, Iterable[LabeledImage], tuple[str, str]], None]] = {
    ".json": write_label_studio,
    ".xml": write_cvat,
}
"""Suffix -> format: Label Studio's JSON and CVAT's XML."""


def exchange_format(path: Path) -> str:
    """Return the suffix of a file for READERS and WRITERS; raises ConfigError for any other."""
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise ConfigError(
            f"{str(path)!r} is neither .json (Label Studio) nor .xml (CVAT)", "give it one of these names"
        )
    return suffix


def match_names(names: Sequence[str], paths: Sequence[str]) -> dict[str, str]:
    """Return name -> path, of the names of another tool that belong to exactly one image, which has no better name.

    Tools store images below other folders. So a name belongs to the image of the same file name with which it shares
    the most last parts of the path, or else to the one whose file name follows the upload prefix of Label Studio. Of
    several names for one image, the one that shares the most parts is kept; on a tie, none is.

    Args:
        names: Names in the file.
        paths: Absolute paths of the images.
    """
    by_end: dict[tuple[str, ...], str | None] = {}  # the last parts of a path -> the path, None if several have them
    for path in paths:
        for end in _ends(path):
            by_end[end] = None if end in by_end else path
    by_path: dict[str, list[tuple[int, str]]] = {}
    for name in dict.fromkeys(names):
        uploaded = UPLOAD_PREFIX.sub("", PurePosixPath(name).name)
        count, end = max(((len(end), end) for end in _ends(name) if end in by_end), default=(0, (uploaded,)))
        if (matched := by_end.get(end)) is not None:
            by_path.setdefault(matched, []).append((count, name))
    return {name: path for path, found in by_path.items() for _, name in _only_best(found)}


def _only_best(counted: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """The item with the highest count; none if several have it."""
    highest = max((count for count, _ in counted), default=0)
    best = [item for item in counted if item[0] == highest]
    return best if len(best) == 1 else []


def _ends(path: str) -> list[tuple[str, ...]]:
    """The last parts of a path: the file name, the file name with its folder, and so on."""
    parts = PurePosixPath(path).parts
    return [parts[start:] for start in reversed(range(len(parts)))]


def _is_image(value: object) -> bool:
    return isinstance(value, str) and image_suffix(_local_path(value)) != ""


def _local_path(name: str) -> str:
    """The path in a URL of Label Studio: /data/local-files/?d=PATH, /data/upload/1/FILE, or s3://bucket/PATH."""
    parts = urlsplit(name)
    queried = parse_qs(parts.query).get("d", [""])[0]
    return queried or unquote(parts.path)


def _person(value: object) -> str | None:
    if isinstance(value, dict):
        value = value.get("email") or value.get("id")
    return None if value is None else str(value)[:80]
