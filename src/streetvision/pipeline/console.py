"""Terminal output of a run: one line per phase and progress bars on standard output, warnings on standard error."""

import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from threading import Timer
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
    """Prints to standard output, and warnings to standard error.

    Progress bars appear on a terminal only; a redirected log and a notebook hold whole lines.

    Args:
        silent: Print nothing; warnings go to Python's `warnings`.
    """

    def __init__(self, *, silent: bool = False) -> None:
        is_worker = os.environ.get("RANK", "0") != "0"  # of several processes, only rank 0 prints
        self._silent = silent and not is_worker
        # In a notebook, rich would show each line as HTML of its own.
        terminal = False if RichConsole().is_jupyter else None
        self._rich, self._errors = (
            RichConsole(
                file=stream,
                highlight=False,
                soft_wrap=True,
                quiet=silent or is_worker,
                force_terminal=terminal,
                force_jupyter=False,
            )
            for stream in (sys.stdout, sys.stderr)
        )
        self._bars: Progress | None = None
        self._printed_settings: set[str] = set()

    def line(self, label: str, text: str, *, seconds: float | None = None) -> None:
        """Print a label and a fact, with the duration if it is given."""
        duration = "" if seconds is None else f"  [dim]{seconds:.0f} s[/dim]"
        self._rich.print(f"[bold]{label:<{LABEL_WIDTH - 1}}[/bold] {escape(text)}{duration}")

    def text(self, text: str = "") -> None:
        """Print a line as it is."""
        self._rich.print(escape(text))

    def warn(self, message: str) -> None:
        """Print a warning in one line, with the action to take."""
        if self._silent:
            warnings.warn(message, stacklevel=2)
            return
        self._rich.file.flush()  # in a log of both streams, the lines keep their order
        if self._bars is not None:  # a bar on standard output would share the line
            self._bars.stop()
        self._errors.print(f"[yellow]{'warning':<{LABEL_WIDTH}}[/yellow]{escape(message)}")
        if self._bars is not None:
            self._bars.start()

    def next_command(self, *arguments: str | Path) -> None:
        """Print the command to run next, quoted so that it can be pasted into a shell."""
        self.line("next", shlex.join(map(str, arguments)))

    def auto_setting(self, setting: str, reason: str) -> None:
        """Print an automatic setting as KEY=VALUE with its reason, once for all phases."""
        if setting not in self._printed_settings:
            self.line("auto", f"{setting}: {reason}")
        self._printed_settings.add(setting)

    def epoch(self, row: Mapping[str, float | int]) -> None:
        """Print nothing: the progress bar and metrics.csv show the epochs."""

    def track(self, items: Iterable[Item], *, total: int, label: str, note: Note | None = None) -> Iterator[Item]:
        """Yield `items`. Long loops show a bar on a terminal, and a line every 30 s in a log.

        A loop within another one shows no bar.
        """
        show = self._bar if self._rich.is_terminal and not self._rich.quiet else self._log
        return show(items, total, label, note or str)

    def _bar(self, items: Iterable[Item], total: int, label: str, note: Note) -> Iterator[Item]:
        if self._bars is not None:
            yield from items
            return
        columns = (MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
        with Progress(
            TextColumn("{task.description:<14}"), BarColumn(), *columns, console=self._rich, transient=True
        ) as self._bars:
            task = self._bars.add_task(label, total=total, visible=False, note="")
            # A timer, because the first item may take long.
            timer = Timer(BAR_AFTER_SECONDS, self._bars.update, [task], {"visible": True})
            timer.daemon = True
            timer.start()
            try:
                for item in items:
                    yield item
                    self._bars.update(task, advance=1, note=note())
            finally:
                timer.cancel()
                self._bars = None

    def _log(self, items: Iterable[Item], total: int, label: str, note: Note) -> Iterator[Item]:
        started = last_line = time.perf_counter()
        for done, item in enumerate(items, start=1):
            yield item
            now = time.perf_counter()
            if now - last_line > LINE_EVERY_SECONDS and done < total:
                last_line, seconds_left = now, (now - started) / done * (total - done)
                suffix = f", {note()}" if note() else ""
                self.line("", f"{label} {done} of {total}, about {seconds_left:.0f} s left{suffix}")
