"""What an ablation compares: pairs of settings over data sets and seeds, declared in YAML."""

from collections import Counter
from typing import Literal, Self

from pydantic import Field, model_validator

from streetvision.contracts.errors import ConfigError, unknown_name
from streetvision.contracts.settings import Section

Quantity = Literal["mcc", "ece", "reward", "cost"]
"""MCC and ECE on VAL_TEST, the subnet reward there, and the time from the images to the bundle."""


class Arm(Section):
    """One side of a pair: an ordinary run, and which of its policies is compared."""

    settings: tuple[str, ...] = ()
    """KEY=VALUE, as for `streetvision train`."""
    policy: Literal["shipped", "argmax", "threshold"] = "shipped"
    """shipped: the bundle's; argmax: the larger logit of the single view; threshold: phase 2's on the single view."""


class Pair(Section):
    """Two arms that differ in one thing; every difference is the variant minus the baseline."""

    name: str
    shared: tuple[str, ...] = ()
    """Settings of both arms; the arm's own settings win over them."""
    baseline: Arm = Arm()
    """Without the thing."""
    variant: Arm = Arm()
    """With it."""
    data: tuple[str, ...] | None = None
    """Names of data sets; null takes all."""
    expected: dict[Quantity, str] = Field(default_factory=dict)
    """The gain that the specification expects; printed next to the measured one."""

    @model_validator(mode="after")
    def _arms_differ(self) -> Self:
        if self.baseline == self.variant:
            raise ConfigError(f"baseline and variant of pair {self.name!r} are the same", "change the settings of one")
        return self


class AblationTable(Section):
    """A table of pairs."""

    title: str
    seeds: tuple[int, ...] = Field(min_length=1)
    """pipeline.seed of each repetition: another split of the data, other initial weights."""
    common: tuple[str, ...] = ()
    """Settings of all arms; those of a pair or an arm win over them."""
    data: dict[str, tuple[str, ...]] = Field(min_length=1)
    """Name -> settings: data.root=... of a labeled set, or scenes.*=... of scenes that are drawn once. $NAME is the
    value of that environment variable; without it the data set is left out."""
    pairs: tuple[Pair, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_known_and_unique(self) -> Self:
        for kind, values in (("pair", [pair.name for pair in self.pairs]), ("seed", self.seeds)):
            if repeated := [value for value, count in Counter(values).items() if count > 1]:
                raise ConfigError(f"{kind} {repeated[0]!r} occurs twice in the table", "list each once")
        for pair in self.pairs:
            for name in pair.data or ():
                if name not in self.data:
                    raise unknown_name(f"data set of pair {pair.name!r}", name, self.data)
        return self

    @property
    def comparisons(self) -> list[tuple[Pair, str]]:
        """Every pair with the name of every data set that it is compared on."""
        return [(pair, name) for pair in self.pairs for name in self.data if pair.data is None or name in pair.data]

    def only(self, pairs: tuple[str, ...] = (), data: tuple[str, ...] = (), seeds: tuple[int, ...] = ()) -> Self:
        """The table with these pairs, data sets and seeds alone; empty: all.

        Raises:
            ConfigError: A name is unknown, or no pair is compared on the data sets.
        """
        known = {pair.name: pair for pair in self.pairs}
        for name in pairs:
            if name not in known:
                raise unknown_name("pair", name, known)
        for name in data:
            if name not in self.data:
                raise unknown_name("data set", name, self.data)
        sets = {name: settings for name, settings in self.data.items() if not data or name in data}
        kept = [known[name] for name in dict.fromkeys(pairs)] if pairs else list(self.pairs)
        within = [
            pair if pair.data is None else pair.model_copy(update={"data": tuple(n for n in pair.data if n in sets)})
            for pair in kept
        ]
        if not (within := [pair for pair in within if pair.data is None or pair.data]):
            raise ConfigError(f"no pair is compared on {', '.join(sets)}", "select other pairs or data sets")
        return self.model_copy(update={"pairs": tuple(within), "data": sets, "seeds": seeds or self.seeds})
