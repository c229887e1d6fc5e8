"""Images of a Hugging Face dataset, from the hub or a local folder, written out as files."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streetvision.contracts.errors import DataError
from streetvision.data.records import (
    Listed,
    Listing,
    check_classes,
    count_classes,
    image_suffix,
    label_of,
    naming_hint,
)
from streetvision.data.sources.csv_json import Columns
from streetvision.data.sources.parquet_index import INDEX
from streetvision.io.atomic import sha256_bytes, write_bytes_atomic

if TYPE_CHECKING:
    from datasets import Dataset

SAVED_DATASET = ("dataset_info.json", "dataset_dict.json")
"""Files that `save_to_disk` leaves in a dataset's folder."""


def is_local_dataset(folder: Path) -> bool:
    """Whether `folder` holds a dataset saved to disk, or Parquet files as the hub lays them out."""
    if (folder / INDEX).is_file():
        return False  # an import of our own
    saved = any((folder / name).is_file() for name in SAVED_DATASET)
    return saved or any(next(place.glob("*.parquet"), None) for place in (folder, folder / "data"))


def list_dataset(root: str, *, split: str, class_names: tuple[str, str], columns: Columns, import_to: Path) -> Listing:
    """The images of a dataset with the features `image` and `label`, an integer or a class label.

    Every image's bytes are written to `import_to` as they are, once, under a name made of their digest.
    Raises DataError when the dataset cannot be loaded or lacks a feature.
    """
    listed = []
    for data, original, image in stream_dataset(root, split=split, class_names=class_names, columns=columns):
        listed.append(replace(image, path=_write_once(data, original, import_to)))
    found = count_classes(listed, class_names)
    check_classes(root, found, class_names=class_names, hint=f"the split read is data.hf_split={split}")
    return Listing(import_to, tuple(listed))


def stream_dataset(
    root: str, *, split: str, class_names: tuple[str, str], columns: Columns
) -> Iterator[tuple[bytes, str | None, Listed]]:
    """Every image of a dataset: its bytes, the name it had, and what is listed of it, its path still empty.

    What comes from Parquet or the hub is streamed, one row in memory at a time. Raises DataError as `list_dataset`.
    """
    dataset = _load(root, split)
    optional = _check_features(root, dataset, columns)
    further = _further_features(dataset, taken={"image", "label", *optional.values()})
    for number, example in enumerate(_examples(dataset, root)):
        where = f"data.root {root!r} row {number}"
        label = _label(example["label"], dataset.features["label"], where, class_names)
        extras = {usual: _text_or_none(example[column]) for usual, column in optional.items()}
        said = {name: tell(example[name]) for name, tell in further.items() if example[name] is not None}
        yield (
            _image_bytes(example["image"], where),
            example["image"].get("path"),
            Listed("", label, **extras, columns=said),
        )


def _load(root: str, split: str) -> "Dataset":
    # Imported here because it takes seconds that no other kind of data set needs to pay.
    import datasets

    try:
        if any((Path(root) / name).is_file() for name in SAVED_DATASET):
            saved = datasets.load_from_disk(root)
            return saved[split] if isinstance(saved, datasets.DatasetDict) else saved
        streamed = datasets.load_dataset(root, split=split, streaming=True)
        return streamed if streamed.features else streamed._resolve_features()
    except Exception as error:  # the library raises whatever its file systems and the network raise
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"data.root {root!r} is no folder of images, and cannot be loaded as a dataset: {first_line}",
            f"give a folder, a CSV or hf://owner/name of a hub dataset with a split {split!r} (data.hf_split)",
        ) from error


def _check_features(root: str, dataset: "Dataset", columns: Columns) -> dict[str, str]:
    """'group' and 'source' -> their columns; raises DataError when image or label is missing."""
    for name in ("image", "label"):
        if name not in dataset.column_names:
            found = ", ".join(dataset.column_names)
            raise DataError(f"data.root {root!r} has no feature {name!r} (found: {found})", "rename the feature")
    return columns.resolve(dataset.column_names, f"data.root {root!r}")


def _further_features(dataset: "Dataset", taken: set[str]) -> dict[str, Callable[[Any], str]]:
    """Every other feature that is one value a row, and how it is told: a class label by its name."""
    import datasets

    return {
        name: feature.int2str if isinstance(feature, datasets.ClassLabel) else str
        for name, feature in dataset.features.items()
        if name not in taken and isinstance(feature, datasets.ClassLabel | datasets.Value)
    }


def _examples(dataset: "Dataset", root: str) -> Iterator[dict[str, Any]]:
    """The rows, their images as encoded bytes."""
    import datasets

    try:
        yield from dataset.cast_column("image", datasets.Image(decode=False))
    except Exception as error:  # as in _load: a stream may break at any row
        raise DataError(f"data.root {root!r} cannot be read any further: {error}", "repeat the command") from error


def _label(value: Any, feature: Any, where: str, class_names: tuple[str, str]) -> int:
    """0 or 1, by name where the dataset names its classes: their order there need not be ours."""
    names = getattr(feature, "names", None)
    text = names[value] if names and value is not None and value >= 0 else str(value)
    label = label_of(text, class_names)
    if label is None:
        expected = f"is not 0, 1, {class_names[0]!r} or {class_names[1]!r}"
        raise DataError(f"{where}: label {text!r} {expected}", naming_hint(class_names))
    return label


def _image_bytes(image: dict[str, Any] | None, where: str) -> bytes:
    if image is None:
        raise DataError(f"{where} has no image", "drop the row from the dataset")
    if image["bytes"] is not None:
        return bytes(image["bytes"])
    # Imported here because it brings torch, which a run with nothing to do does not need.
    from streetvision.data.decode import UndecodableImage, looks_like_image, read_image_bytes

    path = image.get("path")
    if not isinstance(path, str):
        raise DataError(f"{where} has an image without bytes or path", "drop the row from the dataset")
    try:
        data = read_image_bytes(Path(path))
    except UndecodableImage as error:
        raise DataError(f"{where}: image {path!r} {error.message}") from error
    if not looks_like_image(data):  # a dataset names what it likes on this disk
        raise DataError(f"{where}: {path!r} is not an image", "drop the row from the dataset")
    return data


def _write_once(data: bytes, original: str | None, folder: Path) -> str:
    """Write `data` unless it is there already; returns its name in `folder`."""
    path = folder / f"{sha256_bytes(data)}{image_suffix(original)}"
    if not path.exists():
        write_bytes_atomic(path, data)
    return path.name


def _text_or_none(value: object) -> str | None:
    return None if value is None or value == "" else str(value)
