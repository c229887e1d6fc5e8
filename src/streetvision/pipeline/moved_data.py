"""The data of a run at a new place: accepted if every image has its relative path and its recorded content."""

from dataclasses import replace
from pathlib import Path

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ConfigError
from streetvision.contracts.policies import FileDigest
from streetvision.data.image_file import UndecodableImage, read_recorded
from streetvision.data.splitting.splits_json import partition_from_json, partition_to_json
from streetvision.io.atomic import read_json, write_json_atomic
from streetvision.io.lock import run_lock
from streetvision.io.manifests import file_digest, read_manifest, relative
from streetvision.pipeline.console import Console
from streetvision.pipeline.phases import PHASES

MAX_NAMED = 3
"""Differing images that the error names."""


def adopt_data_root(schema: ArtifactSchema, root: str, console: Console) -> None:
    """Record a new data.root in a run, if the images there are those of the run.

    splits.json changes in its field `root` only, and the manifests follow, so no phase has to run again.

    Raises:
        ConfigError: An image of the run is missing in `root`, or has another content.
    """
    partition = partition_from_json(read_json(schema.splits_json), schema.splits_json)
    folder = Path(root).absolute()
    folder = folder.parent if folder.is_file() else folder
    rows, differing = partition.index.rows, list[str]()
    for row in console.track(rows, total=len(rows), label="compare"):
        try:
            read_recorded(folder, row)
        except UndecodableImage as error:
            differing.append(error.message)
    if differing:
        more = f"; and {len(differing) - MAX_NAMED:,} more" if len(differing) > MAX_NAMED else ""
        raise ConfigError(
            f"run folder {str(schema.output_dir)!r} belongs to data.root={partition.index.root}, not to {root}, where "
            f"{len(differing):,} of its {len(rows):,} images differ: {'; '.join(differing[:MAX_NAMED])}{more}",
            "set run_dir=... to another folder",
        )
    with run_lock(schema.lock_file):
        before = file_digest(schema.splits_json)
        moved = replace(partition, index=replace(partition.index, root=folder))
        write_json_atomic(schema.splits_json, partition_to_json(moved))
        _replace_digest(schema, before, file_digest(schema.splits_json), root)
    console.line("data", f"moved to {root}: its {len(rows):,} images are those of the run")


def _replace_digest(schema: ArtifactSchema, before: FileDigest, after: FileDigest, root: str) -> None:
    """Let the manifests of the run name the new splits.json where they named the earlier one."""
    name = relative(schema.splits_json, schema.output_dir)
    for path in (schema.manifest(phase) for phase in PHASES):
        if not path.is_file():
            continue
        manifest = read_manifest(path)
        update: dict[str, object] = {
            field: {**files, name: after}
            for field, files in (("inputs", manifest.inputs), ("outputs", manifest.outputs))
            if files.get(name) == before
        }
        recorded = manifest.config.get("DataConfig")
        if isinstance(recorded, dict):
            update["config"] = {**manifest.config, "DataConfig": {**recorded, "root": root}}
        write_json_atomic(path, manifest.model_copy(update=update).model_dump(mode="json"))
