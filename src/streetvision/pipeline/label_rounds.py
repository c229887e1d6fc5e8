"""What a training with data.labels adds to the rounds next to the labels."""

from datetime import UTC, datetime

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ArtifactError
from streetvision.data.config import DataConfig
from streetvision.data.labels.listing import labels_path
from streetvision.io.manifests import read_manifest
from streetvision.labeling.rounds import Round, add_round, round_lines
from streetvision.pipeline.console import Console
from streetvision.pipeline.run import is_current


def print_round(schema: ArtifactSchema, console: Console) -> None:
    """Record a finished training with data.labels as a round, and print how MCC has moved since the last one.

    The run is complete without the record, so a file that cannot be read or written is a warning.
    """
    if not is_current(schema, "phase2"):
        return
    manifest = read_manifest(schema.manifest("data"))
    labels = DataConfig.model_validate(manifest.config["DataConfig"]).labels
    if labels is None:
        return
    counts = {name: int(value) for name, value in manifest.metrics.items() if isinstance(value, int)}
    new = Round(
        time=datetime.now(UTC),
        run=str(schema.output_dir.absolute()),
        labels=counts["labels"],
        images=counts["images"],
        evaluated=counts["evaluated"],
        mcc=float(read_manifest(schema.manifest("phase2")).metrics["val_calib_mcc"] or 0),
    )
    try:
        rounds = add_round(labels_path(labels).absolute().parent, new)
    except ArtifactError as error:
        console.warn(f"this training is not recorded as a round of labels: {error.message}")
        return
    for line in round_lines(rounds):
        console.line("labels", line)
