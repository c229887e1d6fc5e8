"""Images of a Hugging Face dataset, from the hub or from a local folder."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streetvision.contracts.errors import DataError
from streetvision.data.config import HF_SPLIT
from streetvision.data.image_file import READERS, UndecodableImage, read_image_bytes
from streetvision.data.records import (
    ImageListing,
    ImageRecord,
    check_both_classes,
    count_classes,
    image_suffix,
    missing_label_warnings,
    parse_group,
    parse_label,
    repeated_images,
)
from streetvision.data.sources.csv_json import ColumnNames
from streetvision.data.sources.parquet_index import INDEX, LABELS
from streetvision.io.atomic import sha256_bytes, write_bytes_atomic

if TYPE_CHECKING:
    from datasets import Dataset

SAVED_DATASET = ("dataset_info.json", "dataset_dict.json")
"""Files that `save_to_disk` writes into the folder of a dataset."""
OWN_TABLES = frozenset({INDEX, LABELS})
"""Parquet files that streetvision writes, which are no dataset."""


def is_local_dataset(folder: Path) -> bool:
    """Whether `folder` has a dataset saved with `save_to_disk`, or Parquet files in the layout of the hub."""
    saved = any((folder / name).is_file() for name in SAVED_DATASET)
    tables = (table.name for place in (folder, folder / "data") for table in place.glob("*.parquet"))
    return saved or any(name not in OWN_TABLES for name in tables)


def list_dataset(
    root: str,
    *,
    split: str,
    class_names: tuple[str, str],
    columns: ColumnNames,
    import_to: Path,
    one_class: bool = False,
) -> ImageListing:
    """List the images of a dataset with the features `image` and `label` (an integer or a class label).

    The bytes of each image are written to `import_to`, under a name made of their digest, unless they exist there.

    Raises:
        DataError: The dataset cannot be loaded, or lacks a feature.
    """
    records, texts = [], Counter[str]()
    for data, original_name, record in stream_dataset(
        root, split=split, class_names=class_names, columns=columns, texts=texts
    ):
        path = import_to / f"{sha256_bytes(data)}{image_suffix(original_name)}"
        if not path.exists():
            write_bytes_atomic(path, data)
        records.append(replace(record, path=path.name))
    counts = count_classes(records, class_names)
    hint = f"the split that was read is data.hf_split={split}"
    check_both_classes(root, counts, class_names=class_names, hint=hint, one_class=one_class)
    warnings = missing_label_warnings(texts.elements(), class_names)
    return ImageListing(import_to, tuple(records), repeated_images(records), warnings)


def stream_dataset(
    root: str,
    *,
    split: str,
    class_names: tuple[str, str],
    columns: ColumnNames,
    texts: Counter[str] | None = None,
) -> Iterator[tuple[bytes, str | None, ImageRecord]]:
    """Yield the bytes of each image of a dataset, its file name in the dataset, and its record with an empty path.

    Parquet files and hub datasets are streamed: one row is in memory at a time. `texts` counts labels that are text.

    Raises:
        DataError: See `list_dataset`.
    """
    dataset = _load(root, split)
    for name in ("image", "label"):
        if name not in dataset.column_names:
            found = ", ".join(dataset.column_names)
            raise DataError(f"data.root {root!r} has no feature {name!r} (found: {found})", "rename the feature")
    optional = columns.resolve(dataset.column_names, f"data.root {root!r}")
    others = _further_features(dataset, exclude={"image", "label", *optional.values()})
    label_names = getattr(dataset.features["label"], "names", None)
    for number, example in enumerate(_examples(dataset, root)):
        where = f"data.root {root!r} row {number}"
        value = example["label"]
        # Before any text is made of it: the text of a missing value is the name of a class by default.
        if value is None or value != value:  # NaN is not equal to itself
            raise DataError(f"{where} has no label", "drop the rows without a label from the dataset")
        # Labels are mapped by name: the dataset may number its classes in another order than class_names.
        text = _text(value, label_names)
        if text is None:
            raise DataError(
                f"{where}: label {value} is not one of the {len(label_names or ())} classes of the dataset",
                "drop the row from the dataset, or add the class",
            )
        if texts is not None and isinstance(value, str):
            texts[text] += 1
        metadata = {field: parse_group(example[column]) for field, column in optional.items()}
        record = ImageRecord(
            path="",
            label=parse_label(text, class_names=class_names, where=where),
            **metadata,
            columns={name: text for name, names in others.items() if (text := _text(example[name], names)) is not None},
        )
        yield _image_bytes(example["image"], where), example["image"].get("path"), record


def _load(root: str, split: str) -> "Dataset":
    # Imported here because the import takes seconds, which no other kind of data set needs.
    import datasets

    try:
        if any((Path(root) / name).is_file() for name in SAVED_DATASET):
            saved = datasets.load_from_disk(root)
            if not isinstance(saved, datasets.DatasetDict):
                if split not in (HF_SPLIT, str(saved.split)):
                    raise DataError(f"data.root {root!r} has no splits", "leave data.hf_split out")
                return saved
            if split not in saved:
                raise _no_split(root, split, list(saved))
            return saved[split]
        streamed = datasets.load_dataset(root, split=split, streaming=True)
        return streamed if streamed.features else streamed._resolve_features()
    except DataError:
        raise
    except Exception as error:  # the library passes on all errors of its file systems and of the network
        splits = []
        if isinstance(error, ValueError) and "split" in str(error):
            with suppress(Exception):  # the files have no common format, for example
                splits = datasets.get_dataset_split_names(root)
        if splits:
            raise _no_split(root, split, splits) from error
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"data.root {root!r} is not a folder of images, and cannot be loaded as a dataset: {first_line}",
            f"set data.root to a folder, a CSV, or hf://owner/name with a split {split!r} (data.hf_split)",
        ) from error


def _no_split(root: str, split: str, splits: Sequence[str]) -> DataError:
    return DataError(
        f"data.root {root!r} has no split {split!r} (found: {', '.join(splits)})",
        f"set data.hf_split={splits[0]}" if splits else None,
    )


def _further_features(dataset: "Dataset", exclude: set[str]) -> dict[str, Sequence[str] | None]:
    """Names of the classes of each further feature with a single value; None for one that is not a class label."""
    import datasets

    return {
        name: getattr(feature, "names", None)
        for name, feature in dataset.features.items()
        if name not in exclude and isinstance(feature, datasets.ClassLabel | datasets.Value)
    }


def _text(value: Any, names: Sequence[str] | None) -> str | None:
    """The text of a value, or the name of a class label; None for a missing value and a label without a name."""
    if value is None or names is None:
        return None if value is None else str(value)
    return names[value] if 0 <= value < len(names) else None


def _examples(dataset: "Dataset", root: str) -> Iterator[dict[str, Any]]:
    """The rows, with images as encoded bytes."""
    import datasets

    try:
        yield from dataset.cast_column("image", datasets.Image(decode=False))
    except Exception as error:  # as in _load; a stream may fail at any row
        raise DataError(f"data.root {root!r} cannot be read to its end: {error}", "repeat the command") from error


def _image_bytes(image: dict[str, Any] | None, where: str) -> bytes:
    if image is None:
        raise DataError(f"{where} has no image", "drop the row from the dataset")
    if image["bytes"] is not None:
        return bytes(image["bytes"])
    path = image.get("path")
    if not isinstance(path, str):
        raise DataError(f"{where} has an image without bytes or path", "drop the row from the dataset")
    try:
        data = read_image_bytes(Path(path))
    except UndecodableImage as error:
        raise DataError(f"{where}: image {path!r} {error.message}") from error
    # A dataset is not trusted: without this check it could copy any file of this machine into the run.
    if not data.startswith(tuple(READERS)):
        raise DataError(f"{where}: {path!r} is not an image", "drop the row from the dataset")
    return data
