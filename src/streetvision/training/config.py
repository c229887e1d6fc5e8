"""Settings of a training run; apart from the code that reads them, because that code loads Lightning."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from streetvision.contracts.errors import ConfigError
from streetvision.contracts.settings import RESULT_NEUTRAL, Seed
from streetvision.models.config import AdapterConfig, CompileConfig, HardwareConfig, LossConfig

PrecisionName = Literal["auto", "bf16", "fp32"]


class LearningConfig(BaseModel):
    """What every training by gradients through the backbone can be told: steps, rates, precision, processes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(default=64, ge=1)
    """Rows an optimizer step, over all processes and parts."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Parts that a batch is cut into, for less memory: the same step, but for a contrast, which is within a part."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak rate of AdamW."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of weight matrices; norms and biases do not decay."""
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of all optimizer steps in which the rate rises linearly."""
    gradient_clip_norm: float | None = Field(default=None, gt=0)
    """Largest norm of a step's gradient; null does not clip."""
    checkpoint_every_n_steps: Annotated[int, RESULT_NEUTRAL] = Field(default=200, ge=1)
    """Not frozen: optimizer steps between checkpoints to go on from, besides one after each epoch."""
    precision: PrecisionName = "auto"
    """Not frozen: auto takes bf16 where the device has it, else fp32. Heads on features and scores are always fp32."""
    tracker: Annotated[Literal["none", "wandb", "mlflow"], RESULT_NEUTRAL] = "none"
    """Where epochs are shown besides metrics.csv and TensorBoard: Weights & Biases or MLflow (extra: tracking)."""
    tracker_offline: Annotated[bool, RESULT_NEUTRAL] = True
    """wandb: files in the run folder for a later `wandb sync`, nothing is sent. mlflow: the same, as its file store."""
    hardware: HardwareConfig = HardwareConfig()
    """Not frozen: devices and memory."""
    seed: Seed = 0
    """Of initial weights, order of rows and augmentation."""

    @property
    def max_epochs(self) -> int:
        """Passes over the training images."""
        raise NotImplementedError

    def check_shared(self) -> None:
        """Raise ConfigError where these settings contradict each other; a child's own check comes first."""
        if self.tracker == "none" and not self.tracker_offline:
            raise ConfigError("tracker_offline is not read without a tracker", "set training.tracker=wandb")
        processes = self.hardware.devices * self.hardware.num_nodes
        if self.batch_size % (self.gradient_accumulation_steps * processes):
            raise ConfigError(
                f"a batch of {self.batch_size} rows cannot be cut into {self.gradient_accumulation_steps} parts "
                f"for each of {processes} processes",
                "choose batch_size as a multiple of gradient_accumulation_steps times devices times nodes",
            )
        if self.hardware.strategy == "fsdp" and processes == 1:
            raise ConfigError(
                "fsdp cuts the weights among processes, and there is one", "set training.hardware.devices"
            )


class TrainingConfig(LearningConfig):
    """How phase 1 fits the classifier. A setting that the mode does not read is refused."""

    mode: Literal["frozen", "peft", "last_n", "full"] = "frozen"
    """frozen: a head on cached features; peft: adapters; last_n: the last blocks; full: everything trains."""
    epochs: int = Field(default=20, ge=1)
    """Passes over the training images."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """last_n, full: factor of the rate from each block to the one before it."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Weights averaged over steps by this decay, judged beside the raw ones; the better of the two ships."""
    early_stopping_patience: int | None = Field(default=None, ge=1)
    """Epochs without a better VAL_SELECT MCC, or NLL at the same MCC, that end training; null runs all epochs."""
    save_top_k: int = Field(default=1, ge=1)
    """Checkpoints kept by VAL_SELECT, the best of which ships."""
    last_blocks: int = Field(default=2, ge=1)
    """last_n: number of blocks that train."""
    loss: LossConfig = LossConfig()
    """What is minimised."""
    adapter: AdapterConfig = AdapterConfig()
    """peft: the adapters."""
    compile: CompileConfig = CompileConfig()
    """Not frozen: torch.compile."""

    @property
    def max_epochs(self) -> int:
        """Passes over the training images."""
        return self.epochs

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        for name, modes in READ_BY.items():
            default = type(self).model_fields[name].default
            if self.mode not in modes and getattr(self, name) not in (default, HARMLESS.get(name, default)):
                raise ConfigError(
                    f"training.{name}={getattr(self, name)} is not read by training.mode={self.mode}",
                    f"leave it out, or take training={sorted(modes)[0]}",
                )
        if self.hardware.strategy == "fsdp" and (self.ema_decay is not None or self.compile.enabled):
            raise ConfigError(
                "training.hardware.strategy=fsdp goes with neither ema_decay nor compile: both need whole weights",
                "leave them out, or take strategy=ddp",
            )
        self.check_shared()
        return self


class MacCalConfig(BaseModel):
    """How phase5_maccal trains the head anew, on cached features."""

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
    min_retention: float = Field(default=0.1, gt=0, le=1)
    """The share never falls below this."""
    seed: Seed = 0
    """Of the new weights, the masks and the order of rows."""


IMAGE_MODES = frozenset({"peft", "last_n", "full"})
READ_BY = {
    "precision": IMAGE_MODES,
    "checkpoint_every_n_steps": IMAGE_MODES,
    "compile": IMAGE_MODES,
    "hardware": IMAGE_MODES,
    "gradient_accumulation_steps": IMAGE_MODES,
    "layer_decay": frozenset({"last_n", "full"}),
    "last_blocks": frozenset({"last_n"}),
    "adapter": frozenset({"peft"}),
}
"""Setting -> the modes that read it; those that are not listed are read by all."""
HARMLESS = {"precision": "fp32"}
"""What a mode that does not read a setting does anyway."""
