"""Training in several processes, all started by torchrun with the same command line.

Rank 0 runs the phases; the other ranks join it in the phases that train. Only rank 0 loads data sets, writes files and
logs. A single process, the usual case, does not import torch here.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from streetvision.contracts.errors import ConfigError, StreetVisionError
from streetvision.models.config import HardwareConfig

TIMEOUT = timedelta(days=7)
"""How long the other ranks wait for a message of rank 0, which may prepare data for long before it trains."""
STOP = ""
"""The message that ends `worker_loop`."""


def rank_and_world_size() -> tuple[int, int]:
    """Return the rank of this process and the number of processes, as torchrun set them; (0, 1) without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def check_world_size(config: HardwareConfig) -> None:
    """Raise ConfigError unless the number of processes is the number of configured devices."""
    expected, (_, world_size) = config.processes, rank_and_world_size()
    if expected != world_size:
        raise ConfigError(
            f"hardware.devices={config.devices} on hardware.num_nodes={config.num_nodes} needs {expected} processes, "
            f"and {world_size} {'process was' if world_size == 1 else 'processes were'} started",
            f"torchrun --nnodes={config.num_nodes} --nproc-per-node={config.devices} -m streetvision train ...",
        )


@contextmanager
def process_group() -> Iterator[None]:
    """Connect all processes for the duration of the block; on leaving it without an error, rank 0 stops the others."""
    if rank_and_world_size()[1] == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    try:
        yield
        if rank_and_world_size()[0] == 0:
            broadcast(STOP)
    finally:
        dist.destroy_process_group()


def broadcast(message: object) -> None:
    """Send `message` from rank 0 to the other ranks: the settings of the run, then each phase in which they train."""
    if rank_and_world_size()[1] > 1:
        _broadcast(message)


def receive() -> object:
    """Return the next message of rank 0, on any other rank; raises StreetVisionError if rank 0 has ended."""
    try:
        return _broadcast(None)
    except RuntimeError as error:
        raise StreetVisionError("rank 0 ended before the run was complete", "see the last output of rank 0") from error


def worker_loop(join: Callable[[str], None]) -> None:
    """Call `join` with the id of every phase that rank 0 broadcasts, until rank 0 stops; for all other ranks."""
    while phase := receive():
        join(str(phase))


def _broadcast(message: object) -> object:
    import torch
    import torch.distributed as dist

    messages = [message]
    dist.broadcast_object_list(messages, src=0, device=torch.device("cpu"))
    return messages[0]
