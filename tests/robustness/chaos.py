"""Kill a run at random moments, resume it, and compare its bundle with that of a run that nobody disturbed.

A run is the demo on tiny data: scenes drawn by worker processes, all six phases with one loader, the evaluation.
The processes are forked from one that has the libraries loaded, because loading them takes longer than the run.

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
from pathlib import Path

from streetvision.cli.app import main as streetvision
from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.io.atomic import TEMP_SUFFIX, read_json, sha256_file, sha256_json

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
    "model.backbone.image_size=64",
    "phase4a.num_epochs=1",
    "phase4a.batch_size=16",
    "phase4a.unfreeze_blocks=0",
    "phase4a.rank=4",
    "training.epochs=2",
    "phase4c.views.rows=1",
    "phase4c.views.columns=2",
    "phase4c.epochs=2",
    "phase5.folds=2",
    "phase6.archive=true",
]
VICTIMS = ("everything", "everything", "parent", "child")
"""Who is killed: the whole tree as a machine does it, the parent alone, which leaves orphans, or one child alone."""
LONGEST_KILLS = 3


@dataclass(frozen=True)
class Ending:
    """How one disturbed run ended."""

    kills: int
    """Processes that were killed before the run was left in peace."""
    problem: str | None
    """What differs from the undisturbed run; None when nothing does."""


def disturb(root: Path, expected: dict[str, str], *, seed: int, seconds: float) -> Ending:
    """Start the run in `root`, kill it at random moments of its `seconds`, then let it end, and compare."""
    rng = random.Random(seed)
    kills = 0
    for _ in range(rng.randint(1, LONGEST_KILLS)):
        victim = rng.choice(VICTIMS)
        kills += _start_and_kill(root, after=rng.uniform(0.02, 1) * seconds, victim=victim, rng=rng)
    code = _wait(_start(root))
    if code != 0:
        return Ending(kills, f"exit code {code} after the last resume; see {root}.log")
    got, strays = digests(root), strays_in(root)
    differing = sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
    problems = [f"differs: {name}" for name in differing] + [f"stray: {name}" for name in strays]
    return Ending(kills, "; ".join(problems) or None)


def undisturbed(root: Path) -> tuple[dict[str, str], float]:
    """Digests of a run that is left alone, and the seconds it takes."""
    started = time.perf_counter()
    code = _wait(_start(root))
    assert code == 0, f"the undisturbed run ended with {code}; see {root}.log"
    return digests(root), time.perf_counter() - started


def digests(root: Path) -> dict[str, str]:
    """sha256 by name of the bundle's files, its archive and the splits, without what tells the time or the folder."""
    schema = ArtifactSchema(root)
    files = [*schema.export_dir.iterdir(), schema.bundle_archive]
    splits = read_json(schema.splits_json)
    assert isinstance(splits, dict)
    bundle = {path.name: sha256_file(path) for path in files if path.name != "manifest.json"}
    return bundle | {"splits.json": sha256_json({name: splits[name] for name in splits if name != "root"})}


def strays_in(root: Path) -> list[str]:
    """Temp files under `root`."""
    return sorted(str(path.relative_to(root)) for path in root.rglob(f"*{TEMP_SUFFIX}"))


def _start(root: Path) -> int:
    """The pid of a new process that leads a session of its own and does the whole run."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    os.setsid()
    log = os.open(f"{root}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
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
    """1 when something was killed, 0 when the run, or every child of it, was quicker."""
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


def main() -> int:
    """Run the whole of it and print a line a run that went wrong, and one in the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--keep", type=Path, help="folder for the runs that went wrong")
    options = parser.parse_args()
    _load_libraries()
    endings: Counter[str] = Counter()
    kills = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(exist_ok=True)
        expected, seconds = undisturbed(folder / "undisturbed")
        sys.stdout.write(f"undisturbed: {seconds:.1f} s, {len(expected)} files compared\n")
        for seed in range(options.seed, options.seed + options.runs):
            ending = disturb(folder / f"run{seed}", expected, seed=seed, seconds=seconds)
            kills += ending.kills
            endings["same" if ending.problem is None else "different"] += 1
            if ending.problem:
                sys.stdout.write(f"run {seed} ({ending.kills} kills): {ending.problem}\n")
                sys.stdout.flush()
    told = f"{endings['same']} same bundles, {endings['different']} not"
    sys.stdout.write(f"{options.runs} runs, {kills} kills: {told}\n")
    return min(1, endings["different"])


def _load_libraries() -> None:
    """What a run imports, before the first fork; none of it starts a thread."""
    import torch

    import streetvision.pipeline.run
    import streetvision.pipeline.steps.evaluate_model  # noqa: F401

    torch.set_num_threads(1)


if __name__ == "__main__":
    sys.exit(main())
