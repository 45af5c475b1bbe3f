"""Print tables, texts and JSON to stdout, and notes to stderr."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from multilora.files import to_json

if TYPE_CHECKING:
    from rich.console import Console

    from multilora.evaluation.task_score import TaskScore

PIPED_WIDTH = 10_000


def show_json(value: Any) -> None:
    """Print a value as JSON."""
    print(to_json(value))


def note(text: str) -> None:
    """Print a line to stderr, unless `--quiet` is given or another process of a launch prints it."""
    logging.getLogger("multilora").info("%s", text)


def console() -> Console:
    """Return a console for stdout; output that is piped is not wrapped."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=PIPED_WIDTH)


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, keys: int = 1, text: bool = False
) -> None:
    """Print a table with the first column aligned left and the others aligned right; no value is ever cut.

    On a terminal that is too narrow, the table is split into several, or printed as a block of lines per row.

    Args:
        title: a line above the table
        columns: headers
        rows: cells
        keys: number of first columns that are repeated if the table is split
        text: the last column has sentences, which may be wrapped
    """
    from multilora.cli.tables import blocks, fitting_tables

    say(title)
    if not rows:
        return
    out = console()
    tables = fitting_tables(columns, rows, out.width, keys, text=text)
    if tables is None:
        print(*blocks(columns, rows), sep="\n")
    for part in tables or ():
        out.print(part)


def say(text: str, *, indent: int = 0) -> None:
    """Print a line; on a terminal, wrapped between words, with `indent` spaces before the further lines."""
    import shutil
    import textwrap

    if sys.stdout.isatty():
        text = textwrap.fill(
            text,
            shutil.get_terminal_size().columns,
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    print(text)


def side_by_side(labels: Sequence[str], texts: Sequence[str]) -> None:
    """Print texts in columns on a terminal, and one after the other below their labels if piped."""
    if not sys.stdout.isatty():
        for label, text in zip(labels, texts, strict=True):
            print(f"[{label}]\n{text}")
        return
    from rich.table import Table
    from rich.text import Text

    columns = Table(expand=True)
    for label in labels:
        columns.add_column(Text(label), ratio=1, overflow="fold")
    columns.add_row(*(Text(printable(text)) for text in texts))
    console().print(columns)


def printable(text: str) -> str:
    """Return text for stdout: on a terminal with its control characters escaped, so that it cannot control it."""
    if not sys.stdout.isatty():
        return text
    return escaped(text)


def escaped(text: str) -> str:
    """The text with control characters escaped."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def percent(score: TaskScore) -> str:
    """Format a score and its 95 % interval as `71.5 (67.4 to 75.3)`, or a dash if the task has none."""
    if score.value is None:
        return "–"
    if score.interval is None:
        return f"{100 * score.value:.1f}"
    low, high = (100 * bound for bound in score.interval)
    return f"{100 * score.value:.1f} ({low:.1f} to {high:.1f})"
