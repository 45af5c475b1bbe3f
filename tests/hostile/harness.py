"""Run the command line on one bad input, and check how it is refused.

A table module exports `ROWS`: each row has a name, a function that damages the input of a `Case`, the text that the
message must contain, and the exit code: 2 for wrong input, 1 for a failure while running.
"""

from __future__ import annotations

import hashlib
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from multilora.cli import main

SECONDS = 20


class Case:
    """The input of a row.

    recipe: the recipe, which may be changed in place
    folder: where its data are
    arguments: of the command line; by default `train` with the recipe
    """

    def __init__(self, recipe: dict[str, Any], folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        self.recipe_file = folder / "recipe.yaml"
        self.arguments: list[str] = ["train", str(self.recipe_file)]
        self.run = folder / "run"

    def data(self, task: int) -> Path:
        return Path(self.recipe["tasks"][task]["path"])

    def set(self, key: str, value: Any) -> None:
        """Set `tasks.0.weight` and the like; the sections on the way are created."""
        *parents, last = key.split(".")
        node: Any = self.recipe
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        node[int(last) if isinstance(node, list) else last] = value


class Row(NamedTuple):
    name: str
    damage: Callable[[Case], None]
    message: str
    code: int = 2


class TooSlow(BaseException):
    """Not an `Exception`, so that nothing catches it on the way."""


@contextmanager
def time_limit(seconds: float = SECONDS) -> Iterator[None]:
    """Interrupt the block after a time, even while it waits for a pipe."""

    def interrupt(number: int, frame: object) -> None:
        raise TooSlow(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_cli(monkeypatch: Any, capsys: Any, arguments: list[str]) -> tuple[int, str]:
    """Run the command line in this process; returns (exit code, stderr)."""
    monkeypatch.setattr(sys, "argv", ["multilora", *arguments])
    code: Any = 0
    capsys.readouterr()
    try:
        with time_limit():
            main()
    except SystemExit as system_exit:
        code = system_exit.code or 0
    return code, capsys.readouterr().err


def contents(folder: Path) -> dict[str, str]:
    """Path -> hash of every file in a folder, and a word for everything else."""

    def entry(path: Path) -> str:
        if path.is_symlink():
            return "link"
        if path.is_file():
            return hashlib.sha256(path.read_bytes()).hexdigest()
        return "folder" if path.is_dir() else "special"

    return {str(path): entry(path) for path in sorted(folder.rglob("*"))}


def check(row: Row, case: Case, monkeypatch: Any, capsys: Any) -> None:
    """Damage the input, run the command and check its exit code, its message and that nothing has changed on disk."""
    row.damage(case)
    if not case.recipe_file.exists() and not case.recipe_file.is_symlink():
        case.recipe_file.write_text(yaml.safe_dump(case.recipe, sort_keys=False, allow_unicode=True))
    before = contents(case.folder)
    code, err = run_cli(monkeypatch, capsys, case.arguments)
    assert "Traceback" not in err, err
    assert row.message in err, err
    assert code == row.code, err
    after = contents(case.folder)
    if row.code == 2:
        assert after == before
    assert not [path for path in after if path.endswith(".partial")]


def ids(rows: list[Row]) -> list[str]:
    """Names of rows for pytest, which must differ."""
    names = [row.name for row in rows]
    repeated = {name for name in names if names.count(name) > 1}
    assert not repeated, repeated
    return names
