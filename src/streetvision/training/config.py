"""Settings of a training run; apart from the code that reads them, because that code loads Lightning."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from streetvision.contracts.errors import ConfigError

PrecisionName = Literal["auto", "bf16", "fp32"]


class TrainingConfig(BaseModel):
    """How phase 1 fits the classifier."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["frozen", "full"] = "frozen"
    """frozen: a head on cached features of a backbone that stays as it is; full: everything trains."""
    epochs: int = Field(default=20, ge=1)
    """Passes over TRAIN."""
    batch_size: int = Field(default=64, ge=1)
    """Rows an optimizer step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak rate of AdamW."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of weight matrices; norms and biases do not decay."""
    warmup_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of all optimizer steps in which the rate rises linearly."""
    precision: PrecisionName = "auto"
    """Of the full mode: auto takes bf16 where the device has it, else fp32. Heads and scores are always fp32."""
    seed: int = Field(default=0, ge=0)
    """Of initial weights, order of rows and augmentation."""

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        if self.mode == "frozen" and self.precision == "bf16":
            raise ConfigError(
                "training.precision=bf16 is not read by training.mode=frozen, which computes in fp32",
                "leave it out, or take training=full",
            )
        return self


class MacCalConfig(BaseModel):
    """How phase5_mac_cal trains the head anew, on cached features."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=40, ge=1)
    """Passes over TRAIN's features."""
    batch_size: int = Field(default=256, ge=1)
    """Rows an optimizer step, and a mask."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Rate of AdamW."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of weight matrices."""
    retention: float = Field(default=0.9, gt=0, le=1)
    """Share of weights that a mask keeps at first."""
    adaptation: float = Field(default=0.5, ge=0)
    """Share of weights given up for each unit of confidence above accuracy, after each epoch."""
    least_retention: float = Field(default=0.1, gt=0, le=1)
    """The share never falls below this."""
    seed: int = Field(default=0, ge=0)
    """Of the new weights, the masks and the order of rows."""
