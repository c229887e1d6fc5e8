"""Several processes on one training run: the first leads and runs the phases, the others join it where it trains.

All are started by torchrun with the same command line. Only the leader reads data sets, writes files and talks.
One process alone, as most are, needs no torch for it.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from streetvision.contracts.errors import ConfigError, StreetVisionError
from streetvision.models.config import HardwareConfig

PATIENCE = timedelta(days=7)
"""How long the others wait for the leader to begin training."""
DONE = ""


def rank_and_world_size() -> tuple[int, int]:
    """The rank of this process and the number of processes, as torchrun set them; (0, 1) without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def check_started(config: HardwareConfig) -> None:
    """Raise ConfigError unless as many processes were started as the settings ask for."""
    requested, (_, world) = config.processes, rank_and_world_size()
    if requested != world:
        raise ConfigError(
            f"hardware.devices={config.devices} on hardware.num_nodes={config.num_nodes} needs {requested} processes, "
            f"and {world} {'process was' if world == 1 else 'processes were'} started",
            f"torchrun --nnodes={config.num_nodes} --nproc-per-node={config.devices} -m streetvision train ...",
        )


@contextmanager
def process_group() -> Iterator[None]:
    """A group of all processes, for as long as the block lasts."""
    if rank_and_world_size()[1] == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        yield
        if rank_and_world_size()[0] == 0:
            broadcast(DONE)
    finally:
        dist.destroy_process_group()


def broadcast(news: object) -> None:
    """The leader: tell the others the settings of the run, then each phase in which they train with it."""
    if rank_and_world_size()[1] > 1:
        _broadcast(news)


def receive() -> object:
    """The others: what the leader announces next; DONE when it is done. Raises StreetVisionError when it has ended."""
    try:
        return _broadcast(None)
    except RuntimeError as error:
        raise StreetVisionError("the first process ended before it was done", "what it said last says why") from error


def worker_loop(join: Callable[[str], None]) -> None:
    """The others: join the leader in every phase that it announces, until it is done."""
    while phase := receive():
        join(str(phase))


def _broadcast(news: object) -> object:
    import torch
    import torch.distributed as dist

    heard = [news]
    dist.broadcast_object_list(heard, src=0, device=torch.device("cpu"))
    return heard[0]
