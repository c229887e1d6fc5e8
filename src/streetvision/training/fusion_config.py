"""Settings of phase 4c; apart from the code that reads them, because that code loads Lightning."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from streetvision.contracts.errors import ConfigError
from streetvision.contracts.settings import Seed
from streetvision.models.config import FusionConfig, FusionDescription, TrainedFusionConfig, ViewsConfig


class CvfmConfig(BaseModel):
    """How an image is looked at in views, and how they are fused. A setting that the mode does not read is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["single_view", "multiview_mean", "cvfm_inference", "cvfm_trained"] = "single_view"
    """single_view: phase 1's classifier as it is; multiview_mean: the mean over views; cvfm_inference: a fusion without
    parameters; cvfm_trained: one that learns."""
    views: ViewsConfig = ViewsConfig()
    """Of all modes but single_view: how an image is cut."""
    inference: FusionConfig = FusionConfig()
    """Of cvfm_inference."""
    trained: TrainedFusionConfig = TrainedFusionConfig()
    """Of cvfm_trained: its size."""
    epochs: int = Field(default=40, ge=1)
    """Of cvfm_trained: passes over TRAIN's features."""
    batch_size: int = Field(default=64, ge=1)
    """Of cvfm_trained: images an optimizer step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of cvfm_trained: rate of AdamW."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of cvfm_trained: of weight matrices."""
    reconstruction_weight: float = Field(default=0.1, ge=0)
    """Of cvfm_trained: weight of the reconstruction of each view's features, beside the cross-entropy."""
    seed: Seed = 0
    """Of cvfm_trained: of the fusion's first weights and the order of rows."""

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        for name, field in type(self).model_fields.items():
            modes = READ_BY.get(name, TRAINED)
            if name not in ("mode", "seed") and self.mode not in modes and getattr(self, name) != field.default:
                raise ConfigError(
                    f"phase4c.{name} is not read by phase4c.mode={self.mode}",
                    f"leave it out, or take phase4c.mode={sorted(modes)[0]}",
                )
        return self

    @property
    def description(self) -> FusionDescription:
        """What a bundle is told of the fusion."""
        assert self.mode != "single_view"
        return FusionDescription(
            mode=self.mode,
            views=self.views,
            inference=self.inference if self.mode == "cvfm_inference" else None,
            trained=self.trained if self.mode == "cvfm_trained" else None,
        )


TRAINED = frozenset({"cvfm_trained"})
READ_BY = {
    "views": frozenset({"multiview_mean", "cvfm_inference", "cvfm_trained"}),
    "inference": frozenset({"cvfm_inference"}),
}
"""Setting -> the modes that read it; those that are not listed are read by cvfm_trained alone."""
