"""Settings of phase 4a; apart from the code that reads them, because that code loads Lightning."""

from typing import Literal, Self

from pydantic import Field, model_validator

from streetvision.contracts.errors import ConfigError
from streetvision.data.config import PairConfig
from streetvision.training.config import LearningConfig

Method = Literal["simclr", "byol", "swav", "byol_swav"]


class ExPLoRAConfig(LearningConfig):
    """How the backbone is adapted without labels. A setting that the method does not read is refused."""

    method: Method = "simclr"
    """simclr: contrast in the batch; byol: predict a momentum target; swav: agree on prototypes; byol_swav: both."""
    num_epochs: int = Field(default=20, ge=1)
    """Passes over the training images."""
    rank: int = Field(default=32, ge=1)
    """Inner width of the adapters."""
    alpha: float = Field(default=64.0, gt=0)
    """Scale of what an adapter changes: alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Chance that an input of an adapter is dropped in training."""
    dora: bool = False
    """Adapt magnitude and direction apart (DoRA)."""
    unfreeze_blocks: int = Field(default=1, ge=0)
    """The last blocks, which learn whole; all others get adapters."""
    projection_hidden: int = Field(default=512, ge=1)
    """Width of the projection's hidden layer; the projection is thrown away afterwards."""
    projection_dim: int = Field(default=128, ge=2)
    """Width of an embedding."""
    temperature: float = Field(default=0.1, gt=0)
    """simclr, swav: what similarities are divided by, 0.07 to 0.2 as a rule; lower looks harder at near negatives."""
    momentum: float = Field(default=0.99, gt=0, lt=1)
    """byol: share of the target that stays in a step."""
    prototypes: int = Field(default=64, ge=2)
    """swav: number of prototypes; at most about as many as a batch has images."""
    epsilon: float = Field(default=0.01, gt=0)
    """swav: what similarities are divided by where codes are made even; too high, and every code comes out the same."""
    grad_cache_chunk: int | None = Field(default=None, ge=1)
    """simclr: views in memory at a time, by gradient caching: the same step for one more pass forward. null: all."""
    knn_probe_size: int = Field(default=1024, ge=2)
    """Images of TRAIN on which neighbours are asked for their label after each epoch; this chooses nothing."""
    views: PairConfig = PairConfig()
    """How the two views of an image are drawn."""

    @property
    def max_epochs(self) -> int:
        """Passes over the training images."""
        return self.num_epochs

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        for name, methods in READ_BY.items():
            if self.method not in methods and getattr(self, name) != type(self).model_fields[name].default:
                raise ConfigError(
                    f"phase4a.{name}={getattr(self, name)} is not read by phase4a.method={self.method}",
                    f"leave it out, or take phase4a.method={sorted(methods)[0]}",
                )
        self.check_shared()
        if self.grad_cache_chunk is not None and self.hardware.devices * self.hardware.num_nodes > 1:
            raise ConfigError(
                "phase4a.grad_cache_chunk runs in one process", "leave it out: each process holds its share only"
            )
        if self.hardware.strategy == "fsdp":
            raise ConfigError("phase4a keeps whole weights in every process", "set phase4a.hardware.strategy=ddp")
        return self


READ_BY: dict[str, frozenset[Method]] = {
    "temperature": frozenset({"simclr", "swav", "byol_swav"}),
    "momentum": frozenset({"byol", "byol_swav"}),
    "prototypes": frozenset({"swav", "byol_swav"}),
    "epsilon": frozenset({"swav", "byol_swav"}),
    "grad_cache_chunk": frozenset({"simclr"}),
}
"""Setting -> the methods that read it; those that are not listed are read by all."""
