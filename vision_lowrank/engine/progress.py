"""Progress for people: live bars on a terminal, one line every N steps elsewhere, on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

Advance = Callable[[str], None]


def say(line: str) -> None:
    """Print one line of progress, where there are no bars."""
    print(line, file=sys.stderr, flush=True)


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f} it/s", style="progress.data.speed")


class Display:
    """Bars of one engine, silent where `enabled` is False. `console` is where they are drawn; default stderr."""

    def __init__(self, *, enabled: bool, console: Console | None = None) -> None:
        self._enabled = enabled
        self._console = console or Console(stderr=True)
        self._bars: Progress | None = None

    def say(self, line: str) -> None:
        """Print one line above the bars."""
        if self._enabled:
            self._console.print(line, highlight=False, markup=False)

    @contextmanager
    def track(self, name: str, total: int, *, done: int = 0, every: int = 1) -> Iterator[Advance]:
        """Show a bar of `total` steps, `done` of them before; calling what it yields with a note advances it by one.

        Without a terminal a line is printed every `every` steps and at the last.
        """
        if not self._enabled:
            yield lambda note: None
        elif self._console.is_terminal:
            with self._bar(name, total, done) as advance:
                yield advance
        else:
            yield self._lines(name, total, done, every)

    @contextmanager
    def _bar(self, name: str, total: int, done: int) -> Iterator[Advance]:
        outermost = self._bars is None
        if self._bars is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _RateColumn())
            note = TextColumn("{task.fields[note]}", markup=False)
            self._bars = Progress(*columns, note, TimeRemainingColumn(), console=self._console)
            self._bars.start()
        bars = self._bars
        bar = bars.add_task(name, total=total, completed=done, note="")
        try:
            yield lambda note: bars.update(bar, advance=1, note=note)
        finally:
            if outermost:
                bars.stop()
                self._bars = None
            else:
                bars.remove_task(bar)

    def _lines(self, name: str, total: int, done: int, every: int) -> Advance:
        start, count = time.perf_counter(), done

        def advance(note: str) -> None:
            nonlocal count
            count += 1
            if count % every == 0 or count == total:
                rate = (count - done) / max(time.perf_counter() - start, 1e-9)
                left = time.strftime("%H:%M:%S", time.gmtime((total - count) / rate))
                self.say(f"{name} {count}/{total}  {rate:.1f} it/s  {note}  {left} left")

        return advance
