"""The data of a run at a new place: accepted if every image has its relative path and its recorded content."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ConfigError, DataError, StreetVisionError
from streetvision.contracts.policies import FileDigest
from streetvision.contracts.split_contracts import Partition
from streetvision.data.config import DataConfig
from streetvision.data.image_file import UndecodableImage, read_recorded
from streetvision.data.sources.discovery import is_dataset
from streetvision.data.splitting.splits_json import partition_from_json, partition_to_json
from streetvision.io.atomic import json_text, read_json, sha256_bytes, write_json_atomic, write_text_atomic
from streetvision.io.lock import run_lock
from streetvision.io.manifests import file_digest, read_manifest, relative
from streetvision.pipeline.artifacts import list_root
from streetvision.pipeline.console import Console
from streetvision.pipeline.phases import PHASES

MAX_NAMED = 3
"""Differing images that the error names."""


def adopt_data_root(schema: ArtifactSchema, recorded: DataConfig, root: str, console: Console) -> None:
    """Record a new data.root in a run, if the images there are those of the run.

    splits.json changes in its field `root` only, and the manifests with it, so no phase but `data` has to run again.
    The next command completes an interrupted move.

    Args:
        schema: The run.
        recorded: Its settings of the data.
        root: The new place.
        console: Prints progress.

    Raises:
        ConfigError: An image of the run is missing in `root`, or has another content; or `root` is a Hugging Face
            dataset, whose images the run has copied.
    """
    if is_dataset(root, recorded.class_names):
        raise ConfigError(
            f"run folder {str(schema.output_dir)!r} belongs to data.root={recorded.root}, and a Hugging Face dataset "
            f"({root}) cannot replace it",
            "leave data.root out to evaluate, as the run has copies of the images of a dataset; or set run_dir=... to "
            "another folder",
        )
    partition = partition_from_json(read_json(schema.splits_json), schema.splits_json)
    folder = _folder(recorded.model_copy(update={"root": root}))
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
        after = _digest(_splits_text(partition, folder))
        # With this manifest alone, `complete_move` can do the rest.
        _replace_digest(schema, schema.manifest("data"), file_digest(schema.splits_json), after, root)
    complete_move(schema)
    console.line("data", f"moved to {root}: its {len(rows):,} images are those of the run")


def complete_move(schema: ArtifactSchema) -> None:
    """Complete a move of the data that was recorded in the manifest of `data`, and interrupted there."""
    path = schema.manifest("data")
    if not path.is_file() or not schema.splits_json.is_file():
        return
    manifest, before = read_manifest(path), file_digest(schema.splits_json)
    after, recorded = manifest.outputs.get(relative(schema.splits_json, schema.output_dir)), manifest.config
    if after is None or before == after:
        return
    try:
        config = DataConfig.model_validate(recorded.get("DataConfig"))
        partition = partition_from_json(read_json(schema.splits_json), schema.splits_json)
    except (ValidationError, StreetVisionError):
        return  # the phase that reads it reports it
    root = config.root
    if root is None or _digest(text := _splits_text(partition, _folder(config))) != after:
        return  # another change, which the engine finds
    with run_lock(schema.lock_file):
        for other in (schema.manifest(phase) for phase in PHASES):
            if other.is_file():
                _replace_digest(schema, other, before, after, root)
        write_text_atomic(schema.splits_json, text)


def _folder(config: DataConfig) -> Path:
    """The folder that paths in data.root are relative to: that of its listing, or data.root if it cannot be listed."""
    assert config.root is not None
    path = Path(config.root).absolute()
    with suppress(DataError):
        if not is_dataset(config.root, config.class_names):
            return list_root(config, path, one_class=True).root.absolute()
    return path.parent if path.is_file() else path


def _splits_text(partition: Partition, folder: Path) -> str:
    """The content of splits.json for images in `folder`."""
    return json_text(partition_to_json(replace(partition, index=replace(partition.index, root=folder))))


def _digest(text: str) -> FileDigest:
    content = text.encode()
    return FileDigest(sha256=sha256_bytes(content), bytes=len(content))


def _replace_digest(schema: ArtifactSchema, path: Path, before: FileDigest, after: FileDigest, root: str) -> None:
    """Let a manifest name the new splits.json where it named the earlier one, and the new place of the data."""
    name, manifest = relative(schema.splits_json, schema.output_dir), read_manifest(path)
    update: dict[str, object] = {
        field: {**files, name: after}
        for field, files in (("inputs", manifest.inputs), ("outputs", manifest.outputs))
        if files.get(name) == before
    }
    recorded = manifest.config.get("DataConfig")
    if isinstance(recorded, dict):
        update["config"] = {**manifest.config, "DataConfig": {**recorded, "root": root}}
    write_json_atomic(path, manifest.model_copy(update=update).model_dump(mode="json"))
