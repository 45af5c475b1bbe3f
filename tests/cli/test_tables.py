"""Tables fit the terminal, and no value is ever cut."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from multilora.cli import show
from multilora.cli.tables import blocks, fitting_tables

WORDS = st.text(st.sampled_from("abcdeé0123456789.%"), min_size=1, max_size=12)
CELLS = st.lists(WORDS, min_size=1, max_size=3).map(" ".join)


def printed(columns, rows, limit, keys):
    """The lines of a table in a terminal of that width."""
    tables = fitting_tables(columns, rows, limit, keys)
    if tables is None:
        return blocks(columns, rows)
    console = Console(width=limit, file=None)
    with console.capture() as capture:
        for table in tables:
            console.print(table)
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= limit
    return lines


@settings(max_examples=200, deadline=None)
@given(data=st.data(), limit=st.integers(20, 200), keys=st.integers(1, 2))
def test_no_value_is_cut(data, limit, keys):
    count = data.draw(st.integers(keys + 1, 9))
    columns = data.draw(st.lists(CELLS, min_size=count, max_size=count))
    rows = data.draw(st.lists(st.lists(CELLS, min_size=count, max_size=count), min_size=1, max_size=4))
    lines = printed(columns, rows, limit, keys)
    for cell in (cell for row in rows for cell in row):
        assert any(cell in line for line in lines), cell
    words = {word for line in lines for word in re.split(r"[\s│┃]+", line)}
    for column in columns[1:]:
        assert set(column.split()) <= words


COLUMNS = ["task", "metric", "n", "before", "after"]
ROWS = [["tickets", "exact_match", "200", "0.0 (0.0 to 1.9)", "71.5 (64.9 to 77.3)"], ["", "loss", "", "4.1", "0.2"]]


def test_forms():
    def form(limit, keys=2):
        return fitting_tables(COLUMNS, ROWS, limit, keys)

    assert len(form(80)) == 1
    assert len(form(64)) == 1
    assert [[str(column.header) for column in table.columns] for table in form(60)] == [
        ["task", "metric", "n", "before"],
        ["task", "metric", "after"],
    ]
    assert form(30) is None
    assert blocks(COLUMNS, ROWS) == [
        "tickets",
        "  metric  exact_match",
        "  n       200",
        "  before  0.0 (0.0 to 1.9)",
        "  after   71.5 (64.9 to 77.3)",
        "  metric  loss",
        "  before  4.1",
        "  after   0.2",
    ]


def test_piped_tables_have_one_line_per_row(capsys):
    show.table("title", ["task", *(f"long name of column {i}" for i in range(40))], [["a"] + ["x" * 30] * 40] * 2)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.count("x" * 30) == 40 for line in lines) == 2


@pytest.mark.parametrize("text", ["\x1b[2Jone", "a\rb", "\x07"])
def test_control_characters_reach_files_but_not_terminals(text, monkeypatch):
    assert show.printable(text) == text
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert not set("\x1b\r\x07") & set(show.printable(text))
