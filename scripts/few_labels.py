"""Make a labelled set small: most of its images lose their labels, and stay as images for phase 4a to learn from.

    python scripts/few_labels.py DATA OUT --classes no_roadwork roadwork --keep 0.52 --seed 0

writes OUT/labelled.csv, which `data.root` takes, and OUT/unlabelled.csv, which `data.unlabeled` takes. Whole groups go
to one side or the other, in the same share for both classes.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from streetvision.data.sources.discovery import list_images


def main() -> None:
    """Deal the groups, and write both sides."""
    arguments = _arguments()
    listing = list_images(
        str(arguments.data), class_names=tuple(arguments.classes), import_to=arguments.out / "imported"
    )
    keys = [listed.group or listed.path for listed in listing.images]
    kept = _kept({key: listed.label for key, listed in zip(keys, listing.images, strict=True)}, arguments)
    labelled: list[Sequence[object]] = [("path", "label", "group")]
    unlabelled: list[Sequence[object]] = [("path", "group")]
    for key, listed in zip(keys, listing.images, strict=True):
        path = (listing.root / listed.path).resolve()
        if key in kept:
            labelled.append((path, arguments.classes[listed.label], key))
        else:
            unlabelled.append((path, key))
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, rows in (("labelled", labelled), ("unlabelled", unlabelled)):
        with (arguments.out / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    print(f"{len(kept)} of {len(set(keys))} groups keep their labels: {arguments.out / 'labelled.csv'}")  # noqa: T201


def _kept(label_of: dict[str, int], arguments: argparse.Namespace) -> set[str]:
    dice = np.random.default_rng(arguments.seed)
    kept: set[str] = set()
    for label in (0, 1):
        groups = sorted(group for group, own in label_of.items() if own == label)
        kept.update(dice.permutation(groups)[: round(arguments.keep * len(groups))].tolist())
    return kept


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="What data.root takes.")
    parser.add_argument("out", type=Path, help="A new folder.")
    parser.add_argument("--classes", nargs=2, default=["None", "Roadwork"], help="Names of class 0 and class 1.")
    parser.add_argument("--keep", type=float, required=True, help="Share of the groups that keep their labels.")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
