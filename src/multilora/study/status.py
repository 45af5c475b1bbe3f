"""How far a study is: the state of every cell, and the remaining time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from multilora.study.cells import Cell, StudyCells
from multilora.study.folder import cells_on_disk, failure_of, is_claimed
from multilora.study.measures import finished_result
from multilora.study.search import all_cells, open_methods

State = Literal["finished", "failed", "running", "broken off", "waiting"]


@dataclass(frozen=True)
class CellStatus:
    """The state of a cell; `broken off` has begun, and no process works on it.

    seconds: wall time of a finished cell
    error: of a failed cell
    """

    cell: Cell
    state: State
    seconds: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class StudyStatus:
    """The state of a study.

    cells: the cells that are known now
    not_chosen: methods whose trials are not finished, so that their final runs are not known
    total: number of cells, including those that are not known yet
    remaining_seconds: for what is not finished, by the mean time of finished cells of the method (else of all) and the
        number of processes at work now; None before the first is finished
    other_cells: ids of cells in the folder that are not part of the study, such as those of an earlier version
    """

    cells: list[CellStatus]
    not_chosen: list[str]
    total: int
    remaining_seconds: float | None
    other_cells: list[str]

    def count(self, state: State) -> int:
        """The number of cells in a state."""
        return sum(item.state == state for item in self.cells)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-compatible values."""
        return {
            "cells": [
                {
                    "id": item.cell.id,
                    "stage": item.cell.stage,
                    "method": item.cell.method,
                    "setting": item.cell.setting,
                    "seed": item.cell.seed,
                    "state": item.state,
                    "seconds": item.seconds,
                    "error": item.error,
                }
                for item in self.cells
            ],
            "not_chosen": self.not_chosen,
            "total": self.total,
            "remaining_seconds": self.remaining_seconds,
            "other_cells": self.other_cells,
        }


def study_status(cells: StudyCells) -> StudyStatus:
    """Look at every cell of a study."""
    known = [_status(cells, cell) for cell in all_cells(cells)]
    not_chosen = open_methods(cells)
    ids = {item.cell.id for item in known}
    return StudyStatus(
        known,
        not_chosen,
        len(known) + len(not_chosen) * len(cells.study.seeds),
        _remaining_seconds(cells, known, not_chosen),
        [name for name in cells_on_disk(cells.study.path) if name not in ids],
    )


def _status(cells: StudyCells, cell: Cell) -> CellStatus:
    error = failure_of(cell)
    if error is not None:
        return CellStatus(cell, "failed", error=error)
    result = finished_result(cells.study, cell)
    if result is not None:
        return CellStatus(cell, "finished", seconds=result.seconds)
    if is_claimed(cells.study.path, cell):
        return CellStatus(cell, "running")
    return CellStatus(cell, "broken off" if cell.path.is_dir() else "waiting")


def _remaining_seconds(cells: StudyCells, known: list[CellStatus], not_chosen: list[str]) -> float | None:
    times: dict[str, list[float]] = {}
    for item in known:
        if item.seconds is not None and item.cell.stage != "base":
            times.setdefault(item.cell.method, []).append(item.seconds)
    every = [seconds for values in times.values() for seconds in values]
    if not every:
        return None
    mean = {method: sum(values) / len(values) for method, values in times.items()}
    rest = sum(mean.get(method, sum(every) / len(every)) for method in _unfinished(cells, known, not_chosen))
    return rest / max(1, sum(item.state == "running" for item in known))


def _unfinished(cells: StudyCells, known: list[CellStatus], not_chosen: list[str]) -> Iterator[str]:
    """Yield the method of every cell that is not finished, known or not."""
    yield from (item.cell.method for item in known if item.state not in ("finished", "failed"))
    for method in not_chosen:
        yield from [method] * len(cells.study.seeds)
