"""How a long computation tells whoever watches where it is, without knowing the terminal."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Progress(Protocol):
    """Shows the advance of a loop and prints the few warnings that name an action."""

    def track(
        self, items: Iterable[Item], *, total: int, label: str, note: Callable[[], str] | None = None
    ) -> Iterator[Item]:
        """Yield `items`, showing how many of `total` are done, and beside it what `note` says then."""
        ...

    def line(self, label: str, text: str, *, seconds: float | None = None) -> None:
        """Print one fact: a label, what was done, and how long it took."""
        ...

    def text(self, text: str = "") -> None:
        """Print a line as it is."""
        ...

    def warn(self, message: str) -> None:
        """Print one line that names what to do."""
        ...

    def chosen(self, setting: str, reason: str) -> None:
        """Print a choice that was left open: KEY=VALUE, and why it is that."""
        ...

    def epoch(self, row: Mapping[str, float | int]) -> None:
        """Take the figures of an epoch of phase 1; may raise to end the training."""
        ...


class Silent:
    """A Progress that shows nothing."""

    def track(
        self,
        items: Iterable[Item],
        *,
        total: int,  # noqa: ARG002
        label: str,  # noqa: ARG002
        note: Callable[[], str] | None = None,  # noqa: ARG002
    ) -> Iterator[Item]:
        """Yield `items` as they are."""
        yield from items

    def line(self, label: str, text: str, *, seconds: float | None = None) -> None:
        """Print nothing."""

    def text(self, text: str = "") -> None:
        """Print nothing."""

    def warn(self, message: str) -> None:
        """Drop the message."""

    def chosen(self, setting: str, reason: str) -> None:
        """Drop the choice."""

    def epoch(self, row: Mapping[str, float | int]) -> None:
        """Drop the row."""
