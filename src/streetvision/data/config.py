"""Settings of the data. This module does not import torch, so that settings load quickly."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from streetvision.contracts.errors import ConfigError
from streetvision.contracts.settings import RESULT_NEUTRAL, GateSetting, Section, Seed, no_effect
from streetvision.contracts.split_contracts import Split
from streetvision.data.records import fold_name
from streetvision.data.splitting.partition import FEWEST_FOLDS, MAX_FOLDS, Fractions
from streetvision.io.process_pool import usable_cores

Level = Literal[0, 1, 2, 3]
HF_SPLIT = "train"
RADIUS = 12
"""Largest Hamming distance, of 64 bits, between the hashes of near-duplicates."""
CORRELATION = 0.90
"""Least normalized cross-correlation of the thumbnails of similar views."""


CLASS_NAMES = ("None", "Roadwork")
"""Default names of class 0 and class 1."""
ClassName = Annotated[str, Field(coerce_numbers_to_str=True)]
"""In `[0,1]` of a command line or a YAML file, names are numbers."""


def _check_area_range(area: tuple[float, float]) -> tuple[float, float]:
    low, high = area
    if not 0 < low <= high <= 1:
        raise ValueError(f"must be [low, high] with 0 < low <= high <= 1, not [{low:g}, {high:g}]")
    return area


AreaRange = Annotated[tuple[float, float], AfterValidator(_check_area_range)]
"""Smallest and largest share of an area."""


class GroupingConfig(Section):
    """Which images belong to one group, in addition to images with equal bytes."""

    by: tuple[Literal["column", "near_duplicates", "place"], ...] = ("column", "near_duplicates")
    """column: the group that the index or data.group_pattern names; near_duplicates: copies and similar views; place:
    near by GPS, and in time if `hours` is set. With several, images that any of them links are in one group."""
    radius: int = Field(default=RADIUS, ge=0, le=20)
    """near_duplicates: largest Hamming distance of the perceptual hashes, of 64 bits."""
    correlation: float = Field(default=CORRELATION, gt=0, le=1)
    """near_duplicates: least correlation of the thumbnails of similar views, 0 to 1. Images under 64 pixels need at
    least 0.97."""
    metres: float = Field(default=30.0, gt=0)
    """place: largest distance of neighboring photographs."""
    hours: float | None = Field(default=None, gt=0)
    """place: largest time between neighboring photographs; null: any."""

    @model_validator(mode="after")
    def _check_effect(self) -> Self:
        needs = {"radius": "near_duplicates", "correlation": "near_duplicates", "metres": "place", "hours": "place"}
        for name, method in needs.items():
            if method not in self.by and getattr(self, name) != type(self).model_fields[name].default:
                condition = f"data.grouping.by does not contain {method}"
                raise no_effect(f"data.grouping.{name}", condition, f"add {method} to data.grouping.by")
        return self


class CocoConfig(Section):
    """How objects of a JSON file in the format of COCO become labels of images."""

    images: Path | None = None
    """Folder that file names are relative to; null: the one of these that has the first listed files: `images` next to
    the file, `images` next to its folder, its folder, the folder above."""
    categories: tuple[str, ...] = ()
    """Categories whose objects make an image class 1. Images with none of them are class 0. []: all categories."""
    min_area: float = Field(default=0.0, ge=0, lt=1)
    """Least share of the image that these objects cover together; images with less are left out."""
    negatives: Path | None = None
    """A folder of further images of class 0, for files in which every image has an object."""


class DataConfig(Section):
    """The images, their classes, and how they are split."""

    root: str | None = Field(default=None, min_length=1)
    """A folder with a folder for each class; a CSV, a labels.json or the index.parquet of `streetvision data import`;
    a folder with index.csv, labels.json or index.parquet; a JSON file of COCO; a Hugging Face dataset, in a folder or
    hf://owner/name; null: the drawn scenes."""
    class_names: tuple[ClassName, ClassName] = CLASS_NAMES
    """Names of class 0 and class 1, in this order."""
    fractions: Fractions = Field(
        default={Split.TRAIN: 0.60, Split.VAL_SELECT: 0.15, Split.VAL_CALIB: 0.15, Split.VAL_TEST: 0.10}
    )
    """Share of the images in each split, each above 0; they sum to 1."""
    protocol: Literal["auto", "split", "cross_fit"] = "auto"
    """split: four splits. cross_fit: VAL_TEST, and folds of all other images: each image is scored by a model that was
    trained without its fold. auto: cross_fit if VAL_CALIB would have fewer groups than a certificate with phase5.risk
    needs; for fnr these are groups with class 1, 45 with the defaults."""
    folds: int = Field(default=4, ge=FEWEST_FOLDS, le=MAX_FOLDS)
    """cross_fit: number of folds. There are fewer if a class has too few groups."""
    seed: Seed = 0
    """Seed of the split."""
    max_invalid_fraction: float = Field(default=0.05, ge=0, le=1)
    """Share of unusable images above which the run stops."""
    damaged_images: Literal["leave_out", "use"] = "leave_out"
    """What happens to images that are decoded with errors in their data, such as a JPEG with overwritten bytes: left
    out, or used as they are decoded. They are named in both cases. A file that ends before its last pixel is
    never used."""
    hf_split: str = HF_SPLIT
    """Split of a Hugging Face dataset to read. Its images are divided again into the four splits."""
    group_column: str | None = None
    """Column or feature with the group; null: `group` if it exists."""
    group_pattern: str | None = Field(default=None, min_length=1)
    """Regular expression on the path of an image: what its first parentheses match is the group, for images without a
    group of the index; null: none. `streetvision data check` suggests one."""
    source_column: str | None = None
    """Column or feature with the source, such as a camera, a road or a city; null: `source` if it exists."""
    source_pattern: str | None = Field(default=None, min_length=1)
    """Regular expression on the source of an image, or on its path if it has none in the index: what its first
    parentheses match is the source; null: none."""
    labels: Path | None = None
    """A labels.parquet of `streetvision label`, or its folder. Its images are added to those of data.root, which may be
    null then, and its labels replace those of data.root. Images that were not drawn at random are in TRAIN only."""
    coco: CocoConfig = CocoConfig()
    """How objects of a JSON file in the format of COCO become labels of images."""
    unlabeled: tuple[Path, ...] = ()
    """Additional unlabeled images for phase4a_explora: folders, or CSVs with the column `path` and, for tracks or
    rides, `group`."""
    grouping: GroupingConfig = GroupingConfig()
    """Which images belong to one group. A group is never divided between splits."""

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if len({fold_name(name) for name in self.class_names} - {""}) < 2:
            raise ValueError(f"class_names must be two different names, not {list(self.class_names)}")
        if self.protocol == "split" and self.folds != type(self).model_fields["folds"].default:
            raise no_effect("data.folds", "data.protocol=split", "set data.protocol=cross_fit")
        for name in ("group_column", "group_pattern"):
            if getattr(self, name) is not None and "column" not in self.grouping.by:
                condition = "data.grouping.by does not contain column"
                raise no_effect(f"data.{name}", condition, "add column to data.grouping.by")
        for name in ("group_pattern", "source_pattern"):
            try:
                re.compile(getattr(self, name) or "")
            except re.error as error:
                raise ValueError(f"{name} is not a regular expression: {error}") from error
        return self


@dataclass(frozen=True)
class DecodeLimits:
    """Limits above which an image file is rejected."""

    max_megapixels: float = 100.0
    """Millions of pixels of a JPEG. Other formats may have a fifth of it, because decoding them takes more memory."""
    max_megabytes: float = 400.0
    """Millions of bytes of the file."""
    max_scans: int = 100
    """Scans of a progressive JPEG. A small file with thousands of scans takes many seconds to decode."""
    setting: str = "limits.max_megapixels"
    """The argument, setting or option of `max_megapixels`, for messages."""


DEFAULT_LIMITS = DecodeLimits()


class LoaderConfig(Section):
    """How images are read."""

    batch_size: int = Field(default=64, ge=1)
    """Images, or views of images, per forward pass when nothing is trained."""
    num_workers: Annotated[int | None, RESULT_NEUTRAL] = Field(default=None, ge=0)
    """Processes that decode images; null: the number of CPU cores minus 2."""
    cache_image_size: int | None = Field(default=None, ge=32)
    """Shorter side in pixels of the small JPEG copies to train on, which are made once; null: train on the originals.
    It has no effect on training.mode=frozen."""
    max_megapixels: float = Field(default=100.0, gt=0, le=178)
    """Millions of pixels above which a JPEG is rejected; other formats may have a fifth of it."""

    @property
    def limits(self) -> DecodeLimits:
        """Limits above which an image file is rejected."""
        return DecodeLimits(max_megapixels=self.max_megapixels, setting="loader.max_megapixels")

    @property
    def worker_count(self) -> int:
        """The number of processes that `num_workers` means on this machine."""
        return max(0, usable_cores() - 2) if self.num_workers is None else self.num_workers


class TrivialAugmentWideConfig(Section):
    """TrivialAugmentWide: one random operation of random strength per image.

    References:
        Müller and Hutter, arXiv 2103.10158.
    """

    enabled: bool = False
    """Apply one random operation to each image, after crop, flip and jitter."""
    num_magnitude_bins: int = Field(default=31, ge=2)
    """Number of different strengths of an operation."""


class AugMixConfig(Section):
    """AugMix: a mixture of several chains of random operations.

    References:
        Hendrycks et al., arXiv 1912.02781.
    """

    enabled: bool = False
    """Apply AugMix to each image, after TrivialAugmentWide."""
    severity: int = Field(default=3, ge=1, le=10)
    """Strength of the operations."""
    mixture_width: int = Field(default=3, ge=1)
    """Number of chains that are mixed."""
    alpha: float = Field(default=1.0, gt=0)
    """Parameter of the distributions from which the weights of the mixture are drawn."""


class AugmentationConfig(Section):
    """Random changes of training images, for all training modes but frozen. Images are evaluated unchanged."""

    crop_scale: AreaRange = (0.7, 1.0)
    """Smallest and largest share of the image's area that a random crop keeps; [1, 1]: no crop."""
    flip_probability: float = Field(default=0.5, ge=0, le=1)
    """Probability of a horizontal flip; 0 if left and right have a meaning."""
    color_jitter: float = Field(default=0.2, ge=0, le=1)
    """Largest relative change of brightness, contrast and saturation; a tenth of it for hue."""
    trivial_augment_wide: TrivialAugmentWideConfig = TrivialAugmentWideConfig()
    """TrivialAugmentWide, after crop, flip and jitter."""
    aug_mix: AugMixConfig = AugMixConfig()
    """AugMix, after TrivialAugmentWide."""
    erasing_probability: float = Field(default=0.0, ge=0, le=1)
    """Probability that a rectangle of 2 to 33 % of the image becomes black."""
    mixup_alpha: float = Field(default=0.0, ge=0)
    """Parameter of the Beta distribution by which MixUp blends two images and their labels; 0: off, 0.2 is usual."""
    cutmix_alpha: float = Field(default=0.0, ge=0)
    """The same for CutMix, which pastes a rectangle of another image; 0: off, 1.0 is usual. With both, each batch uses
    one of them."""
    scales: tuple[float, ...] = (1.0,)
    """Multiples of the image size, rounded to whole patches; each batch has one, for example [0.75, 1, 1.25]."""
    validator_distortion_p: float = Field(default=0.0, ge=0, le=1)
    """Share of images with the distortions of the subnet's validator instead of crop, flip, jitter, TrivialAugmentWide
    and AugMix."""
    validator_levels: tuple[Level, ...] = (0, 1, 2, 3)
    """Levels of these distortions, with equal probability."""
    gate: GateSetting = "off"
    """Short paired runs with and without the augmentation. on: it is used only if its NLL on VAL_SELECT is lower by at
    least 0.001, with 80 % confidence; only_report: it is used, and both are compared; off: no such runs."""
    gate_epochs: int = Field(default=2, ge=1)
    """Epochs of each run."""
    gate_runs: int = Field(default=2, ge=1)
    """Pairs of runs, each with its own seed."""

    @model_validator(mode="after")
    def _check_effect(self) -> Self:
        for name in ("trivial_augment_wide", "aug_mix"):
            section = getattr(self, name)
            if not section.enabled and section != type(section)():
                key = f"augmentation.{name}"
                raise no_effect(key, f"{key}.enabled=false", f"set {key}.enabled=true")
        if self.validator_distortion_p == 0 and self.validator_levels != (0, 1, 2, 3):
            key = "augmentation.validator_distortion_p"
            raise no_effect("augmentation.validator_levels", f"{key}=0", f"set {key}=0.5")
        for name in ("gate_epochs", "gate_runs"):
            if self.gate == "off" and getattr(self, name) != type(self).model_fields[name].default:
                raise no_effect(f"augmentation.{name}", "augmentation.gate=off", "set augmentation.gate=on")
        if not self.scales or min(self.scales) <= 0 or not self.validator_levels:
            raise ConfigError(
                "augmentation.scales must be positive, and neither it nor validator_levels may be empty",
                "set augmentation.scales=[1.0] and augmentation.validator_levels=[0,1,2,3]",
            )
        return self


PLAIN = AugmentationConfig(crop_scale=(1.0, 1.0), flip_probability=0.0, color_jitter=0.0)
"""No augmentation."""


class PairConfig(Section):
    """How the two views of an image may differ.

    References:
        Level simclr: Chen et al., arXiv 2002.05709, appendix A.
    """

    positives: Literal["same_image", "same_group"] = "same_image"
    """The second view shows the same image, or any image of its group (for tracks of one object, not for rides)."""
    crop_scale: AreaRange | Literal["auto"] = "auto"
    """Smallest and largest share of the image's area that a view keeps. Small values may lose a small object. auto:
    that of the strongest of three levels whose views keep the labels predictable, by a probe on TRAIN."""
    flip_probability: float = Field(default=0.5, ge=0, le=1)
    """Probability of a horizontal flip; 0 if left and right have a meaning."""
    color_jitter: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = "auto"
    """Largest relative change of brightness, contrast and saturation; a quarter of it for hue. Use less if the color
    identifies the object. auto: that of the level."""
    grayscale_p: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = "auto"
    """Probability that a view becomes gray. auto: that of the level."""
    blur: bool = True
    """Blur half of the views, by up to two pixels at 224."""

    @property
    def auto_settings(self) -> tuple[str, ...]:
        """The settings that are auto."""
        return tuple(name for name in VIEW_LEVELS["simclr"] if getattr(self, name) == "auto")

    def at_level(self, level: str) -> "PairConfig":
        """Return these settings with the values of a level in VIEW_LEVELS where they are auto."""
        return self.model_copy(update={name: VIEW_LEVELS[level][name] for name in self.auto_settings})


VIEW_LEVELS: Mapping[str, Mapping[str, Any]] = {
    "gentle": {"crop_scale": (0.6, 1.0), "color_jitter": 0.2, "grayscale_p": 0.0},
    "middle": {"crop_scale": (0.4, 1.0), "color_jitter": 0.4, "grayscale_p": 0.1},
    "simclr": {"crop_scale": (0.2, 1.0), "color_jitter": 0.8, "grayscale_p": 0.2},
}
"""Level of the views -> the settings of PairConfig that may be auto; the weakest level first."""
