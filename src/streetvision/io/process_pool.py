"""Work in processes of their own: as many at a time as are wanted, and none that dies takes another with it."""

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import TypeVar

Task = TypeVar("Task")


def run_in_processes(
    work: Callable[[Task, int], None], tasks: Iterable[Task], at_once: int, *, preload: Sequence[str] = ()
) -> Iterator[tuple[Task, int]]:
    """Call work(task, threads) for each task; yields the task and the exit code of its process, as they end.

    A task is taken from `tasks` when a process is free for it. Processes are forked from one that has loaded the
    libraries and done nothing else, so that none pays for loading them, and none inherits a thread. Those that still
    run when the caller stops, or is killed, are ended. OMP_NUM_THREADS says how many threads each gets; else they share
    the cores.
    """
    threads = _threads(at_once)
    context = get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    ahead, running = iter(tasks), list[tuple[Task, ForkServerProcess]]()
    try:
        while True:
            while len(running) < at_once and (task := next(ahead, None)) is not None:
                process = context.Process(target=_with_its_parent, args=(work, task, threads))
                running.append((task, process))  # first, for the caller may be interrupted while it starts
                process.start()
            if not running:
                return
            ended = wait([process.sentinel for _, process in running])
            for task, process in [each for each in running if each[1].sentinel in ended]:
                process.join()
                running.remove((task, process))
                yield task, process.exitcode or 0
    finally:
        for _, process in running:
            if process.pid is not None:
                process.terminate()
                process.join()


def _threads(at_once: int) -> int:
    """Of each process, which the libraries that it loads are told too."""
    share = str(max(1, (os.cpu_count() or 1) // at_once))
    asked = os.environ.setdefault("OMP_NUM_THREADS", share).partition(",")[0]
    return int(asked) if asked.isdigit() and int(asked) else int(share)


def _with_its_parent(work: Callable[[Task, int], None], task: Task, threads: int) -> None:
    """Work that ends when the process that asked for it does, however that ends: nobody would read what comes of it."""
    threading.Thread(target=_wait_for_the_end, daemon=True).start()
    work(task, threads)


def _wait_for_the_end() -> None:
    parent = parent_process()
    assert parent is not None, "this is a child"
    parent.join()
    os._exit(1)


def write_output_to(log: Path) -> None:
    """Send all that this process says, and libraries below it, to the end of a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as handle:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(handle.fileno(), stream.fileno())


def failure_reason(log: Path, exit_code: int) -> str:
    """Why a process failed: the last line of its log, or the signal that ended it."""
    if exit_code < 0:
        return f"ended by signal {-exit_code}"
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    told = [line.strip() for line in lines if line.strip()]
    return told[-1] if told else f"ended with exit code {exit_code}"
