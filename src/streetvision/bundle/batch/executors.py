"""Predict the shards of a folder in parallel: in processes on this machine, or in a Ray cluster."""

import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeAlias

from streetvision.bundle.batch.shards import ShardFolder, ShardResult, predict_shard
from streetvision.bundle.format import Bundle
from streetvision.bundle.predictor import load_bundle
from streetvision.contracts.errors import ArtifactError, ConfigError, StreetVisionError
from streetvision.data.config import DecodeLimits
from streetvision.io.process_pool import usable_cores, worker_context
from streetvision.models.backbone_spec import one_line

RESUME_HINT = "run the same command again to resume; fewer --workers need less memory"
MAX_RESTARTS = 2
"""Restarts of a Ray actor that died, before the run stops."""


class ShardWorker:
    """Predicts shards with its own predictor, whose model runs on one CPU thread or on the GPU.

    Args:
        bundle: Folder of the bundle.
        root: Folder of the predictions.
        decoders: Threads that decode images.

    Raises:
        ArtifactError: The bundle on this machine is not the one of the predictions.
    """

    def __init__(self, bundle: Path, root: Path, *, decoders: int = 1) -> None:
        self.folder, self.decoders = ShardFolder(root), decoders
        limits = DecodeLimits(max_megapixels=self.folder.manifest.max_megapixels, setting="--max-megapixels")
        self.predictor = load_bundle(bundle, limits=limits, threads=1)
        if self.predictor.manifest.digest != self.folder.manifest.bundle:
            raise ArtifactError(
                f"the bundle {str(bundle)!r} differs on this machine", "copy the same bundle to every machine"
            )
        if self.folder.manifest.signals:
            self.predictor.record_signals()
        if self.folder.manifest.monitor_state is not None:
            self.predictor.use_monitor_state(Path(self.folder.manifest.monitor_state))

    def __call__(self, shard: int) -> ShardResult:
        """Predict one shard and write its predictions."""
        return predict_shard(self.predictor, self.folder, shard, decoders=self.decoders)


Executor: TypeAlias = Callable[[Bundle, Path, Sequence[int], int | None], Iterator[ShardResult]]
"""(bundle, folder of the predictions, shards, number of workers) -> the result of each shard, in any order."""


def run_local(bundle: Bundle, root: Path, shards: Sequence[int], workers: int | None) -> Iterator[ShardResult]:
    """Predict shards in processes on this machine.

    Args:
        bundle: The bundle.
        root: Folder of the predictions.
        shards: Shards without predictions.
        workers: Number of processes; None: one per CPU core, or one if the model runs on a GPU.

    Raises:
        ArtifactError: A worker died; the message names the process and its shard.
        StreetVisionError: A worker raised it.
    """
    count = min(workers or _default_workers(bundle), len(shards))
    # A single worker, as on a GPU, would wait for its images on one core.
    decoders = max(1, usable_cores() // count)
    pool, remaining = [_WorkerProcess(bundle, root, decoders) for _ in range(count)], iter(shards)
    try:
        for worker in pool:
            worker.send(next(remaining))
        while busy := [worker for worker in pool if worker.shard is not None]:
            ready = wait([worker.connection for worker in busy])
            for worker in busy:
                if worker.connection in ready:
                    yield worker.receive()
                    worker.send(next(remaining, None))
    finally:
        for worker in pool:
            worker.stop()


def _default_workers(bundle: Bundle) -> int:
    if bundle.manifest.runtime is None:
        # Imported here, because it loads torch, which the other runtimes do not need.
        from streetvision.models.device import pick_device

        if pick_device().type != "cpu":
            return 1
    return usable_cores()


@dataclass(eq=False)
class _WorkerProcess:
    """A process that predicts one shard at a time. It ends when its connection is closed."""

    bundle: Bundle
    root: Path
    decoders: int
    connection: Connection = field(init=False)
    process: BaseProcess = field(init=False)
    shard: int | None = None

    def __post_init__(self) -> None:
        model = "graph_model" if self.bundle.manifest.runtime else "torch_model"
        context = worker_context([__name__, f"streetvision.bundle.{model}"])
        self.connection, worker_side = context.Pipe()
        arguments = (self.bundle.folder, self.root, self.decoders, worker_side)
        self.process = context.Process(target=_worker_loop, args=arguments, daemon=True)
        self.process.start()
        worker_side.close()

    def send(self, shard: int | None) -> None:
        """Start the next shard; None: there is none."""
        self.shard = shard
        if shard is not None:
            with suppress(BrokenPipeError):  # the worker died, which `receive` reports
                self.connection.send(shard)

    def receive(self) -> ShardResult:
        """Return the result of the current shard; raises the worker's error, or ArtifactError if it died."""
        try:
            result = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode or 0
            end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
            raise ArtifactError(f"worker process {self.process.pid} {end} on shard {self.shard}", RESUME_HINT) from None
        if isinstance(result, StreetVisionError):
            raise result
        assert isinstance(result, ShardResult)
        return result

    def stop(self) -> None:
        """Terminate the process at once; an unfinished shard leaves no file."""
        self.connection.close()
        self.process.terminate()
        self.process.join()


def _worker_loop(bundle: Path, root: Path, decoders: int, connection: Connection) -> None:
    """Predict the shards that arrive, until the connection is closed, which also happens if the main process dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on an interrupt, the main process stops its workers
    worker: ShardWorker | None = None
    try:
        while True:
            shard = connection.recv()
            worker = worker or ShardWorker(bundle, root, decoders=decoders)
            connection.send(worker(shard))
    except (EOFError, BrokenPipeError):
        return
    except StreetVisionError as error:
        connection.send(error)


def run_on_ray(bundle: Bundle, root: Path, shards: Sequence[int], workers: int | None) -> Iterator[ShardResult]:
    """Predict shards in Ray actors.

    The cluster is the one in RAY_ADDRESS, else one that already runs on this machine, else a new one. All machines
    need bundle, sources and folder under the same paths.

    Args:
        bundle: The bundle.
        root: Folder of the predictions.
        shards: Shards without predictions.
        workers: Number of actors, at most what the cluster can run at a time; None: one per GPU of the cluster for a
            PyTorch bundle, else one per CPU core.

    Raises:
        ConfigError: Ray is not installed or cannot be reached, or the cluster has no CPU.
        ArtifactError: Actors died.
        StreetVisionError: An actor raised it.
    """
    ray = _start_ray()
    from ray.util import ActorPool

    resources = ray.cluster_resources()
    on_gpu = bundle.manifest.runtime is None and bool(resources.get("GPU"))
    most = int(resources.get("GPU" if on_gpu else "CPU", 0))
    if not most:
        raise ConfigError("the Ray cluster has no CPU", "add a machine with CPUs, or use --engine local")
    options = {"num_cpus": 1, "num_gpus": int(on_gpu), "max_restarts": MAX_RESTARTS, "max_task_retries": MAX_RESTARTS}
    actor = ray.remote(**options)(_RayWorker)
    actors = [actor.remote(bundle.folder, root) for _ in range(min(workers or most, most, len(shards)))]
    try:
        for result in ActorPool(actors).map_unordered(lambda worker, shard: worker.predict.remote(shard), list(shards)):
            if isinstance(result, StreetVisionError):
                raise result
            yield result
    except ray.exceptions.RayError as error:
        raise ArtifactError(f"a Ray worker failed: {str(error).splitlines()[-1]}", RESUME_HINT) from error
    finally:
        for worker in actors:
            ray.kill(worker)


class _RayWorker:
    """ShardWorker as an actor. It returns a user error, because Ray would wrap a raised one."""

    def __init__(self, bundle: Path, root: Path) -> None:
        self.bundle, self.root = bundle, root
        self.worker: ShardWorker | None = None  # created in `predict`, which can return its errors

    def predict(self, shard: int) -> ShardResult | StreetVisionError:
        try:
            self.worker = self.worker or ShardWorker(self.bundle, self.root)
            return self.worker(shard)
        except StreetVisionError as error:
            return error


def _start_ray() -> Any:
    """Start Ray or connect to it, without usage reports."""
    if find_spec("ray") is None:
        raise ConfigError("--engine ray needs Ray, which is not installed", "pip install 'streetvision[ray]'")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    if not ray.is_initialized():
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError) as error:
            raise ConfigError(
                f"cannot connect to the Ray cluster {os.environ.get('RAY_ADDRESS', 'of this machine')!r}: "
                f"{one_line(error)}",
                "set RAY_ADDRESS to the address of a running cluster, or unset it to start one here",
            ) from error
    return ray


EXECUTORS: Mapping[str, Executor] = {"local": run_local, "ray": run_on_ray}
"""--engine -> the function that predicts the shards."""
