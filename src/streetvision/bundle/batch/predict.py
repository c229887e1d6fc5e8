"""Answers for any number of images, written in shards: the command line's way to it."""

from collections.abc import Sequence
from pathlib import Path

from streetvision.bundle.batch.executors import EXECUTORS
from streetvision.bundle.batch.shards import ShardManifest, claim, finish, open_folder
from streetvision.bundle.format import read_bundle
from streetvision.contracts.errors import ConfigError, unknown_name
from streetvision.contracts.progress import Progress


def predict_sources(
    bundle: Path,
    sources: Sequence[Path],
    out: Path,
    *,
    engine: str = "local",
    workers: int | None = None,
    shard_size: int | None = None,
    console: Progress,
) -> ShardManifest:
    """Answer every image of the sources into the folder `out`; the same call again goes on where it was.

    `workers` and `shard_size` of None take the engine's and the folder's own. Returns what the folder then holds.
    """
    for name, value in (("workers", workers), ("shard-size", shard_size)):
        if value is not None and value < 1:
            raise ConfigError(f"--{name} {value} is no number of at least 1", "leave it out for the default")
    if engine not in EXECUTORS:
        raise unknown_name("engine", engine, EXECUTORS)
    bundle, out = bundle.absolute(), out.absolute()  # workers may have another working directory
    seal = read_bundle(bundle).manifest.digest
    with claim(out):
        folder = open_folder(out, sources, bundle=seal, shard_size=shard_size)
        listed, missing = folder.manifest, list(folder.missing())
        there = f", {listed.shards - len(missing)} of them there already" if len(missing) < listed.shards else ""
        console.line("images", f"{listed.images:,} in {listed.shards} shards of {listed.shard_size}{there}")
        if missing:
            done = EXECUTORS[engine](bundle, out, missing, workers)
            for _ in console.track(done, total=len(missing), label="answer"):
                pass
        finished = finish(folder)
    console.line("answers", f"{out / 'answers'}: {listed.images:,}, {finished.failures} of them failures")
    if finished.failures:
        console.line("failures", str(folder.failures_path))
    return finished
