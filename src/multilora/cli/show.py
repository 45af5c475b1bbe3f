"""Tables and JSON on stdout."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from multilora.evaluation.task_score import TaskScore
from multilora.files import to_json


def show_json(value: Any) -> None:
    """Print plain values as JSON."""
    print(to_json(value))


def console() -> Console:
    """Stdout; wide enough for a table when it is not a terminal."""
    return Console() if sys.stdout.isatty() else Console(width=160)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column is text, the others are numbers."""
    out = console()
    out.print(title, soft_wrap=True, highlight=False)
    made = Table()
    for number, column in enumerate(columns):
        made.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows:
        made.add_row(*row)
    out.print(made)


def percent(score: TaskScore) -> str:
    """A score as `71.5 ±2.0`, or a dash where a task has none."""
    if score.value is None or score.stderr is None:
        return "–"
    return f"{100 * score.value:.1f} ±{100 * score.stderr:.1f}"
