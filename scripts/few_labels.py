"""Remove most labels of a data set; the unlabeled images remain available to phase 4a.

    python scripts/few_labels.py DATA OUT --classes no_roadwork roadwork --keep 0.52 --seed 0

writes OUT/labeled.csv for `data.root` and OUT/unlabeled.csv for `data.unlabeled`. A group keeps or loses its
labels as a whole, and the fraction of labeled groups is the same in both classes.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from streetvision.data.sources.discovery import list_images


def main() -> None:
    """Write both lists."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="A data set, as for data.root.")
    parser.add_argument("out", type=Path, help="A new folder.")
    parser.add_argument("--classes", nargs=2, default=["None", "Roadwork"], help="Names of class 0 and class 1.")
    parser.add_argument("--keep", type=float, required=True, help="Fraction of the groups that keep their labels.")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    dataset = list_images(
        str(arguments.data), class_names=tuple(arguments.classes), import_to=arguments.out / "imported"
    )
    # An image without a group is a group of its own.
    groups = [image.group or image.path for image in dataset.images]
    label_of = {group: image.label for group, image in zip(groups, dataset.images, strict=True)}
    rng = np.random.default_rng(arguments.seed)
    labeled_groups: set[str] = set()
    for label in (0, 1):
        of_class = sorted(group for group, group_label in label_of.items() if group_label == label)
        labeled_groups.update(rng.permutation(of_class)[: round(arguments.keep * len(of_class))].tolist())

    labeled: list[Sequence[object]] = [("path", "label", "group")]
    unlabeled: list[Sequence[object]] = [("path", "group")]
    for group, image in zip(groups, dataset.images, strict=True):
        path = (dataset.root / image.path).resolve()
        if group in labeled_groups:
            labeled.append((path, arguments.classes[image.label], group))
        else:
            unlabeled.append((path, group))
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, rows in (("labeled", labeled), ("unlabeled", unlabeled)):
        with (arguments.out / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    print(f"{len(labeled_groups)} of {len(label_of)} groups are labeled: {arguments.out / 'labeled.csv'}")


if __name__ == "__main__":
    main()
