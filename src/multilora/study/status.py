"""How far a study is: the state of every cell, and the remaining time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from multilora.study.cells import Cell, StudyCells
from multilora.study.folder import cells_on_disk, failure_of, is_claimed
from multilora.study.measures import finished_result
from multilora.study.search import all_cells, open_methods, unknown_single_task_runs

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
    unknown_single_task: number of single-task runs that are not known, because the final run is not finished
    total: number of cells, including those that are not known yet
    remaining_seconds: for what is not finished, by the mean time of finished cells of the method (else of all) and the
        number of processes at work now; None before the first is finished
    other_cells: ids of cells in the folder that are not part of the study, such as those of an earlier version
    """

    cells: list[CellStatus]
    not_chosen: list[str]
    unknown_single_task: int
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
                    "trained_on": item.cell.trained_on,
                    "state": item.state,
                    "seconds": item.seconds,
                    "error": item.error,
                }
                for item in self.cells
            ],
            "not_chosen": self.not_chosen,
            "unknown_single_task": self.unknown_single_task,
            "total": self.total,
            "remaining_seconds": self.remaining_seconds,
            "other_cells": self.other_cells,
        }


def study_status(cells: StudyCells) -> StudyStatus:
    """Look at every cell of a study."""
    known = [_status(cells, cell) for cell in all_cells(cells)]
    not_chosen, unknown = open_methods(cells), unknown_single_task_runs(cells)
    ids = {item.cell.id for item in known}
    return StudyStatus(
        known,
        not_chosen,
        unknown,
        len(known) + len(not_chosen) * len(cells.study.seeds) + unknown,
        _remaining_seconds(cells, known, not_chosen, unknown),
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


def _remaining_seconds(
    cells: StudyCells, known: list[CellStatus], not_chosen: list[str], unknown_single_task: int
) -> float | None:
    times: dict[tuple[str, bool], list[float]] = {}
    for item in known:
        if item.seconds is not None and item.cell.stage != "base":
            times.setdefault(_kind(item.cell), []).append(item.seconds)
    mixed = [seconds for (_, is_single), values in times.items() if not is_single for seconds in values]
    if not mixed:
        return None

    def expected(method: str, is_single: bool) -> float:
        values = times.get((method, is_single))
        if values is None and is_single:  # all tasks together are trained on as many examples as the mixture
            return expected(method, False) / len(cells.base.recipe.tasks)
        values = values or mixed
        return sum(values) / len(values)

    rest = [_kind(item.cell) for item in known if item.state not in ("finished", "failed")]
    rest += [(method, False) for method in not_chosen for _ in cells.study.seeds]
    rest += [(str(cells.study.single_task), True)] * unknown_single_task
    return sum(expected(*kind) for kind in rest) / max(1, sum(item.state == "running" for item in known))


def _kind(cell: Cell) -> tuple[str, bool]:
    """Cells that take about as long: the method, and whether it is a single-task run."""
    return cell.method, cell.stage == "single"
