"""Progress bars with rate and remaining time, on stderr to keep them apart from results on stdout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from multilora.processes import is_main_process

# Called with the number of finished units, and optionally `note=`.
Advance = Callable[..., None]


class RateColumn(ProgressColumn):
    """Units per second."""

    def render(self, task: Task) -> Text:
        """The rate of `task`, blank until it is known."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f}/s", style="progress.data.speed")


@contextmanager
def progress(description: str, total: int | None) -> Iterator[Advance]:
    """Show a bar for `total` units; yields `advance(units=1, note=None)`, where `note` is shown after the bar.

    Only the main process shows the bar.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
    )
    hidden = not is_main_process()
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=4, disable=hidden) as bar:
        task = bar.add_task(description, total=total, note="")

        def advance(units: int = 1, note: str | None = None) -> None:
            bar.advance(task, units)
            if note is not None:
                bar.update(task, note=note)

        yield advance
