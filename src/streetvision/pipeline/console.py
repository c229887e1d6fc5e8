"""What a person sees while a run goes on: a line a phase, a bar for what takes longer, warnings with an action."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")
Note = Callable[[], str]

BAR_AFTER_SECONDS = 1.0
LINE_EVERY_SECONDS = 30.0
LABEL_WIDTH = 14


class Console:
    """Prints to standard output; bars are drawn on a terminal only, so a redirected log holds whole lines."""

    def __init__(self) -> None:
        # Of the processes that torchrun started, only the first talks.
        quiet = os.environ.get("RANK", "0") != "0"
        self._rich = RichConsole(file=sys.stdout, highlight=False, soft_wrap=True, quiet=quiet)
        self._chosen: set[str] = set()

    def line(self, label: str, text: str, *, seconds: float | None = None) -> None:
        """One fact: a label, what was done, and how long it took."""
        took = "" if seconds is None else f"  [dim]{seconds:.0f} s[/dim]"
        self._rich.print(f"[bold]{label:<{LABEL_WIDTH - 1}}[/bold] {escape(text)}{took}")

    def text(self, text: str = "") -> None:
        """A line as it is."""
        self._rich.print(escape(text))

    def warn(self, message: str) -> None:
        """One line that names what to do."""
        self._rich.print(f"[yellow]{'warning':<{LABEL_WIDTH}}[/yellow]{escape(message)}")

    def auto_setting(self, setting: str, reason: str) -> None:
        """A choice that was left open, under the key that changes it; said once, however many phases ask."""
        if setting not in self._chosen:
            self.line("chosen", f"{setting}: {reason}")
        self._chosen.add(setting)

    def epoch(self, row: Mapping[str, float | int]) -> None:
        """Nothing: the bar tells it, and metrics.csv."""

    def track(self, items: Iterable[Item], *, total: int, label: str, note: Note | None = None) -> Iterator[Item]:
        """Yield `items`; what takes long shows a bar on a terminal, and a line now and then in a log."""
        show = self._bar if self._rich.is_terminal else self._log
        return show(items, total, label, note or str)

    def _bar(self, items: Iterable[Item], total: int, label: str, note: Note) -> Iterator[Item]:
        told = (MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
        started = time.perf_counter()
        with Progress(
            TextColumn("{task.description:<14}"), BarColumn(), *told, console=self._rich, transient=True
        ) as bars:
            task = bars.add_task(label, total=total, visible=False, note="")
            for item in items:
                yield item
                bars.update(task, advance=1, visible=time.perf_counter() - started > BAR_AFTER_SECONDS, note=note())

    def _log(self, items: Iterable[Item], total: int, label: str, note: Note) -> Iterator[Item]:
        started = told = time.perf_counter()
        for done, item in enumerate(items, start=1):
            yield item
            now = time.perf_counter()
            if now - told > LINE_EVERY_SECONDS and done < total:
                told, left = now, (now - started) / done * (total - done)
                beside = f", {note()}" if note() else ""
                self.line("", f"{label} {done} of {total}, about {left:.0f} s left{beside}")
