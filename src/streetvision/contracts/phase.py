"""A phase of a run, and the context that limits what it may access."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.progress import Progress
from streetvision.contracts.split_contracts import NO_FOLD, Partition, Row, Split, check_may_open

Settings = TypeVar("Settings", bound=BaseModel)
Metrics = dict[str, float | int | str | None]


@dataclass(frozen=True)
class Outcome:
    """The result of a phase."""

    summary: str
    """One line for the terminal: what was done, the main metrics."""
    metrics: Metrics = field(default_factory=dict)
    """Metrics for the manifest."""
    extra_outputs: tuple[Path, ...] = ()
    """Files written in addition to the phase's `outputs`, under some settings."""


@dataclass(frozen=True)
class Context:
    """The settings, splits and paths that a running phase may access."""

    phase: str
    """Id of the running phase."""
    schema: ArtifactSchema
    progress: Progress
    configs: Mapping[type[BaseModel], BaseModel]
    """The configuration sections that the phase declares, by type."""
    load_partition: Callable[[], Partition]
    """Reads splits.json; called at first use, once."""
    fold: int | None = None
    """The fold of cross_fit that the phase works in; None: none."""

    def settings(self, kind: type[Settings]) -> Settings:
        """Return the configuration section of type `kind`, which the phase must declare."""
        section = self.configs.get(kind)
        assert isinstance(section, kind), f"{self.phase} reads {kind.__name__} without declaring it"
        return section

    def rows(self, split: Split) -> tuple[Row, ...]:
        """Return the rows of `split`.

        Raises:
            LeakageError: this phase may not open the split.
        """
        self.check_may_open(split)
        return self._partition.rows(split)

    def check_may_open(self, split: Split) -> None:
        """Raise LeakageError unless this phase may open `split`."""
        check_may_open(self.phase, split)
        if self.n_folds > 0:
            check_may_open(self.phase, split, outside_folds=True)

    @property
    def n_folds(self) -> int:
        """Number of folds of cross_fit that the phase can enter; 0 under split, and in a fold."""
        return self._partition.n_folds

    @property
    def fold_of_rows(self) -> tuple[int, ...]:
        """Fold of each row of TRAIN, under cross_fit and outside the folds."""
        return tuple(fold for fold in self._partition.folds or () if fold != NO_FOLD)

    @property
    def fold_of_evaluated_rows(self) -> tuple[int, ...]:
        """The same without the rows that may be in TRAIN only: these have no out-of-fold scores."""
        rows = zip(self._partition.index.rows, self._partition.folds or (), strict=self.n_folds > 0)
        return tuple(fold for row, fold in rows if fold != NO_FOLD and not row.train_only)

    def folds(self, *, select: bool = True) -> Iterator["Context"]:
        """Yield the context of each fold of cross_fit, which has the splits of `Partition.in_fold`."""
        partition = self._partition
        for fold in range(partition.n_folds):
            yield replace(
                self,
                fold=fold,
                schema=self.schema.in_fold(fold),
                load_partition=partial(partition.in_fold, fold, select=select),
            )

    @property
    def class_names(self) -> tuple[str, str]:
        """Names of class 0 and class 1."""
        return self._partition.index.class_names

    @property
    def data_root(self) -> Path:
        """Folder that the row paths are relative to."""
        return self._partition.index.root

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the data set."""
        return self._partition.index.fingerprint

    @property
    def split_sha256(self) -> str:
        """Digest of the split of the data set."""
        return self._partition.split_sha256

    @cached_property
    def _partition(self) -> Partition:
        return self.load_partition()


@dataclass(frozen=True)
class Phase:
    """One step of a run: its inputs, its outputs and its function. Artifacts are names of ArtifactSchema paths."""

    id: str
    title: str
    """The word next to the id on the terminal."""
    config: tuple[type[BaseModel], ...]
    """Configuration sections that it reads; a change in one of them makes its outputs stale."""
    inputs: tuple[str, ...]
    """Artifacts that it reads."""
    outputs: tuple[str, ...]
    """Artifacts that it writes."""
    run: Callable[[Context], Outcome]
    run_worker: Callable[[Context], None] | None = None
    """The part of ranks above 0 in a distributed run; None: the phase does not train."""
    optional_outputs: tuple[str, ...] = ()
    """Artifacts that it writes under some settings only, and that other phases read."""
    optional_inputs: Callable[[Context], tuple[str, ...]] | None = None
    """Artifacts that it reads under some settings only."""
    external_digest: Callable[[Context], str] | None = None
    """Digest of inputs outside the run folder: files of a data root, pretrained weights."""
