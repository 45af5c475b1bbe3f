"""Numbers, intervals and tables as text: CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Rows = list[list[str]]


def csv_text(rows: Iterator[dict[str, Any]]) -> str:
    """Rows with the same keys as CSV."""
    listed = list(rows)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(listed[0]) if listed else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(listed)
    return stream.getvalue()


def markdown_table(columns: Sequence[str], rows: Rows) -> str:
    """A Markdown table; pipes in cells are escaped."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def latex_row(cells: Sequence[str]) -> str:
    """A row of a LaTeX table; special characters are escaped."""
    special = {"\\": r"\textbackslash{}", "%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "$": r"\$", "±": r"$\pm$"}
    special |= {"{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--"}
    return " & ".join("".join(special.get(char, char) for char in cell) for cell in cells) + r" \\"


def mean_of(value: Mapping[str, float | None] | None) -> float | None:
    """The mean of a mean and standard deviation."""
    return None if value is None else value["mean"]


def spread_text(value: Mapping[str, float | None] | None, text: Callable[[float | None], str]) -> str:
    """Mean and standard deviation, each made by `text`; a dash without a mean."""
    if value is None:
        return "–"
    return text(value["mean"]) if value["sd"] is None else f"{text(value['mean'])} ±{text(value['sd'])}"


def percent(value: float | None) -> str:
    """A share in percent; a dash if it is not known."""
    return "–" if value is None or value != value else f"{100 * value:.1f}"


def number_text(value: float | None, digits: int) -> str:
    """A number with separators; a dash if it is not known."""
    return "–" if value is None or value != value else f"{value:,.{digits}f}"


def interval_text(item: Mapping[str, Any]) -> str:
    """A difference with its interval, in percentage points or nats."""
    factor, digits = (100, 1) if item["quantity"] == "score" else (1, 3)
    low, high, middle = (factor * item[key] for key in ("low", "high", "difference"))
    if low == float("-inf"):
        return f"{middle:+.{digits}f} (one seed: interval unknown)"
    return f"{middle:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f}, over {item['over']})"


def correlation_text(item: Mapping[str, float | None]) -> str:
    """A correlation with its interval."""
    value, low, high = (item[key] for key in ("value", "low", "high"))
    if value is None:
        return "not defined"
    interval = "interval unknown" if low is None else f"{low:+.2f} to {high:+.2f}"
    return f"{value:+.2f} ({interval})"
