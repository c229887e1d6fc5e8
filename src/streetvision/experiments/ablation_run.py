"""One arm of an ablation: an ordinary run with its evaluation, in a process of its own, and the record of it."""

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ArtifactError, StreetVisionError
from streetvision.contracts.policies import Artifact, Digest
from streetvision.contracts.split_contracts import Split
from streetvision.data.splitting.splits_json import partition_from_json
from streetvision.io.atomic import read_json, write_json_atomic
from streetvision.io.manifests import code_sha256
from streetvision.io.process_pool import write_output_to
from streetvision.io.validators import validate_json
from streetvision.pipeline.console import Console

PRELOADED = (
    *(f"streetvision.pipeline.steps.{step}" for step in ("train_explora", "train_cvfm", "evaluate_model")),
    "peft",
    "timm",
)
"""Modules that between them load whatever a run needs."""
USER_ERROR = 2
JUDGING = ("evaluation.", "loader.batch_size", "loader.max_megapixels")
"""Settings that the evaluation reads, too."""


@dataclass(frozen=True)
class AblationRun:
    """A run that an ablation wants."""

    overrides: tuple[str, ...]
    """KEY=VALUE; run_dir is `root`."""
    settings_sha256: str
    """Digest of what they compose to."""
    root: Path
    """The run folder; record and log stand beside it under the same name."""

    @property
    def record(self) -> Path:
        """Written last."""
        return self.root.with_name(f"{self.root.name}.json")

    @property
    def log(self) -> Path:
        """What the run said."""
        return self.root.with_name(f"{self.root.name}.log")

    def done(self) -> "AblationRecord | None":
        """The record, if this code has finished these settings."""
        try:
            found = validate_json(self.record, AblationRecord)
        except ArtifactError:
            return None
        same = (found.settings_sha256, found.code_sha256) == (self.settings_sha256, code_sha256())
        return found if same and ArtifactSchema(self.root).predictions_csv.is_file() else None


class AblationRecord(Artifact):
    """NAME.json beside a run folder."""

    settings_sha256: Digest
    code_sha256: Digest
    overrides: tuple[str, ...]
    rest: int = Field(ge=1)
    """Images that do not stand in VAL_TEST."""
    cost: float | None
    """Seconds from the images to the bundle, the check of the data left out: of the processor, on a GPU of the clock.
    None where the run did not go through in one go."""


def execute_run(arm: AblationRun, threads: int) -> None:
    """Train, evaluate and write the record; to be called in a process of its own, whose output becomes the log.

    Ends the process with exit code 2 and one line for what a user can mend.
    """
    write_output_to(arm.log)
    import torch

    from streetvision.pipeline.config import compose_config
    from streetvision.pipeline.run import launch_evaluation  # loads Lightning, which who starts the arms never needs

    torch.set_num_threads(threads)
    try:
        cost = _train(arm)
        judging = [setting for setting in arm.overrides if setting.startswith(JUDGING)]
        launch_evaluation(ArtifactSchema(arm.root).export_dir, compose_config(judging), console=Console())
    except StreetVisionError as error:
        print(f"error: {error.message}", flush=True)  # noqa: T201 (the log)
        sys.exit(USER_ERROR)
    splits = ArtifactSchema(arm.root).splits_json
    partition = partition_from_json(read_json(splits), splits)
    record = AblationRecord(
        settings_sha256=arm.settings_sha256,
        code_sha256=code_sha256(),
        overrides=arm.overrides,
        rest=sum(role is not Split.VAL_TEST for role in partition.roles),
        cost=cost,
    )
    write_json_atomic(arm.record, record.model_dump(mode="json"))


def _train(arm: AblationRun) -> float | None:
    """Train up to the bundle; returns what it cost."""
    from streetvision.pipeline.config import compose_config
    from streetvision.pipeline.run import launch_training

    afresh = not arm.root.exists()
    of_training = [setting for setting in arm.overrides if not setting.startswith("evaluation.")]
    config = compose_config([*of_training, f"run_dir={arm.root}"])
    launch_training(config, console=Console(), only={"data"})
    started = _seconds()
    launch_training(config, console=Console())
    return _seconds() - started if afresh else None


def _seconds() -> float:
    """Of the processor, for this process and those it has started; of the clock where a GPU does the work."""
    from streetvision.models.device import pick_device

    if pick_device().type != "cpu":
        return time.perf_counter()
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
