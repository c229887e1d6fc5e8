"""What a comparison of systems contains: this product with some settings, and other tools, over data sets."""

import re
from typing import Annotated, Self

from pydantic import Field, model_validator

from streetvision.contracts.errors import ConfigError, unknown_name
from streetvision.contracts.settings import Section, Seed
from streetvision.experiments.peers import PEERS


def folder_name(name: str) -> str:
    """Return the name of the folder of a system or a data set."""
    return re.sub(r"\W+", "_", name)


class System(Section):
    """One system: this product, or another tool."""

    name: str
    settings: tuple[str, ...] = ()
    """KEY=VALUE of this product; they win over those of the table and of the data set."""
    peer: str | None = None
    """Name in PEERS of another tool."""
    data: tuple[str, ...] | None = None
    """Names of data sets; null takes all."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.peer is not None and self.peer not in PEERS:
            raise unknown_name("peer", self.peer, PEERS)
        if self.peer is not None and self.settings:
            raise ConfigError(f"system {self.name!r} has a peer, which has no settings", "remove its settings")
        return self


class SystemsData(Section):
    """A data set, which is divided into outer folds by groups."""

    settings: tuple[str, ...]
    """data.root=... of labeled images, or scenes.*=... of scenes that are drawn once. $NAME is replaced by that
    environment variable; without it the data set is left out."""
    groups: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the groups outside a fold that have labels."""
    epochs: int = Field(default=8, ge=1)
    """Passes over the images by tools that fine-tune."""


class SystemsTable(Section):
    """A comparison of systems by cross-validation: the same images, folds and cores."""

    title: str
    folds: int = Field(default=5, ge=2, le=100)
    """Outer folds."""
    seed: Seed = 0
    """Seed of the folds."""
    common: tuple[str, ...] = ()
    """Settings of all data sets."""
    data: dict[str, SystemsData] = Field(min_length=1)
    systems: tuple[System, ...] = Field(min_length=2)
    """The first one is compared with each of the others."""

    @model_validator(mode="after")
    def _names_are_known_and_unique(self) -> Self:
        names = [system.name for system in self.systems]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"system {repeated[0]!r} occurs twice in the table", "list each once")
        for kind, all_names in (("systems", names), ("data sets", self.data)):
            of_folder: dict[str, str] = {}
            for name in all_names:
                other = of_folder.setdefault(folder_name(name).casefold(), name)  # some file systems ignore case
                if other != name:
                    raise ConfigError(
                        f"{kind} {other!r} and {name!r} of the table would have the same folder",
                        "rename one, so that they differ in letters or digits",
                    )
        for system in self.systems:
            for name in system.data or ():
                if name not in self.data:
                    raise unknown_name(f"data set of system {system.name!r}", name, self.data)
        return self

    def only(self, systems: tuple[str, ...], data: tuple[str, ...]) -> Self:
        """The table with the first system and these alone, and with these data sets; empty: all.

        Raises:
            ConfigError: A name is unknown.
        """
        known = {system.name: system for system in self.systems}
        for name in systems:
            if name not in known:
                raise unknown_name("system", name, known)
        for name in data:
            if name not in self.data:
                raise unknown_name("data set", name, self.data)
        kept = [s for s in self.systems if not systems or s.name in systems or s is self.systems[0]]
        return self.model_copy(
            update={
                "systems": tuple(kept),
                "data": {name: value for name, value in self.data.items() if not data or name in data},
            }
        )
