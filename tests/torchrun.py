"""torchrun, but its processes are forked from one that has loaded the libraries: loading them takes 10 s in each."""

import os
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from streetvision.cli.app import main
from streetvision.io.process_pool import worker_context
from streetvision.pipeline.phases import PRELOADED


def torchrun(arguments: list[str], logs: Path) -> tuple[int, str, str]:
    """Run a command line of streetvision in two processes on the CPU.

    Returns:
        1 if a process failed, else 0; standard output and standard error of both processes.
    """
    worker_context(PRELOADED)
    logs.mkdir()
    launch = elastic_launch(
        LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=2,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            start_method="forkserver",
            logs_specs=DefaultLogsSpecs(log_dir=str(logs), redirects=Std.ALL),
        ),
        _run,
    )
    code = 0
    try:
        launch(arguments)
    except ChildFailedError:
        code = 1
    return code, *(
        "".join(path.read_text() for path in sorted(logs.rglob(name))) for name in ("stdout.log", "stderr.log")
    )


def _run(arguments: list[str]) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    main(arguments)
