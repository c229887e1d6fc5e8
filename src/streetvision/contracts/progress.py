"""Progress reporting, independent of the terminal."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Progress(Protocol):
    """Shows the progress of loops and prints messages."""

    def track(
        self, items: Iterable[Item], *, total: int, label: str, note: Callable[[], str] | None = None
    ) -> Iterator[Item]:
        """Yield `items` and show how many of `total` are done, followed by the current text of `note`."""
        ...

    def line(self, label: str, text: str, *, seconds: float | None = None) -> None:
        """Print a label, a text and a duration on one line."""
        ...

    def text(self, text: str = "") -> None:
        """Print one line unchanged."""
        ...

    def warn(self, message: str) -> None:
        """Print a warning that names an action."""
        ...

    def auto_setting(self, setting: str, reason: str) -> None:
        """Print the value that an `auto` setting resolved to (KEY=VALUE) and the reason."""
        ...

    def epoch(self, row: Mapping[str, float | int]) -> None:
        """Receive the metrics of an epoch of phase 1; may raise to end the training."""
        ...


class Silent:
    """A Progress without output."""

    def track(
        self,
        items: Iterable[Item],
        *,
        total: int,  # noqa: ARG002
        label: str,  # noqa: ARG002
        note: Callable[[], str] | None = None,  # noqa: ARG002
    ) -> Iterator[Item]:
        """Yield `items`."""
        yield from items

    def line(self, label: str, text: str, *, seconds: float | None = None) -> None:
        """Print nothing."""

    def text(self, text: str = "") -> None:
        """Print nothing."""

    def warn(self, message: str) -> None:
        """Print nothing."""

    def auto_setting(self, setting: str, reason: str) -> None:
        """Print nothing."""

    def epoch(self, row: Mapping[str, float | int]) -> None:
        """Ignore the metrics."""
