"""torchrun without its launcher: two processes forked from one that has loaded the libraries, which takes 10 s."""

import os
import socket
from multiprocessing.connection import wait
from pathlib import Path

from streetvision.cli.app import main
from streetvision.io.process_pool import worker_context, write_output_to
from streetvision.pipeline.phases import PRELOADED


def torchrun(arguments: list[str], log: Path) -> tuple[int, str]:
    """Run a command line of streetvision in two processes on the CPU.

    Returns:
        1 if a process failed, else 0; what both processes printed, which is in the file `log`.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    context = worker_context(PRELOADED)
    processes = [context.Process(target=_run, args=(arguments, rank, port, log)) for rank in range(2)]
    for process in processes:
        process.start()
    running = {process.sentinel: process for process in processes}
    while running:
        for sentinel in wait(list(running)):
            process = running.pop(sentinel)
            process.join()
            if process.exitcode:  # as torchrun does
                for other in running.values():
                    other.terminate()
    return int(any(process.exitcode for process in processes)), log.read_text()


def _run(arguments: list[str], rank: int, port: int, log: Path) -> None:
    write_output_to(log)
    environment = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "GROUP_RANK": 0,
        "WORLD_SIZE": 2,
        "LOCAL_WORLD_SIZE": 2,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_RUN_ID": port,
    }
    os.environ.update({"CUDA_VISIBLE_DEVICES": ""} | {name: str(value) for name, value in environment.items()})
    main(arguments)
