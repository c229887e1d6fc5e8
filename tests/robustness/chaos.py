"""Kill a run at random times, resume it, and compare its bundle with that of an uninterrupted run.

A run is the demo on tiny data: scenes rendered by worker processes, all six phases with one loader, the evaluation.
The processes are forked from one that has loaded the libraries, because loading them takes longer than the run.

    python -m tests.robustness.chaos --runs 100
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from streetvision.cli.app import main as streetvision
from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.io.atomic import TEMP_SUFFIX, read_json, sha256_file, sha256_json
from streetvision.pipeline.phases import PRELOADED

TINY_RUN = [
    "pipeline.phases=[phase4a_explora,phase1,phase2,phase4c_cvfm,phase5,phase6]",
    "scenes.count=80",
    "scenes.width=96",
    "scenes.height=72",
    "loader.num_workers=1",
    "loader.batch_size=16",
    "model=random_small",
    "model.backbone.width=32",
    "model.backbone.depth=1",
    "model.backbone.heads=2",
    "model.image_size=64",
    "phase4a.num_epochs=1",
    "phase4a.batch_size=16",
    "phase4a.unfreeze_blocks=0",
    "phase4a.rank=4",
    "training=frozen",
    "phase4c.views.rows=1",
    "phase4c.views.columns=2",
    "phase4c.epochs=2",
    "phase2.n_resamples=100",
    "phase5.folds=2",
    "phase6.archive=true",
]
VICTIMS = ("everything", "everything", "parent", "child")
"""Which processes are killed: all, as in a power failure; the parent only, which leaves orphans; or one child."""
MAX_KILLS = 3


@dataclass(frozen=True)
class Result:
    """The result of one interrupted run."""

    kills: int
    """Number of killed processes."""
    problem: str | None
    """Differences from the uninterrupted run; None: no difference."""


def interrupted_run(root: Path, expected: dict[str, str], *, seed: int, seconds: float) -> Result:
    """Start the run in `root`, kill it at random times within `seconds`, then let it finish, and compare."""
    rng = random.Random(seed)
    kills = 0
    for _ in range(rng.randint(1, MAX_KILLS)):
        victim = rng.choice(VICTIMS)
        kills += _start_and_kill(root, after=rng.uniform(0.02, 1) * seconds, victim=victim, rng=rng)
    code = _wait(_start(root))
    if code != 0:
        return Result(kills, f"exit code {code} after the last resume; see {root}.log")
    actual, strays = digests(root), strays_in(root)
    differing = sorted(name for name in expected.keys() | actual.keys() if expected.get(name) != actual.get(name))
    problems = [f"differs: {name}" for name in differing] + [f"stray: {name}" for name in strays]
    return Result(kills, "; ".join(problems) or None)


def uninterrupted_run(root: Path) -> tuple[dict[str, str], float]:
    """Digests and duration, in seconds, of an uninterrupted run."""
    started = time.perf_counter()
    code = _wait(_start(root))
    assert code == 0, f"the uninterrupted run ended with {code}:\n{Path(f'{root}.log').read_text()}"
    return digests(root), time.perf_counter() - started


def digests(root: Path) -> dict[str, str]:
    """sha256 by name of the bundle's files, its archive and the splits, without timestamps and absolute paths."""
    schema = ArtifactSchema(root)
    files = [*schema.export_dir.iterdir(), schema.bundle_archive]
    splits = read_json(schema.splits_json)
    assert isinstance(splits, dict)
    bundle = {path.name: sha256_file(path) for path in files if path.name != "manifest.json"}
    return bundle | {"splits.json": sha256_json({name: splits[name] for name in splits if name != "root"})}


def strays_in(root: Path) -> list[str]:
    """Temporary files under `root`."""
    return sorted(str(path.relative_to(root)) for path in root.rglob(f"*{TEMP_SUFFIX}"))


def _start(root: Path) -> int:
    """Start the whole run in a new session; return its pid."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    os.setsid()
    log = os.open(f"{root}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    _use_one_thread()  # renews torch's thread pool; if several threads of a forked process do so, torch fails
    os._exit(_run(root))


def _run(root: Path) -> int:
    for command in (
        ["train", f"run_dir={root}", *TINY_RUN],
        ["evaluate", "--bundle", str(root / "export"), "evaluation.n_resamples=100", "loader.batch_size=16"],
    ):
        try:
            streetvision(command)
        except SystemExit as stop:
            if stop.code:
                return int(stop.code)
        except BaseException:
            traceback.print_exc()
            return 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
    return 0


def _start_and_kill(root: Path, *, after: float, victim: str, rng: random.Random) -> int:
    """Return the number of killed processes: 0 if the run, or all its children, ended before `after` seconds."""
    pid = _start(root)
    time.sleep(after)
    if os.waitpid(pid, os.WNOHANG) != (0, 0):
        return 0
    killed = 1
    if victim == "everything":
        os.killpg(pid, signal.SIGKILL)
    elif victim == "parent":
        os.kill(pid, signal.SIGKILL)
    elif children := _children(pid):
        os.kill(rng.choice(children), signal.SIGKILL)
    else:
        killed = 0
    _wait(pid)
    return killed


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def _wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(arguments: list[str] | None = None) -> int:
    """Print a line for each failed run, and a summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="seed of the first run")
    parser.add_argument("--keep", type=Path, help="keep the runs in this folder")
    options = parser.parse_args(arguments)
    _load_libraries()
    results: Counter[str] = Counter()
    kills = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(exist_ok=True)
        expected, seconds = uninterrupted_run(folder / "uninterrupted")
        sys.stdout.write(f"uninterrupted: {seconds:.1f} s, {len(expected)} files compared\n")
        for seed in range(options.seed, options.seed + options.runs):
            result = interrupted_run(folder / f"run{seed}", expected, seed=seed, seconds=seconds)
            kills += result.kills
            results["same" if result.problem is None else "different"] += 1
            if result.problem:
                sys.stdout.write(f"run {seed} ({result.kills} kills): {result.problem}\n")
                sys.stdout.flush()
    sys.stdout.write(
        f"{options.runs} runs, {kills} kills: {results['same']} equal bundles, {results['different']} different\n"
    )
    return min(1, results["different"])


def _load_libraries() -> None:
    """Import the libraries of a run before the first fork. None of them starts a thread."""
    for name in PRELOADED:
        import_module(name)
    _use_one_thread()


def _use_one_thread() -> None:
    import torch

    torch.set_num_threads(1)


if __name__ == "__main__":
    sys.exit(main())
