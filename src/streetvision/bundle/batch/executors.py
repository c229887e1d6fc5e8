"""Who answers the shards of a folder: processes of this machine, or the actors of Ray Data on many; the work is one."""

import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from streetvision.bundle.batch.shards import Done, ShardFolder, predict_shard
from streetvision.bundle.predictor import load_bundle
from streetvision.contracts.errors import ArtifactError, ConfigError, StreetVisionError
from streetvision.models.device import pick_device

GO_ON = "run the same line again and it goes on; fewer --workers need less memory"
RESTARTS = 2
"""Of a Ray actor that dies, before the run stops."""
BLOCKS = 1000
"""Most pieces of work that Ray plans for; each has one shard or more."""


@dataclass(frozen=True)
class Refused:
    """An error of ours on its way from a worker."""

    message: str
    hint: str | None


class ShardWorker:
    """Answers shards on one thread with a predictor of its own, which it loads once."""

    def __init__(self, bundle: Path, root: Path) -> None:
        torch.set_num_threads(1)
        self.predictor, self.folder = load_bundle(bundle), ShardFolder(root)
        if self.predictor.manifest.digest != self.folder.manifest.bundle:
            raise ArtifactError(
                f"the bundle {str(bundle)!r} is another one here", "every machine needs the same bundle"
            )

    def __call__(self, shard: int) -> Done:
        """Answer one shard and write it down."""
        return predict_shard(self.predictor, self.folder, shard)


Engine = Callable[[Path, Path, Sequence[int], int | None], Iterator[Done]]
"""Bundle, answer folder, shards to answer, most workers -> each shard as it is done, in any order."""


def run_local(bundle: Path, root: Path, shards: Sequence[int], workers: int | None) -> Iterator[Done]:
    """By processes of this machine, where none are asked for one a processor, or one beside a GPU.

    Raises ArtifactError that names a worker which died, and its shard.
    """
    most = workers or (len(os.sched_getaffinity(0)) if pick_device().type == "cpu" else 1)
    crew, remaining = [_Worker(bundle, root) for _ in range(min(most, len(shards)))], iter(shards)
    try:
        for worker in crew:
            worker.give(next(remaining))
        while busy := [worker for worker in crew if worker.shard is not None]:
            heard = wait([worker.line for worker in busy])
            for worker in busy:
                if worker.line in heard:
                    yield worker.take()
                    worker.give(next(remaining, None))
    finally:
        for worker in crew:
            worker.end()


@dataclass(eq=False)
class _Worker:
    """A process that answers one shard at a time, and the line to it; it ends when the line does."""

    bundle: Path
    root: Path
    line: Connection = field(init=False)
    process: BaseProcess = field(init=False)
    shard: int | None = None

    def __post_init__(self) -> None:
        # Forked from a process that has imported all this and done nothing else: one import for all workers.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self.line, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(self.bundle, self.root, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, shard: int | None) -> None:
        """Send it to the next shard; None where there is none."""
        self.shard = shard
        if shard is not None:
            with suppress(BrokenPipeError):  # it has died, which `take` tells
                self.line.send(shard)

    def take(self) -> Done:
        """What became of the shard; raises what the worker met, or that it died."""
        try:
            told = self.line.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            raise ArtifactError(
                f"worker process {self.process.pid} {self._ending()} on shard {self.shard}", GO_ON
            ) from None
        if isinstance(told, Refused):
            raise StreetVisionError(told.message, told.hint)
        assert isinstance(told, Done)
        return told

    def _ending(self) -> str:
        code = self.process.exitcode or 0
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"

    def end(self) -> None:
        """End it at once; the shard that it is on leaves nothing."""
        self.line.close()
        self.process.terminate()
        self.process.join()


def _serve(bundle: Path, root: Path, line: Connection) -> None:
    """A worker's life: it ends when whoever gives it shards has gone, by whatever death."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt ends the run, and the run ends its workers
    worker: ShardWorker | None = None
    try:
        while True:
            shard = line.recv()
            worker = worker or ShardWorker(bundle, root)
            line.send(worker(shard))
    except (EOFError, BrokenPipeError):
        return
    except StreetVisionError as error:
        line.send(Refused(error.message, error.hint))


def run_on_ray(bundle: Path, root: Path, shards: Sequence[int], workers: int | None) -> Iterator[Done]:
    """By actors of Ray Data, where none are asked for one a processor or GPU of the cluster.

    The cluster is the one that RAY_ADDRESS names, else one that runs here, else one that is started. All its machines
    see bundle, sources and folder under the same paths. Raises ConfigError without Ray, ArtifactError for dead actors.
    """
    ray = _ray()
    from ray.data import ActorPoolStrategy

    needs = "GPU" if ray.cluster_resources().get("GPU") else "CPU"
    most = workers or int(ray.cluster_resources()[needs])
    blocks = min(len(shards), BLOCKS)
    rows = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=blocks)
    answered = rows.map_batches(
        _RayWorker,
        batch_size=1,
        compute=ActorPoolStrategy(size=min(most, blocks)),
        fn_constructor_args=(bundle, root),
        num_cpus=1,
        num_gpus=int(needs == "GPU"),
        max_restarts=RESTARTS,
        max_task_retries=RESTARTS,
    )
    try:
        for row in answered.iter_rows():
            if row["what"]:
                raise StreetVisionError(row["what"], row["hint"] or None)
            yield Done(row["shard"], row["images"], row["failures"])
    except ray.exceptions.RayError as error:
        raise ArtifactError(f"a Ray worker failed: {str(error).splitlines()[-1]}", GO_ON) from error


class _RayWorker:
    """ShardWorker as Ray Data calls it: a batch of one row in, a batch of one row out."""

    def __init__(self, bundle: Path, root: Path) -> None:
        self.bundle, self.root = bundle, root
        self.worker: ShardWorker | None = None  # made where an error of ours can be told

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        shard, what, hint = int(batch["shard"][0]), "", ""
        done = Done(shard, 0, 0)
        try:
            self.worker = self.worker or ShardWorker(self.bundle, self.root)
            done = self.worker(shard)
        except StreetVisionError as error:
            what, hint = error.message, error.hint or ""
        told = {"shard": shard, "images": done.images, "failures": done.failures, "what": what, "hint": hint}
        return {name: [value] for name, value in told.items()}


def _ray() -> Any:
    """Ray, started or connected to; it reports no usage to anybody."""
    if find_spec("ray") is None:
        raise ConfigError("--engine ray needs Ray, which is not installed", "install the extra: streetvision[ray]")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    import ray.data

    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = -1  # a shard takes as long as it takes; Ray gives up after half an hour
    return ray


EXECUTORS: Mapping[str, Engine] = {"local": run_local, "ray": run_on_ray}
"""--engine -> who answers."""
