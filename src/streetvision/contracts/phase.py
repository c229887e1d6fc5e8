"""A phase, and the context that it is handed: its settings, its splits, its paths, and no more."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.progress import Progress
from streetvision.contracts.split_contracts import Partition, Row, Split, check_may_open

Settings = TypeVar("Settings", bound=BaseModel)
Metrics = dict[str, float | int | str | None]


@dataclass(frozen=True)
class Outcome:
    """What a phase has to say when it is done."""

    summary: str
    """One line: what was done, how well, how fast."""
    metrics: Metrics = field(default_factory=dict)
    """Figures for the manifest."""
    also_makes: tuple[Path, ...] = ()
    """Files written besides the phase's `makes`, when the settings decide which."""


@dataclass(frozen=True)
class Context:
    """What a running phase may touch."""

    phase: str
    """Id of the phase that runs."""
    schema: ArtifactSchema
    progress: Progress
    configs: Mapping[type[BaseModel], BaseModel]
    """The sections that the phase declared, by type."""
    load_partition: Callable[[], Partition]
    """Reads splits.json; called at the first use."""

    def settings(self, kind: type[Settings]) -> Settings:
        """The section of the configuration that `kind` describes; the phase must have declared it."""
        found = self.configs.get(kind)
        assert isinstance(found, kind), f"{self.phase} reads {kind.__name__} without declaring it"
        return found

    def rows(self, split: Split) -> tuple[Row, ...]:
        """The rows of `split`; raises LeakageError when this phase may not open it."""
        check_may_open(self.phase, split)
        return self._partition.rows(split)

    @property
    def class_names(self) -> tuple[str, str]:
        """Names of class 0 and class 1."""
        return self._partition.index.class_names

    @property
    def data_root(self) -> Path:
        """Folder that relative row paths start from."""
        return self._partition.index.root

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the data set."""
        return self._partition.index.fingerprint

    @cached_property
    def _partition(self) -> Partition:
        return self.load_partition()


@dataclass(frozen=True)
class Phase:
    """One step of a run: what it reads, what it writes, and the function that does it."""

    id: str
    title: str
    """The word beside the id on its line."""
    config: tuple[type[BaseModel], ...]
    """Sections of the configuration that it reads; only these count for its freshness."""
    needs: tuple[str, ...]
    """Artifacts that it reads, as names of ArtifactSchema properties."""
    makes: tuple[str, ...]
    """Artifacts that it writes, as names of ArtifactSchema properties."""
    run: Callable[[Context], Outcome]
    join: Callable[[Context], None] | None = None
    """How the other processes of a distributed run take part, where it trains."""
    may_make: tuple[str, ...] = ()
    """Artifacts that it writes only under some settings, and others read."""
    also_needs: Callable[[Context], tuple[str, ...]] | None = None
    """Artifacts that it reads only under some settings."""
    external: Callable[[Context], str] | None = None
    """Digest of inputs outside the run folder: files of a data root, weights."""
