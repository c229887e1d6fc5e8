"""A search for the settings of phase 1 that VAL_SELECT likes best: trials in processes of their own, kept in SQLite."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field
from yaml import safe_dump

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ArtifactError, ConfigError, StreetVisionError
from streetvision.contracts.settings import Seed
from streetvision.experiments.ablation_run import PRELOADED
from streetvision.io.atomic import sha256_json, write_text_atomic
from streetvision.io.lock import run_lock
from streetvision.io.manifests import read_manifest
from streetvision.io.process_pool import failure_reason, run_in_processes, write_output_to
from streetvision.io.yaml_files import read_declared
from streetvision.models.device import default_jobs
from streetvision.pipeline.config import RunConfig, compose_config, settings_sha256
from streetvision.pipeline.console import Console
from streetvision.pipeline.run import launch_training, resolve_run_config

if TYPE_CHECKING:
    import optuna

SEARCHED = ("training", "model", "augmentation", "phase4a")
"""Sections that phase 1, and the adaptation before it, read. Trials on different splits could not be compared."""
BEFORE_THE_TEST = frozenset({"data", "phase4a_explora", "phase1"})
"""Phases that a trial runs, as far as they are asked for."""
OWN = ("run_dir", "scenes.")
"""Settings of the command that are not the trials'."""
PRUNED, USER_ERROR = 4, 2
"""Exit codes of a trial's process."""
STARTUP, WARMUP_EPOCHS = 5, 1
"""Trials, and epochs of each, before a trial can be below the median."""

Value = bool | int | float | str | None


class Part(BaseModel):
    """A part of a search file; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Range(Part):
    """Numbers between two ends, both of them in; whole numbers where both ends are."""

    low: int | float = Field(allow_inf_nan=False)
    high: int | float = Field(allow_inf_nan=False)
    log: bool = False
    """Spread evenly over orders of magnitude."""

    def distribution(self) -> "optuna.distributions.BaseDistribution":
        """The same for Optuna."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if isinstance(self.low, int) and isinstance(self.high, int):
            return IntDistribution(self.low, self.high, log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)


class Choice(Part):
    """One of several values."""

    choices: tuple[Value, ...] = Field(min_length=2)

    def distribution(self) -> "optuna.distributions.BaseDistribution":
        """The same for Optuna."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.choices)


class SearchConfig(Part):
    """What `--search FILE` holds."""

    trials: int = Field(ge=1)
    """Over all commands on this run folder; those that fail count."""
    space: dict[str, Range | Choice] = Field(min_length=1)
    """Setting -> where to look."""
    jobs: int | None = Field(default=None, ge=1)
    """Trials at a time; null: one a core, on a GPU one. With one, the same seed asks for the same trials."""
    prune: bool = True
    """End a trial whose best VAL_SELECT MCC so far lies below the median of the others at that epoch."""
    seed: Seed = 0
    """Of the sampler."""


@dataclass(frozen=True)
class Trial:
    """A trial as its process is told of it."""

    number: int
    identity: int
    """Its id in the storage."""
    root: Path
    """Its run folder; named after its settings, so that one that was interrupted goes on where it was."""
    storage: str
    prune: bool

    @property
    def settings(self) -> Path:
        """The YAML that `streetvision train --config` takes."""
        return self.root.with_name(f"{self.root.name}.yaml")

    @property
    def log(self) -> Path:
        """What the trial said."""
        return self.root.with_name(f"{self.root.name}.log")


def launch_search(search: Path, run: RunConfig, *, console: Console) -> Path:
    """Run the trials that are still to be run; returns best.yaml, which `streetvision train --config` takes.

    Raises ConfigError before anything runs for a space that names no setting of phase 1, and StreetVisionError when no
    trial came through. VAL_CALIB and VAL_TEST have no say.
    """
    config = read_search(search)
    composed = resolve_run_config(run, console=console)
    home = ArtifactSchema(composed.root).output_dir / "search"
    common = {key: value for key, value in run.overrides.items() if not key.startswith(OWN)} | {
        "data.root": composed.data.root,
        "pipeline.phases": [*dict.fromkeys((*composed.pipeline.phases, "phase1"))],
    }
    _check_space(config, common)
    home.mkdir(parents=True, exist_ok=True)
    with run_lock(home / ".lock"):
        study = _open_study(home, config, common)
        _run_trials(study, config, common, home, console)
        return _write_best(study, common, home, console)


def read_search(path: Path) -> SearchConfig:
    """The search that a YAML file declares; raises ConfigError where it is none."""
    return read_declared(path, SearchConfig, hint="docs/training.md shows such a file")


def _check_space(config: SearchConfig, common: Mapping[str, object]) -> None:
    for key, where in config.space.items():
        if key.partition(".")[0] not in SEARCHED:
            raise ConfigError(
                f"{key} cannot be searched: what decides is VAL_SELECT after phase 1",
                f"search settings of {', '.join(SEARCHED)}",
            )
        if isinstance(where, Range) and not (where.low < where.high and (where.low > 0 or not where.log)):
            raise ConfigError(f"{key}: {where.low} to {where.high} is no range", "low < high, and above 0 with log")
        for value in where.choices if isinstance(where, Choice) else (where.low, where.high):
            compose_config([], base={**common, key: value})


def _open_study(home: Path, config: SearchConfig, common: Mapping[str, object]) -> "optuna.Study":
    """The study in study.db, with what was interrupted asked for again; ConfigError when it is of another search."""
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            "a search needs optuna, which is not installed", "pip install 'streetvision[search]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    asked = sha256_json([config.model_dump(mode="json", include={"space", "seed", "prune"}), _of_trials(common)])
    from sqlalchemy.exc import SQLAlchemyError

    try:
        study = optuna.create_study(
            storage=_storage(home),
            study_name="phase1",
            direction="maximize",
            load_if_exists=True,
            sampler=optuna.samplers.TPESampler(seed=config.seed),
        )
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise ArtifactError(
            f"{str(home / 'study.db')!r} cannot be read as a study: {str(error).splitlines()[0]}",
            "remove it, or give another run_dir=",
        ) from error
    if study.user_attrs.setdefault("asked", asked) != asked:
        raise ConfigError(
            f"{str(home / 'study.db')!r} is of a search with another space or other settings", "give another run_dir="
        )
    study.set_user_attr("asked", asked)
    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.set_user_attr(f"interrupted {trial.number}", True)
        study.enqueue_trial(trial.params)
    return study


def _of_trials(common: Mapping[str, object]) -> str:
    return settings_sha256(compose_config([], base=common))


def _storage(home: Path) -> str:
    from sqlalchemy import URL

    return URL.create("sqlite", database=str((home / "study.db").absolute())).render_as_string()


def _run_trials(
    study: "optuna.Study", config: SearchConfig, common: Mapping[str, object], home: Path, console: Console
) -> None:
    """Ask, run, tell, until the study has its trials."""
    left = config.trials - len(_counted(study))
    jobs = min(config.jobs or default_jobs(), max(1, left))
    running: set[Path] = set()
    console.line("search", f"{config.trials} trials, {config.trials - left} of them done; {jobs} at a time")
    for trial, exit_code in run_in_processes(
        run_trial, _asked(study, config, common, home, left, running), jobs, preload=PRELOADED
    ):
        running.discard(trial.root)
        console.line("", f"trial {trial.number}: {_tell(study, trial, exit_code)}")


def _counted(study: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    """The trials that are over, but for those that were interrupted."""
    from optuna.trial import TrialState

    over = study.get_trials(states=[TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL])
    return [trial for trial in over if f"interrupted {trial.number}" not in study.user_attrs]


def _asked(
    study: "optuna.Study",
    config: SearchConfig,
    common: Mapping[str, object],
    home: Path,
    count: int,
    running: set[Path],
) -> Iterator[Trial]:
    """The next trials, as they are taken; each joins `running`, and the same settings again go beside it."""
    distributions = {key: where.distribution() for key, where in config.space.items()}
    for _ in range(count):
        asked = study.ask(distributions)
        settings = {**common, **asked.params}
        root = home / "trials" / sha256_json([_of_trials(common), asked.params])[:12]
        root = root.with_name(f"{root.name}_{asked.number}") if root in running else root
        running.add(root)
        trial = Trial(asked.number, asked._trial_id, root, _storage(home), config.prune)
        write_text_atomic(trial.settings, safe_dump(settings, sort_keys=False))
        yield trial


def _tell(study: "optuna.Study", trial: Trial, exit_code: int) -> str:
    """Record how a trial ended; returns it in words."""
    from optuna.trial import TrialState

    if exit_code == PRUNED:
        study.tell(trial.number, state=TrialState.PRUNED)
        return "given up, below the median"
    if exit_code:
        study.tell(trial.number, state=TrialState.FAIL)
        return f"failed: {failure_reason(trial.log, exit_code)}"
    value = _objective(read_manifest(ArtifactSchema(trial.root).manifest("phase1")).metrics)
    study.tell(trial.number, value)
    return f"VAL_SELECT MCC {value:.3f}"


def _objective(row: Mapping[str, Any]) -> float:
    """VAL_SELECT's MCC of an epoch, of the better of raw and averaged weights."""
    return max(float(row[name]) for name in ("val_select_mcc", "ema_val_select_mcc") if name in row)


def _write_best(study: "optuna.Study", common: Mapping[str, object], home: Path, console: Console) -> Path:
    done = [trial for trial in _counted(study) if trial.state.name == "COMPLETE"]
    if not done:
        raise StreetVisionError("no trial came through", f"their logs are in {str(home / 'trials')!r}")
    best, path = study.best_trial, home / "best.yaml"
    head = f"# VAL_SELECT MCC {best.value:.3f}, the highest of {len(done)} trials that came through.\n"
    write_text_atomic(path, head + safe_dump({**common, **best.params}, sort_keys=False))
    console.line("best", f"trial {best.number}, VAL_SELECT MCC {best.value:.3f}: {path}")
    return path


def run_trial(trial: Trial, threads: int) -> None:
    """Phase 1 under the trial's settings; to be called in a process of its own, whose output becomes the log."""
    write_output_to(trial.log)
    import torch

    torch.set_num_threads(threads)
    try:
        config = compose_config([f"run_dir={trial.root}"], file=trial.settings)
        launch_training(config, console=_Watched(trial), only=BEFORE_THE_TEST)
    except _BelowMedian:
        sys.exit(PRUNED)
    except StreetVisionError as error:
        print(f"error: {error.message}", flush=True)  # noqa: T201 (the log)
        sys.exit(USER_ERROR)


class _BelowMedian(Exception):  # noqa: N818 (no failure)
    """A trial is not worth going on with."""


class _Watched(Console):
    """A console that hands VAL_SELECT's MCC to the study after each epoch."""

    def __init__(self, trial: Trial) -> None:
        super().__init__()
        import optuna

        pruner = optuna.pruners.MedianPruner(STARTUP, WARMUP_EPOCHS + 1) if trial.prune else optuna.pruners.NopPruner()
        study = optuna.load_study(study_name="phase1", storage=trial.storage, pruner=pruner)
        self._trial, self._best = optuna.trial.Trial(study, trial.identity), float("-inf")

    def epoch(self, row: Mapping[str, float | int]) -> None:
        """Report the best so far; raises where the others were better by now."""
        self._best = max(self._best, _objective(row))
        self._trial.report(self._best, int(row["epoch"]))
        if self._trial.should_prune():
            raise _BelowMedian
