"""Notes and progress bars with rate and remaining time, on stderr to keep them apart from results on stdout."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

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
# With this variable set to 1, as by `--quiet`, there are no progress bars.
QUIET = "MULTILORA_QUIET"


class RateColumn(ProgressColumn):
    """Units per second."""

    def render(self, task: Task) -> Text:
        """The rate of `task`, blank until it is known."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f}/s", style="progress.data.speed")


def is_quiet() -> bool:
    """Whether the environment asks for results only."""
    return os.environ.get(QUIET) == "1"


def facts(values: Mapping[str, Any]) -> str:
    """Format what a command starts from on one line, `base nano, device cpu`; values that are None are left out."""
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


@contextmanager
def progress(description: str, total: int | None) -> Iterator[Advance]:
    """Show a bar for `total` units; yields `advance(units=1, note=None)`, where `note` is shown after the bar.

    Only the main process shows the bar, unless the environment is quiet.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
    )
    hidden = is_quiet() or not is_main_process()
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=4, disable=hidden) as bar:
        task = bar.add_task(description, total=total, note="")

        def advance(units: int = 1, note: str | None = None) -> None:
            bar.advance(task, units)
            if note is not None:
                bar.update(task, note=note)

        yield advance


@contextmanager
def no_transformers_bar() -> Iterator[None]:
    """Hide the bars that transformers shows while it loads or saves a model, and restore the setting afterwards."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()
