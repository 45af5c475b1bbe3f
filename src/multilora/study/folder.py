"""The folder of a study, and what is known about its cells.

study.yaml       the study, resolved                cells/<id>/              a run, and beside its files:
results/         tables, see `study.tables`         cells/<id>/cell.json     what was measured
claims/          see `claim`, `counted_attempt`     cells/<id>/failed.json   why it failed
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from multilora.errors import RunDirectoryError
from multilora.files import write_json, write_text
from multilora.runs.lock import LockHeldError, RunLock
from multilora.study.cells import CELLS, Cell
from multilora.study.load import Study

RESULT_FILE, FAILURE_FILE = "cell.json", "failed.json"


@dataclass
class CellResult:
    """What is known about a cell.

    training: steps, seconds, parameters, peak memory and a hash of the plan; empty for the base
    measures: name of a measure -> {"key": what it depends on besides the training, and "value", or "missing": why
        there is none}
    seconds: wall time of training and measuring, over all attempts that got as far as a measure
    """

    label: str
    seconds: float = 0.0
    training: dict[str, Any] = field(default_factory=dict)
    measures: dict[str, dict[str, Any]] = field(default_factory=dict)

    def value(self, measure: str) -> Any:
        """The value of a measure; None if it is missing."""
        return self.measures.get(measure, {}).get("value")


def result_of(cell: Cell) -> CellResult | None:
    """Read what was measured; None if nothing was.

    Raises:
        RunDirectoryError: the file is damaged.
    """
    values = read_values(cell.path / RESULT_FILE)
    if values is None:
        return None
    try:
        return CellResult(**values)
    except TypeError as error:
        raise _damaged(cell.path / RESULT_FILE, error) from None


def write_result(cell: Cell, result: CellResult) -> None:
    """Write what was measured so far."""
    cell.path.mkdir(parents=True, exist_ok=True)
    write_json(cell.path / RESULT_FILE, asdict(result))


def failure_of(cell: Cell) -> str | None:
    """The error of a failed cell; None if it has not failed."""
    values = read_values(cell.path / FAILURE_FILE)
    return None if values is None else str(values.get("error"))


def write_failure(cell: Cell, error: Exception) -> None:
    """Record that a cell failed, and why."""
    cell.path.mkdir(parents=True, exist_ok=True)
    values = {
        "label": cell.label,
        "error": str(error),
        "type": type(error).__name__,
        "at": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    write_json(cell.path / FAILURE_FILE, values)


def forget_failure(cell: Cell) -> None:
    """Let a failed cell be tried again."""
    (cell.path / FAILURE_FILE).unlink(missing_ok=True)


def claim(study_path: Path, cell: Cell) -> RunLock:
    """The right to work on a cell, for a `with` block; the system ends it if the process dies.

    Raises:
        LockHeldError: on entering; another process works on the cell.
    """
    return RunLock(claim_folder(study_path, cell))


def claim_folder(study_path: Path, cell: Cell) -> Path:
    """The folder of a cell's lock; it is made here, so that it is not removed while another process opens the lock."""
    folder = study_path / "claims" / cell.id
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def exclusive(study_path: Path, name: str) -> Iterator[None]:
    """Wait until no other process writes the files called `name`, for the block."""
    folder = study_path / "claims" / name
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            with RunLock(folder):
                yield
                return
        except LockHeldError:
            time.sleep(0.1)


def write_study(study: Study) -> Path:
    """Write the resolved study into its folder, which is made; returns the file."""
    file = study.path / "study.yaml"
    with exclusive(study.path, "study"):
        write_text(file, study.dump_yaml())
    return file


def is_claimed(study_path: Path, cell: Cell) -> bool:
    """Whether a process works on a cell."""
    if not (study_path / "claims" / cell.id).is_dir():
        return False
    try:
        with claim(study_path, cell):
            return False
    except LockHeldError:
        return True


def cells_on_disk(study_path: Path) -> list[str]:
    """The ids of all cells in the folder, also those of an earlier version of the study file."""
    folder = study_path / CELLS
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def read_values(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None if there is no such file.

    Raises:
        RunDirectoryError: the file is damaged.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None
    if not isinstance(values, dict):
        raise _damaged(path, TypeError(f"holds {type(values).__name__}, expected an object"))
    return values


def _damaged(path: Path, error: Exception) -> RunDirectoryError:
    return RunDirectoryError(
        f"{path}: cannot be read ({error}); remove {path.parent}, then run the study again to repeat this cell"
    )
