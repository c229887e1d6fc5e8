"""What the command line requests of an experiment."""

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from streetvision.contracts.errors import ConfigError

Table = TypeVar("Table")


@dataclass(frozen=True)
class ExperimentRequest(Generic[Table]):
    """A table and how to run it."""

    table: Table
    name: str
    """Name of the table, or its file."""
    out: Path
    """Folder of the runs and of the results."""
    overrides: tuple[str, ...] = ()
    """Settings of every arm or system, which win over its own; data.root= replaces the data sets of the table."""
    jobs: int | None = None
    """Processes at a time; None: one per core, on a GPU one."""
    page: Path | None = None
    """A Markdown page whose copy of the table is updated; a picture is written next to it."""

    def refuse(self, prefix: str, hint: str) -> None:
        """Raise ConfigError if the command sets a setting with this prefix, which the table replaces."""
        for key in (override.partition("=")[0] for override in self.overrides):
            if key.startswith(prefix):
                raise ConfigError(f"{key} has no effect on this table", hint)

    @property
    def page_mark(self) -> str:
        """The comment that marks the table in `page`."""
        return f"ablate {Path(self.name).stem}"

    @property
    def data_root(self) -> str | None:
        """The data.root of the overrides."""
        return dict(override.partition("=")[::2] for override in self.overrides).get("data.root")
