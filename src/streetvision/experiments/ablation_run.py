"""One run of an ablation: training and evaluation in a process of its own, and the record of it."""

import os
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

USER_ERROR = 2
EVALUATION_SETTINGS = ("evaluation.", "loader.batch_size", "loader.max_megapixels")
"""Prefixes of the settings that the evaluation uses, too."""


@dataclass(frozen=True)
class AblationRun:
    """A run that an ablation needs."""

    overrides: tuple[str, ...]
    """KEY=VALUE; run_dir is `root`."""
    settings_sha256: str
    """Digest of the composed settings and of the local weight files."""
    root: Path
    """The run folder; record and log have the same name with another suffix."""

    @property
    def record_file(self) -> Path:
        """Written last."""
        return self.root.with_name(f"{self.root.name}.json")

    @property
    def log(self) -> Path:
        """Output of the run."""
        return self.root.with_name(f"{self.root.name}.log")

    def record(self) -> "AblationRecord | None":
        """The record, if this code has finished these settings; else None."""
        try:
            record = validate_json(self.record_file, AblationRecord)
        except ArtifactError:
            return None
        same = (record.settings_sha256, record.code_sha256) == (self.settings_sha256, code_sha256())
        return record if same and ArtifactSchema(self.root).predictions_csv.is_file() else None


class AblationRecord(Artifact):
    """NAME.json next to a run folder."""

    settings_sha256: Digest
    code_sha256: Digest
    overrides: tuple[str, ...]
    images_outside_val_test: int = Field(ge=1)
    cost: float | None
    """Seconds from the images to the bundle, without the data check: CPU time, on a GPU wall time.
    None when the run was interrupted."""


def execute_run(run: AblationRun, threads: int) -> None:
    """Train, evaluate and write the record; call it in a process of its own, whose output becomes the log.

    Ends the process with exit code 2 and one line for a user error.
    """
    write_output_to(run.log)
    import torch

    from streetvision.pipeline.config import compose_config
    from streetvision.pipeline.run import launch_evaluation, launch_training  # imports Lightning: only needed here

    torch.set_num_threads(threads)
    schema, is_new = ArtifactSchema(run.root), not run.root.exists()
    try:
        training = [setting for setting in run.overrides if not setting.startswith("evaluation.")]
        config = compose_config([*training, f"run_dir={run.root}"])
        # The data phase runs first and apart, because the cost leaves it out.
        launch_training(config, console=Console(), only={"data"})
        started = spent_seconds()
        launch_training(config, console=Console())
        cost = spent_seconds() - started if is_new else None
        evaluation = [setting for setting in run.overrides if setting.startswith(EVALUATION_SETTINGS)]
        launch_evaluation(schema.export_dir, compose_config(evaluation), console=Console())
    except StreetVisionError as error:
        print(f"error: {error.message}", flush=True)  # noqa: T201 (the log)
        sys.exit(USER_ERROR)
    partition = partition_from_json(read_json(schema.splits_json), schema.splits_json)
    record = AblationRecord(
        settings_sha256=run.settings_sha256,
        code_sha256=code_sha256(),
        overrides=run.overrides,
        images_outside_val_test=sum(role is not Split.VAL_TEST for role in partition.roles),
        cost=cost,
    )
    write_json_atomic(run.record_file, record.model_dump(mode="json"))


def spent_seconds() -> float:
    """Return the CPU time of this process and its children; wall time where a GPU does the work."""
    from streetvision.models.device import pick_device

    if pick_device().type != "cpu":
        return time.perf_counter()
    return sum(os.times()[:4])  # user and system time of both
