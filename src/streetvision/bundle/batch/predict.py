"""Predict any number of images into a folder of shards; the command line's entry point."""

from collections.abc import Sequence
from pathlib import Path

from streetvision.bundle.batch.executors import EXECUTORS
from streetvision.bundle.batch.files import print_left_out
from streetvision.bundle.batch.shards import ShardManifest, finish, lock_folder, open_folder
from streetvision.bundle.format import read_bundle, read_bundle_reference
from streetvision.bundle.monitor_status import StatusFile
from streetvision.contracts.errors import ConfigError, unknown_name
from streetvision.contracts.progress import Progress
from streetvision.data.config import DEFAULT_LIMITS, DecodeLimits
from streetvision.data.file_search import LeftOut


def predict_sources(
    bundle: Path,
    sources: Sequence[Path],
    out: Path,
    *,
    engine: str = "local",
    workers: int | None = None,
    shard_size: int | None = None,
    signals: bool = False,
    monitor_state: Path | None = None,
    limits: DecodeLimits = DEFAULT_LIMITS,
    console: Progress,
) -> ShardManifest:
    """Predict every image of the sources. An interrupted run resumes when it is called again.

    Args:
        bundle: Folder of the bundle, or its bundle.json.
        sources: Image files, folders, tars and Parquet files.
        out: Folder of the predictions.
        engine: A name in EXECUTORS.
        workers: Number of workers; None: the default of the engine.
        shard_size: Images per shard; None: the shard size of the folder, or the default for a new one.
        signals: Also write features and image quality for `streetvision monitor`.
        monitor_state: State file of `streetvision monitor`, which may withdraw the certificate.
        limits: Largest accepted image.
        console: Prints progress.

    Returns:
        The manifest of the finished folder.

    Raises:
        ConfigError: An option is invalid, or `out` cannot be used.
        ArtifactError: `out` has predictions of another bundle or of other images, or a worker died.
    """
    for name, value in (("workers", workers), ("shard-size", shard_size)):
        if value is not None and value < 1:
            raise ConfigError(f"--{name} {value} must be >= 1", "leave it out for the default")
    if engine not in EXECUTORS:
        raise unknown_name("engine", engine, EXECUTORS)
    opened, out = read_bundle(bundle.absolute()), out.absolute()  # workers may have another working directory
    if signals:
        read_bundle_reference(opened)  # its absence is reported before any image is read
    if monitor_state is not None:
        monitor_state = monitor_state.absolute()
        StatusFile(monitor_state, opened.manifest.digest)
    left_out = LeftOut()
    with lock_folder(out):
        try:
            folder = open_folder(
                out,
                sources,
                bundle=opened.manifest.digest,
                shard_size=shard_size,
                max_megapixels=limits.max_megapixels,
                signals=signals,
                monitor_state=None if monitor_state is None else str(monitor_state),
                left_out=left_out,
            )
        finally:
            print_left_out(left_out)  # also why a folder has no images
        manifest, missing = folder.manifest, list(folder.missing())
        n_done = manifest.shards - len(missing)
        done = f"; {n_done} of them are already done" if n_done else ""
        console.line("images", f"{manifest.images:,} in {manifest.shards} shards of {manifest.shard_size}{done}")
        if missing:
            results = EXECUTORS[engine](opened, out, missing, workers)
            for _ in console.track(results, total=len(missing), label="predict"):
                pass
        finished = finish(folder)
    console.line("predictions", f"{folder.predictions_dir}: {manifest.images:,}; {finished.failures} of them failed")
    if finished.failures:
        console.line("failures", str(folder.failures_path))
    return finished
