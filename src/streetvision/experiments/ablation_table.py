"""What an ablation compares: pairs of arms, each a list of settings, over data sets and seeds; declared in YAML."""

from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from streetvision.contracts.errors import ConfigError, unknown_name
from streetvision.io.yaml_files import read_declared

Quantity = Literal["mcc", "ece", "reward", "cost"]
"""MCC and calibration error on VAL_TEST, the subnet's reward there, and the time from the images to the bundle."""


class Declared(BaseModel):
    """A part of a table; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Arm(Declared):
    """One side of a pair: an ordinary run, and which of its answers count."""

    settings: tuple[str, ...] = ()
    """KEY=VALUE, as `streetvision train` takes them."""
    judge: Literal["shipped", "argmax", "threshold"] = "shipped"
    """The bundle's policy; the larger logit of a single view; phase 2's threshold on that. All come of one run."""


class Pair(Declared):
    """Two arms that differ in one thing; every difference is that of b less that of a."""

    name: str
    both: tuple[str, ...] = ()
    """Settings of both arms, beneath their own."""
    a: Arm = Arm()
    """Without the thing."""
    b: Arm = Arm()
    """With it."""
    data: tuple[str, ...] | None = None
    """Names of data sets; null takes all."""
    expected: dict[Quantity, str] = {}
    """What the specification says of it, to stand beside what was measured."""

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if self.a == self.b:
            raise ConfigError(f"the arms of pair {self.name!r} are the same", "give one of them other settings")
        return self


class AblationTable(Declared):
    """A table of pairs."""

    title: str
    seeds: tuple[int, ...] = Field(min_length=1)
    """pipeline.seed of each repetition: its own split of the data, its own weights."""
    common: tuple[str, ...] = ()
    """Settings of all arms, beneath their own."""
    data: dict[str, tuple[str, ...]] = Field(min_length=1)
    """Name -> settings: data.root=... of a labelled set, or scenes.*=... of scenes that are drawn once."""
    pairs: tuple[Pair, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        names = [pair.name for pair in self.pairs]
        for what, values in (("pair", names), ("seed", self.seeds)):
            if doubled := [value for value, count in Counter(values).items() if count > 1]:
                raise ConfigError(f"{what} {doubled[0]!r} stands twice in the table", "name each once")
        for pair in self.pairs:
            for name in pair.data or ():
                if name not in self.data:
                    raise unknown_name(f"data set of pair {pair.name!r}", name, self.data)
        return self

    @property
    def comparisons(self) -> list[tuple[Pair, str]]:
        """Every pair with the name of every data set that it is met on."""
        return [(pair, name) for pair in self.pairs for name in self.data if pair.data is None or name in pair.data]

    def only(self, names: tuple[str, ...]) -> Self:
        """The table with these pairs alone; raises ConfigError for a name that is none of its pairs."""
        known = {pair.name: pair for pair in self.pairs}
        for name in names:
            if name not in known:
                raise unknown_name("pair", name, known)
        return self.model_copy(update={"pairs": tuple(known[name] for name in dict.fromkeys(names))})


def read_table(name: str) -> AblationTable:
    """The packaged table of that name, or the one in a YAML file; raises ConfigError where it is none."""
    known = packaged_tables()
    path = Path(name) if name.endswith((".yaml", ".yml")) else known.get(name)
    if path is None:
        raise unknown_name("ablation table", name, [*known, "or a file NAME.yaml"])
    return read_declared(path, AblationTable, hint="docs/ablations.md shows what a table holds")


def packaged_tables() -> dict[str, Path]:
    """Name -> file of each table that comes with the package."""
    folder = Path(str(resources.files("streetvision"))) / "configs" / "ablation"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}
