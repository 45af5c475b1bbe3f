"""Print tables and JSON to stdout."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from multilora.evaluation.task_score import TaskScore
from multilora.files import to_json


def show_json(value: Any) -> None:
    """Print a value as JSON."""
    print(to_json(value))


def console() -> Console:
    """Return a console for stdout, wide enough for tables if it is not a terminal."""
    return Console() if sys.stdout.isatty() else Console(width=160)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table with the first column aligned left and the others aligned right."""
    out = console()
    out.print(title, soft_wrap=True, highlight=False, markup=False)
    grid = Table()
    for index, column in enumerate(columns):
        grid.add_column(Text(column), justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        grid.add_row(*map(Text, row))
    out.print(grid)


def percent(score: TaskScore) -> str:
    """Format a score and its 95 % interval as `71.5 (67.4 to 75.3)`, or a dash if the task has none."""
    if score.value is None:
        return "–"
    if score.interval is None:
        return f"{100 * score.value:.1f}"
    low, high = (100 * bound for bound in score.interval)
    return f"{100 * score.value:.1f} ({low:.1f} to {high:.1f})"
