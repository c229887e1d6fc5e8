"""Settings of the pipeline itself and of the phases that are no larger than a few values."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from streetvision.contracts.settings import Seed


class Section(BaseModel):
    """A part of the configuration; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PipelineConfig(Section):
    """What runs."""

    phases: tuple[str, ...]
    """Ids from PHASES, in any order; they run in the order of the data."""
    seed: Seed
    """Every other seed follows it unless it is set on its own."""


class Phase2Config(Section):
    """The threshold of phase 1's scores."""

    n_thresholds: int = Field(default=5000, ge=2)
    """Points of the grid in threshold_sweep.csv; the optimum is exact whatever the grid."""
    target_recall: float = Field(default=0.95, ge=0, le=1)
    """Share of the positives that the operating point `recall` finds."""
    target_fpr: float = Field(default=0.05, ge=0, le=1)
    """Largest share of the negatives that the operating point `fpr` calls positive."""
    n_resamples: int = Field(default=1000, ge=100)
    """Bootstrap resamples for the interval of the threshold and the band of the curve."""
    seed: Seed = 0
    """Of the resamples."""


class Phase6Config(Section):
    """What ships."""

    policy: Literal["scrc", "threshold"] = "scrc"
    """scrc: phase 5's calibrated operating point; threshold: phase 2's cut on the plain softmax."""
    archive: bool = False
    """Also write export.tar.gz, the same bytes for the same bundle."""


class EvaluationConfig(Section):
    """Figures of VAL_TEST."""

    bundle: Path | None = Field(default=None, exclude=True)
    """The bundle's folder; None takes the run's own. Manifests know it by its digest, wherever it lies."""
    mode: Literal["quick", "comprehensive"] = "comprehensive"
    """quick: the figures of the shipped policy; comprehensive: other policies, slices, thresholds, mistakes as well."""
    n_resamples: int = Field(default=1000, ge=100)
    """Bootstrap resamples for each interval."""
    confidence_level: float = Field(default=0.95, gt=0.5, lt=1)
    """Share of data sets whose truth the interval should hold."""
    seed: Seed = 0
    """Of the resamples."""


class RewardConfig(Section):
    """The subnet's reward, simulated on VAL_TEST."""

    bundle: Path | None = Field(default=None, exclude=True)
    """The bundle's folder; None takes the run's own. Manifests know it by its digest, wherever it lies."""
    n_simulations: int = Field(default=1000, ge=20)
    """Streams of challenges; the percentiles are over them."""
    steps: int = Field(default=1000, ge=100)
    """Challenges of each stream; the score is taken at its end."""
    timeout_fraction: float = Field(default=0.05, gt=0, lt=1)
    """Share of challenges answered too late in the rows on timeouts."""
    seed: Seed = 0
    """Of the distortions and of the streams."""
