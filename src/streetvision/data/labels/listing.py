"""Add the images of a labels.parquet to those of a data set."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from streetvision.contracts.split_contracts import Split
from streetvision.data.labels.decisions import LabeledImage, decide
from streetvision.data.labels.store import read_events
from streetvision.data.records import ImageListing, ImageRecord
from streetvision.data.sources.parquet_index import LABELS

MAX_NAMED = 3


@dataclass(frozen=True)
class Labels:
    """The labels that people gave, by image."""

    images: Mapping[str, LabeledImage]
    """sha256 -> the image."""
    warnings: tuple[str, ...] = ()
    """What is not used, and why."""

    @property
    def by_sha256(self) -> dict[str, tuple[int, str]]:
        """sha256 -> label and queue, as `scan_images` takes them."""
        return {sha256: (image.label, image.queue) for sha256, image in self.images.items()}

    def usable(self, roles: Mapping[str, Split]) -> "Labels":
        """Return the labels without those that would bias a metric.

        The label of an image in an evaluation split is corrected only if the image was drawn at random. If the
        contradicted labels alone were corrected there, the model would be confirmed by its own choice.

        Args:
            roles: sha256 -> split of images that were assigned before.
        """
        kept = {
            sha256: image
            for sha256, image in self.images.items()
            if not image.train_only or roles.get(sha256, Split.TRAIN) is Split.TRAIN
        }
        if len(kept) == len(self.images):
            return self
        note = (
            f"{len(self.images) - len(kept):,} labels of data.labels are not used: their images are in an evaluation "
            "split, and were not drawn at random"
        )
        return Labels(kept, (*self.warnings, note))


def labels_path(path: Path) -> Path:
    """Return the labels.parquet that `data.labels` names, by itself or by its folder."""
    return path if path.suffix == ".parquet" else path / LABELS


def read_labels(path: Path, class_names: tuple[str, str]) -> Labels:
    """Return the labels in `data.labels`.

    Raises:
        ConfigError: There is no file.
        ArtifactError: The file is damaged, or has labels of other classes.
    """
    decisions = decide(read_events(labels_path(path), class_names))
    warnings = []
    if disputed := decisions.disputed:
        names = ", ".join(event.path for event in disputed[:MAX_NAMED])
        warnings.append(
            f"{len(disputed):,} images of data.labels are not used, as equally many people gave either label: {names}"
            + (", ..." if len(disputed) > MAX_NAMED else "")
        )
    return Labels({image.sha256: image for image in decisions.images}, tuple(warnings))


def add_labels(listing: ImageListing, labels: Labels) -> ImageListing:
    """Return the listing with the labeled images that it does not have already, by absolute path."""
    listed = {str((listing.root / image.path).absolute()) for image in listing.images}
    added = [
        ImageRecord(image.path, image.label, group=image.group, queue=image.queue)
        for image in labels.images.values()
        if image.path not in listed
    ]
    return replace(
        listing, images=(*listing.images, *added), warnings=(*listing.warnings, *labels.warnings), unnamed_labels=()
    )
