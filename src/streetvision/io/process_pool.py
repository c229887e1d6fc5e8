"""A process pool in which every task gets a new process, so a crash ends one task only."""

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import get_all_start_methods, get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess, SpawnContext, SpawnProcess
from pathlib import Path
from typing import TypeVar

Task = TypeVar("Task")


def run_in_processes(
    work: Callable[[Task, int], None], tasks: Iterable[Task], max_processes: int, *, preload: Sequence[str] = ()
) -> Iterator[tuple[Task, int]]:
    """Call work(task, threads) in a new process for each task.

    `ProcessPoolExecutor` does not fit: one crashed worker breaks its whole pool.

    Args:
        work: a module-level function; `threads` is OMP_NUM_THREADS, or else an equal share of the cores.
        tasks: consumed lazily; the next task is taken when a process is free.
        max_processes: maximum number of processes that run at the same time.
        preload: modules that the fork server imports once.

    Yields:
        Each task with the exit code of its process, in the order in which they end. Processes that still run when the
        caller stops or is killed are terminated.
    """
    threads = _threads_per_process(max_processes)
    context = worker_context(preload)
    pending, running = iter(tasks), list[tuple[Task, ForkServerProcess | SpawnProcess]]()
    try:
        while True:
            while len(running) < max_processes and (task := next(pending, None)) is not None:
                process = context.Process(target=_work_and_watch_parent, args=(work, task, threads))
                running.append((task, process))  # before start, which an interrupt may leave half done
                process.start()
            if not running:
                return
            ended = wait([process.sentinel for _, process in running])
            for task, process in [entry for entry in running if entry[1].sentinel in ended]:
                process.join()
                running.remove((task, process))
                yield task, process.exitcode or 0
    finally:
        for _, process in running:
            if process.pid is not None:
                process.terminate()
                process.join()


def worker_context(preload: Sequence[str]) -> ForkServerContext | SpawnContext:
    """Return the context of worker processes, which import the modules in `preload` once where the system can fork.

    The fork server has loaded the libraries but started no thread, so forks are fast and safe.
    """
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    return context


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    # Only Linux can restrict a process to some of the cores in this way.
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _threads_per_process(max_processes: int) -> int:
    share = max(1, usable_cores() // max_processes)
    # Libraries in the child processes read the variable too.
    value = os.environ.setdefault("OMP_NUM_THREADS", str(share)).partition(",")[0]
    return int(value) if value.isdigit() and int(value) else share


def _work_and_watch_parent(work: Callable[[Task, int], None], task: Task, threads: int) -> None:
    def exit_with_parent() -> None:
        parent = parent_process()
        assert parent is not None, "this function runs in a child process"
        parent.join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
    work(task, threads)


def write_output_to(log: Path) -> None:
    """Append the standard output and error of this process, including those of native libraries, to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as handle:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(handle.fileno(), stream.fileno())


def failure_reason(log: Path, exit_code: int) -> str:
    """Return why a process failed: the last line of its log, or the signal that ended it."""
    if exit_code < 0:
        return f"ended by signal {-exit_code}"
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    messages = [line.strip() for line in lines if line.strip()]
    return messages[-1] if messages else f"ended with exit code {exit_code}"
