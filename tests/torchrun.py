"""torchrun, but its processes are forked from one that has loaded the libraries: loading them takes 10 s in each."""

import json
import os
import subprocess
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from streetvision.cli.app import main
from streetvision.io.process_pool import worker_context
from streetvision.pipeline.phases import PRELOADED


def torchrun(arguments: list[str], logs: Path) -> tuple[int, str, str]:
    """Run a command line of streetvision in two processes on the CPU.

    The launcher has a process of its own: its threads outlive the launch, and crashed the process of later tests.

    Returns:
        1 if a process failed, else 0; standard output and standard error of both processes.
    """
    logs.mkdir()
    given = json.dumps([arguments, str(logs)])
    root = Path(__file__).parents[1]
    code = subprocess.run([sys.executable, "-m", "tests.torchrun", given], cwd=root, check=False).returncode
    return code, *(
        "".join(path.read_text() for path in sorted(logs.rglob(name))) for name in ("stdout.log", "stderr.log")
    )


def _launch(arguments: list[str], logs: str) -> int:
    worker_context(PRELOADED)
    launch = elastic_launch(
        LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=2,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            start_method="forkserver",
            logs_specs=DefaultLogsSpecs(log_dir=logs, redirects=Std.ALL),
        ),
        _run,
    )
    try:
        launch(arguments)
    except ChildFailedError:
        return 1
    return 0


def _run(arguments: list[str]) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    main(arguments)


if __name__ == "__main__":
    sys.exit(_launch(*json.loads(sys.argv[1])))
