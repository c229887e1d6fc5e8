"""Settings of the data floor; apart from the code that reads them, because that code loads torch."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from streetvision.contracts.errors import ConfigError
from streetvision.contracts.settings import RESULT_NEUTRAL, Seed
from streetvision.contracts.split_contracts import Split
from streetvision.data.splitting.partition import Fractions

Level = Literal[0, 1, 2, 3]
HF_SPLIT = "train"
RADIUS = 12
"""Bits of 64 by which the hashes of near-duplicates differ at most."""
CORRELATION = 0.90
"""Least normalised cross-correlation of the thumbnails of near-duplicates."""


class GroupingConfig(BaseModel):
    """What makes rows belong together, beside equal bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: tuple[Literal["column", "near_duplicates", "place"], ...] = ("column", "near_duplicates")
    """column: the group that the index names; near_duplicates: nearly the same picture; place: GPS, and time if asked.
    Several are joined: rows that any of them links stay together."""
    radius: int = Field(default=RADIUS, ge=0, le=20)
    """near_duplicates: bits of 64 by which perceptual hashes differ at most."""
    correlation: float = Field(default=CORRELATION, gt=0, le=1)
    """near_duplicates: least correlation of the thumbnails, 0 to 1; at least 0.97 is needed under 64 pixels."""
    metres: float = Field(default=30.0, gt=0)
    """place: photographs at most this far apart are neighbours."""
    hours: float | None = Field(default=None, gt=0)
    """place: neighbours were also taken at most this many hours apart; None: at any time."""

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        readers = {"radius": "near_duplicates", "correlation": "near_duplicates", "metres": "place", "hours": "place"}
        for field, reader in readers.items():
            if reader not in self.by and getattr(self, field) != type(self).model_fields[field].default:
                raise ValueError(f"{field} is read only where `by` names {reader}")
        return self


class DataConfig(BaseModel):
    """Which images there are, and how they are dealt to the four splits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: str | None = Field(default=None, min_length=1)
    """Folder, CSV, labels.json, or Hugging Face dataset (a folder, or hf://owner/name on the hub); None: scenes."""
    class_names: tuple[str, str] = ("None", "Roadwork")
    """Names of class 0 and class 1, in that order."""
    fractions: Fractions = {Split.TRAIN: 0.60, Split.VAL_SELECT: 0.15, Split.VAL_CALIB: 0.15, Split.VAL_TEST: 0.10}
    """Share of the rows for every split, each above 0; they sum to 1."""
    seed: Seed = 0
    """Which of the possible partitions is taken; any whole number."""
    max_invalid_fraction: float = Field(default=0.05, ge=0, le=1)
    """Share of the listed images that may be unusable before the run stops."""
    hf_split: str = HF_SPLIT
    """Split of a Hugging Face dataset to read; it is dealt to our four splits anew."""
    group_column: str | None = None
    """Column or feature that names the group; None takes `group` where there is one."""
    source_column: str | None = None
    """Column or feature that names the source; None takes `source` where there is one."""
    unlabeled: tuple[Path, ...] = ()
    """Further images, whatever their classes, that phase4a_explora learns from beside TRAIN: folders, or CSVs with the
    column path and, where they come in tracks or rides, group."""
    grouping: GroupingConfig = GroupingConfig()
    """What makes images belong together, so that one split gets them all."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len({name.strip().casefold() for name in self.class_names} - {""}) < 2:
            raise ValueError(f"class_names are two different names, not {list(self.class_names)}")
        if self.group_column is not None and "column" not in self.grouping.by:
            raise ValueError("group_column is read only where grouping.by names column")
        return self


@dataclass(frozen=True)
class DecodeLimits:
    """What a file may cost before it is refused."""

    max_megapixels: float = 100.0
    """Millions of pixels of a JPEG; of any other image a fifth, since these are unpacked in several copies."""
    max_megabytes: float = 400.0
    """Millions of bytes of the file."""
    max_scans: int = 100
    """Passes over a JPEG; a small file with thousands of them takes any decoder many seconds."""


DEFAULT_LIMITS = DecodeLimits()


class LoaderConfig(BaseModel):
    """How images reach the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(default=64, ge=1)
    """Images, or views of images, a forward pass when nothing is trained."""
    num_workers: Annotated[int | None, RESULT_NEUTRAL] = Field(default=None, ge=0)
    """Processes that decode; None takes one a core beyond the second, none on one or two cores."""
    cache_image_size: int | None = Field(default=None, ge=32)
    """Shorter side of small JPEGs from which images are trained on, made once; null trains from the originals."""
    max_megapixels: float = Field(default=100.0, gt=0, le=178)
    """Millions of pixels above which an image is refused; Pillow itself refuses some formats beyond 178."""

    @property
    def limits(self) -> DecodeLimits:
        """What one image file may cost before it is refused."""
        return DecodeLimits(max_megapixels=self.max_megapixels)

    @property
    def worker_count(self) -> int:
        """The number of processes that `num_workers` stands for on this machine."""
        return max(0, (os.cpu_count() or 1) - 2) if self.num_workers is None else self.num_workers


class GateConfig(BaseModel):
    """Short paired runs with and without the policy before it is used."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=0, ge=0)
    """Epochs of each run; 0 leaves the gate out."""
    runs: int = Field(default=2, ge=1)
    """Pairs of runs, each with a seed of its own."""
    tolerance: float = Field(default=0.03, ge=0)
    """VAL_SELECT MCC that the policy may cost before it is rejected."""


class AugmentationConfig(BaseModel):
    """Random changes of training images; the model sees the plain image when it is judged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    crop_scale: tuple[float, float] = (0.7, 1.0)
    """Smallest and largest share of the image's area that a random crop keeps; 1, 1 crops nothing."""
    flip_probability: float = Field(default=0.5, ge=0, le=1)
    """Chance of a left-right flip."""
    color_jitter: float = Field(default=0.2, ge=0, le=1)
    """Largest relative change of brightness, contrast and saturation; a tenth of it for hue."""
    policy: Literal["none", "trivial_augment", "augmix"] = "none"
    """TrivialAugmentWide with 31 strengths, or AugMix of severity 3 and width 3, behind crop, flip and jitter."""
    erasing_probability: float = Field(default=0.0, ge=0, le=1)
    """Chance that a rectangle of 2 to 33 % of the image turns black."""
    mixup_alpha: float = Field(default=0.0, ge=0)
    """Parameter of the Beta distribution by which two images and their labels are laid over each other; 0: never."""
    cutmix_alpha: float = Field(default=0.0, ge=0)
    """The same for a rectangle put into another image; 0: never. With both, each batch takes one of the two."""
    scales: tuple[float, ...] = (1.0,)
    """Each batch is shown at one of these multiples of the image size, rounded to whole patches."""
    validator_distortion_p: float = Field(default=0.0, ge=0, le=1)
    """Share of images that come as the subnet's validator would send them, in place of crop, flip, jitter, policy."""
    validator_levels: tuple[Level, ...] = (0, 1, 2, 3)
    """Its levels, each as likely as the others."""
    gate: GateConfig = GateConfig()
    """Whether the policy is tried first."""

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        if self.validator_distortion_p == 0 and self.validator_levels != (0, 1, 2, 3):
            raise ConfigError(
                "augmentation.validator_levels is not read while augmentation.validator_distortion_p is 0",
                "set augmentation.validator_distortion_p=0.5 or leave it out",
            )
        if self.gate.epochs == 0 and self.gate != type(self.gate)():
            raise ConfigError("the settings of a gate of 0 epochs are not read", "set augmentation.gate.epochs=2")
        if not self.scales or min(self.scales) <= 0 or not self.validator_levels:
            raise ConfigError("augmentation.scales are positive, and neither they nor validator_levels are empty")
        return self


PLAIN = AugmentationConfig(crop_scale=(1.0, 1.0), flip_probability=0.0, color_jitter=0.0)
"""No change at all."""


class PairConfig(BaseModel):
    """What may differ between two views; the defaults are SimCLR's (arXiv 2002.05709, appendix A)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    positives: Literal["same_image", "same_group"] = "same_image"
    """What the second view shows: the same image, or any of its group. For tracks of one object, not for rides."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest share of the image's area that a view keeps. Small ones may lose a small cue."""
    flip_probability: float = Field(default=0.5, ge=0, le=1)
    """Chance of a left-right flip; 0 where left and right mean something."""
    color_jitter: float = Field(default=0.8, ge=0, le=1)
    """Largest relative change of brightness, contrast and saturation; a quarter of it for hue. Less where colour is
    the cue."""
    grayscale_p: float = Field(default=0.2, ge=0, le=1)
    """Chance that a view loses its colours."""
    blur: bool = True
    """Blur half of the views, by up to two pixels at 224."""
