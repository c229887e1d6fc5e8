"""Hyper-parameter search by VAL_SELECT MCC: trials of phase 1 in processes, kept in an Optuna study on disk."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field
from yaml import safe_dump

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ArtifactError, ConfigError, StreetVisionError
from streetvision.contracts.settings import Section, Seed
from streetvision.io.atomic import read_bytes, sha256_json, write_bytes_atomic, write_text_atomic
from streetvision.io.lock import run_lock
from streetvision.io.manifests import code_sha256, read_manifest
from streetvision.io.process_pool import failure_reason, run_in_processes, write_output_to
from streetvision.io.yaml_files import read_yaml_model
from streetvision.models.device import job_count
from streetvision.pipeline.artifacts import data_digest, digest_of_weights
from streetvision.pipeline.config import compose_config, settings_sha256
from streetvision.pipeline.console import Console
from streetvision.pipeline.engine import Engine
from streetvision.pipeline.phases import PHASES, PRELOADED
from streetvision.pipeline.run import launch_training, resolve_run_config
from streetvision.pipeline.settings import RunConfig

if TYPE_CHECKING:
    import optuna

SEARCHABLE = ("training", "model", "augmentation", "phase4a")
"""Sections that phase 1 and the adaptation before it use. Trials on different splits could not be compared."""
TRIAL_PHASES = frozenset({"data", "phase4a_explora", "phase1"})
"""Phases that a trial runs, if they are requested."""
NOT_OF_TRIALS = ("run_dir", "scenes.", "data.")
"""Settings of the command that trials do not get; they get the settings of the data of the run."""
PRUNED, USER_ERROR = 4, 2
"""Exit codes of a trial's process."""
STARTUP, WARMUP_EPOCHS = 5, 1
"""Trials, and epochs of each, before a trial can be pruned."""

Value = bool | int | float | str | None


class Range(Section):
    """Numbers between two ends, both included; integers when both ends are integers."""

    low: int | float
    high: int | float
    log: bool = False
    """Sample on a logarithmic scale."""

    def distribution(self) -> "optuna.distributions.BaseDistribution":
        """The range as Optuna's distribution."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if isinstance(self.low, int) and isinstance(self.high, int):
            return IntDistribution(self.low, self.high, log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)


class Categorical(Section):
    """One of several values."""

    choices: tuple[Value, ...] = Field(min_length=2)

    def distribution(self) -> "optuna.distributions.BaseDistribution":
        """The choices as Optuna's distribution."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.choices)


class SearchConfig(Section):
    """The content of `--search FILE`."""

    trials: int = Field(ge=1)
    """Over all commands on this run folder, failed ones included."""
    space: dict[str, Range | Categorical] = Field(min_length=1)
    """Setting -> its range or choices."""
    jobs: int | None = Field(default=None, ge=1)
    """Trials at a time; null: one per core, on a GPU one. With one, the same seed gives the same trials."""
    prune: bool = True
    """Stop a trial whose best VAL_SELECT MCC is below the median of the other trials at that epoch."""
    seed: Seed = 0
    """Seed of the sampler."""


@dataclass(frozen=True)
class Trial:
    """A trial, as its process receives it."""

    number: int
    storage_id: int
    """Its id in the storage."""
    root: Path
    """Its run folder, named after its settings so that an interrupted trial resumes."""
    storage: str
    prune: bool

    @property
    def settings(self) -> Path:
        """The YAML file for `streetvision train --config`."""
        return self.root.with_name(f"{self.root.name}.yaml")

    @property
    def log(self) -> Path:
        """Output of the trial."""
        return self.root.with_name(f"{self.root.name}.log")


def launch_search(search: Path, run: RunConfig, *, console: Console) -> Path:
    """Run the missing trials; returns best.yaml, a file for `streetvision train --config`.

    Trials see neither VAL_CALIB nor VAL_TEST.

    Raises:
        ConfigError: the space names no setting of phase 1, or an invalid value, or the run has an adapted backbone that
            the trials would not use; nothing has run.
        StreetVisionError: no trial finished.
    """
    config = read_search(search)
    _refuse_ignored_adaptation(run)
    run_config = resolve_run_config(run, console=console)
    home = ArtifactSchema(run_config.root).search_best_yaml.parent
    # The data may be that of an earlier command in this run folder.
    data = run_config.data.model_dump(mode="json", exclude_defaults=True) | {"seed": run_config.data.seed}
    common = {key: value for key, value in run.overrides.items() if not key.startswith(NOT_OF_TRIALS)} | {
        **{f"data.{name}": value for name, value in data.items()},
        "loader.max_megapixels": run_config.loader.max_megapixels,
        "pipeline.phases": [*dict.fromkeys((*run_config.pipeline.phases, "phase1"))],
    }
    _check_space(config, common)
    home.mkdir(parents=True, exist_ok=True)
    with run_lock(home / ".lock"):
        study = _open_study(home, config, _search_digest(config, run_config, common, console))
        _run_trials(study, config, common, home, console)
        return _write_best(study, common, home, console)


def read_search(path: Path) -> SearchConfig:
    """The search that a YAML file declares; raises ConfigError when it is invalid."""
    return read_yaml_model(
        path,
        SearchConfig,
        hint="examples/search.yaml is such a file: trials, and space with a range or choices of each setting",
    )


def _refuse_ignored_adaptation(run: RunConfig) -> None:
    """A run that starts from its own adapted backbone; trials have other folders and would start from the original."""
    schema, model = ArtifactSchema(run.root), run.model
    chosen = model.init_from_explora is False or model.explora_checkpoint_path is not None
    if schema.manifest("phase4a_explora").is_file() and not run.adapts and not chosen:
        raise ConfigError(
            f"{str(schema.output_dir)!r} has an adapted backbone, and the trials would start from the original one",
            f"set model.explora_checkpoint_path={schema.explora_checkpoint} to start from the adapted one, or "
            "model.init_from_explora=false",
        )


def _check_space(config: SearchConfig, common: Mapping[str, object]) -> None:
    for key, space in config.space.items():
        if key.partition(".")[0] not in SEARCHABLE:
            raise ConfigError(
                f"{key} cannot be searched: trials are compared on VAL_SELECT after phase 1",
                f"search settings of {', '.join(SEARCHABLE)}",
            )
        if isinstance(space, Range) and not (space.low < space.high and (space.low > 0 or not space.log)):
            raise ConfigError(f"{key}: {space.low} to {space.high} is not a range", "low < high, and above 0 with log")
        for value in space.choices if isinstance(space, Categorical) else (space.low, space.high):
            compose_config([], base={**common, key: value})


def _search_digest(config: SearchConfig, run: RunConfig, common: Mapping[str, object], console: Console) -> str:
    """Digest of what the trials of a search share: code, space, settings, weights and data."""
    sampling = config.model_dump(mode="json", include={"space", "seed", "prune"})
    context = Engine(ArtifactSchema(run.root), PHASES, run.sections(), console).context(PHASES["data"])
    weights = digest_of_weights(run.model)
    return sha256_json([code_sha256(), sampling, _trial_digest(common), weights, data_digest(context)])


def _open_study(home: Path, config: SearchConfig, digest: str) -> "optuna.Study":
    """The study in study.db, its interrupted trials enqueued again; ConfigError when it is of another search."""
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            "a search needs optuna, which is not installed", "pip install 'streetvision[search]'"
        ) from error
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = home / "study.db"
    try:
        study = optuna.create_study(
            storage=_storage(home),
            study_name="phase1",
            direction="maximize",
            load_if_exists=True,
        )
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise ArtifactError(
            f"{str(file)!r} cannot be read as a study: {str(error).splitlines()[0]}",
            "remove it, or give another run_dir=",
        ) from error
    if study.user_attrs.setdefault("search", digest) != digest:
        raise ConfigError(
            f"{str(file)!r} is of a search with another space or other settings, or of other data, weights or code",
            "give another run_dir=",
        )
    study.set_user_attr("search", digest)
    # With the same seed, a resumed search would sample its first trials again.
    study.sampler = optuna.samplers.TPESampler(seed=config.seed + len(study.trials))
    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.set_user_attr(f"interrupted {trial.number}", True)
        study.enqueue_trial(trial.params)
    return study


def _trial_digest(common: Mapping[str, object]) -> str:
    return settings_sha256(compose_config([], base=common))


def _storage(home: Path) -> str:
    from sqlalchemy import URL

    return URL.create("sqlite", database=str((home / "study.db").absolute())).render_as_string()


def _run_trials(
    study: "optuna.Study", config: SearchConfig, common: Mapping[str, object], home: Path, console: Console
) -> None:
    """Run trials until the study has as many as requested."""
    from optuna.trial import TrialState

    left = config.trials - len(_finished(study))
    jobs = min(job_count(config.jobs), max(1, left))
    running: set[Path] = set()
    console.line("search", f"{config.trials} trials, {config.trials - left} of them done; {jobs} at a time")
    trials = _next_trials(study, config, common, home, left, running)
    for trial, exit_code in run_in_processes(run_trial, trials, jobs, preload=PRELOADED):
        running.discard(trial.root)
        if exit_code == PRUNED:
            study.tell(trial.number, state=TrialState.PRUNED)
            outcome = "stopped, below the median"
        elif exit_code:
            study.tell(trial.number, state=TrialState.FAIL)
            outcome = f"failed: {failure_reason(trial.log, exit_code)}"
        else:
            metrics = read_manifest(ArtifactSchema(trial.root).manifest("phase1")).metrics
            value = float(metrics["shipped_val_select_mcc"] or 0)  # after interpolation and its gate
            study.tell(trial.number, value)
            outcome = f"VAL_SELECT MCC {value:.3f}"
        console.line("", f"trial {trial.number}: {outcome}")


def _finished(study: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    """The trials that are over, without those that were interrupted."""
    from optuna.trial import TrialState

    over = study.get_trials(states=[TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL])
    return [trial for trial in over if f"interrupted {trial.number}" not in study.user_attrs]


def _next_trials(
    study: "optuna.Study",
    config: SearchConfig,
    common: Mapping[str, object],
    home: Path,
    count: int,
    running: set[Path],
) -> Iterator[Trial]:
    """The next trials, sampled when they are taken; each joins `running`."""
    distributions = {key: space.distribution() for key, space in config.space.items()}
    for _ in range(count):
        sampled = study.ask(distributions)
        root = home / "trials" / sha256_json([_trial_digest(common), sampled.params])[:12]
        if root in running:  # the same settings twice at a time need two folders
            root = root.with_name(f"{root.name}_{sampled.number}")
        running.add(root)
        _copy_splits(ArtifactSchema(home.parent), ArtifactSchema(root))
        trial = Trial(sampled.number, sampled._trial_id, root, _storage(home), config.prune)
        write_text_atomic(trial.settings, safe_dump({**common, **sampled.params}, sort_keys=False))
        yield trial


def _copy_splits(run: ArtifactSchema, trial: ArtifactSchema) -> None:
    """Give a new trial the splits of the run, so that no image of the run's VAL_TEST is in another split of a trial."""
    if run.splits_json.is_file() and not trial.splits_json.is_file():
        trial.ensure_output_dir()
        write_bytes_atomic(trial.splits_json, read_bytes(run.splits_json))


def _objective(row: Mapping[str, Any]) -> float:
    """VAL_SELECT MCC of an epoch, the better of raw and averaged weights."""
    return max(float(row[name]) for name in ("val_select_mcc", "ema_val_select_mcc") if name in row)


def _write_best(study: "optuna.Study", common: Mapping[str, object], home: Path, console: Console) -> Path:
    completed = [trial for trial in _finished(study) if trial.state.name == "COMPLETE"]
    if not completed:
        raise StreetVisionError("no trial finished", f"see the logs in {str(home / 'trials')!r}")
    best, path = study.best_trial, home / ArtifactSchema.search_best_yaml.name
    header = f"# VAL_SELECT MCC {best.value:.3f}, the highest of {len(completed)} trials that finished.\n"
    write_text_atomic(path, header + safe_dump({**common, **best.params}, sort_keys=False))
    console.line("best", f"trial {best.number}, VAL_SELECT MCC {best.value:.3f}: {path}")
    return path


def run_trial(trial: Trial, threads: int) -> None:
    """Phase 1 with the trial's settings; call it in a process of its own, whose output becomes the log."""
    write_output_to(trial.log)
    import torch

    torch.set_num_threads(threads)
    try:
        config = compose_config([f"run_dir={trial.root}"], file=trial.settings)
        launch_training(config, console=_TrialConsole(trial), only=TRIAL_PHASES)
    except _BelowMedian:
        sys.exit(PRUNED)
    except StreetVisionError as error:
        print(f"error: {error.message}", flush=True)  # noqa: T201 (the log)
        sys.exit(USER_ERROR)


class _BelowMedian(Exception):  # noqa: N818 (not an error)
    """The trial is pruned."""


class _TrialConsole(Console):
    """A console that reports the VAL_SELECT MCC of each epoch to the study."""

    def __init__(self, trial: Trial) -> None:
        super().__init__()
        import optuna

        pruner = optuna.pruners.MedianPruner(STARTUP, WARMUP_EPOCHS + 1) if trial.prune else optuna.pruners.NopPruner()
        study = optuna.load_study(study_name="phase1", storage=trial.storage, pruner=pruner)
        self._trial, self._best = optuna.trial.Trial(study, trial.storage_id), float("-inf")

    def epoch(self, row: Mapping[str, float | int]) -> None:
        """Report the best MCC so far; raises _BelowMedian when the trial is to be pruned."""
        self._best = max(self._best, _objective(row))
        self._trial.report(self._best, int(row["epoch"]))
        if self._trial.should_prune():
            raise _BelowMedian
