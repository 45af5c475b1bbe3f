"""Tables that fit the terminal without losing a value."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from itertools import pairwise

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

Rows = Sequence[Sequence[str]]
_UNLIMITED = Console(width=100_000)


def fitting_tables(
    columns: Sequence[str], rows: Rows, limit: int, keys: int, *, text: bool = False
) -> list[Table] | None:
    """Return a table of at most `limit` characters per line; or several, which share the columns.

    Headers are wrapped, then lines between columns left out, then the columns are split.

    Args:
        columns: headers; columns after the first are aligned right
        rows: cells
        limit: width in characters
        keys: number of first columns that are repeated in every part
        text: wrap the last column, which has sentences

    Returns:
        None if a key and a value do not fit beside each other
    """
    for make in (_full, _with_wrapped_headers, _compact):
        table = make(columns, rows)
        if _width(table) <= limit:
            return [table]
    if text:
        return [_with_wrapped_text(columns, rows, limit)]
    parts: list[list[int]] = []
    for index in range(keys, len(columns)):
        if not parts or not _fits([*parts[-1], index], columns, rows, limit, keys):
            parts.append([])
        parts[-1].append(index)
    for split in (_equal(range(keys, len(columns)), len(parts)), parts):
        if all(_fits(part, columns, rows, limit, keys) for part in split):
            return [_part(part, columns, rows, keys) for part in split]
    return None


def _equal(items: Sequence[int], count: int) -> list[list[int]]:
    """Split items into that many parts, whose sizes differ by at most one."""
    bounds = [-(-len(items) * part // count) for part in range(count + 1)]
    return [list(items[start:end]) for start, end in pairwise(bounds)]


def blocks(columns: Sequence[str], rows: Rows) -> list[str]:
    """Return lines: the first cell of a row, and below it a line with name and value of each other cell.

    A row whose first cell is empty belongs to the row before; empty cells are left out.
    """
    size = max(map(len, columns[1:]), default=0)
    lines = []
    for row in rows:
        if row[0]:
            lines.append(row[0])
        lines += [f"  {name:{size}}  {cell}" for name, cell in zip(columns[1:], row[1:], strict=True) if cell]
    return lines


def _fits(part: Sequence[int], columns: Sequence[str], rows: Rows, limit: int, keys: int) -> bool:
    return _width(_part(part, columns, rows, keys)) <= limit


def _part(part: Sequence[int], columns: Sequence[str], rows: Rows, keys: int) -> Table:
    indices = [*range(keys), *part]
    kept = [row for row in rows if row[0] or any(row[index] for index in part)]
    return _compact([columns[index] for index in indices], [[row[index] for index in indices] for row in kept])


def _full(columns: Sequence[str], rows: Rows) -> Table:
    return _filled(Table(), columns, rows, lambda header, _: header)


def _with_wrapped_headers(columns: Sequence[str], rows: Rows) -> Table:
    return _filled(Table(), columns, rows, _wrapped)


def _compact(columns: Sequence[str], rows: Rows) -> Table:
    return _filled(_compact_frame(), columns, rows, _wrapped)


def _with_wrapped_text(columns: Sequence[str], rows: Rows, limit: int) -> Table:
    table = _compact_frame()
    table.width = limit
    for index, column in enumerate(columns):
        last = index == len(columns) - 1
        table.add_column(Text(column), no_wrap=not last, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _compact_frame() -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))


def _filled(table: Table, columns: Sequence[str], rows: Rows, header: Callable[[str, int], str]) -> Table:
    for index, column in enumerate(columns):
        size = max((len(row[index]) for row in rows), default=0)
        table.add_column(Text(header(column, size)), justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _wrapped(header: str, size: int) -> str:
    """A header on several lines, as wide as the cells or its longest word."""
    longest = max(map(len, header.split(" ")), default=0)
    return "\n".join(textwrap.wrap(header, max(size, longest, 1)))


def _width(table: Table) -> int:
    return Measurement.get(_UNLIMITED, _UNLIMITED.options, table).maximum
