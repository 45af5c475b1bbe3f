"""Work on the cells of a study until none is left; any number of processes may do so in one folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from multilora.errors import InputError
from multilora.foreign_errors import own_errors
from multilora.runs.lock import LockHeldError
from multilora.study.cells import Cell, StudyCells
from multilora.study.execute import run_cell
from multilora.study.folder import claim, failure_of, forget_failure, write_study
from multilora.study.load import Study
from multilora.study.measures import finished_result
from multilora.study.search import all_cells
from multilora.study.status import StudyStatus, study_status
from multilora.study.tables import write_tables

# Seconds between two looks at cells that other processes work on.
WAIT = 2.0


@own_errors
def run_study(
    study: Study, *, retry_failed: bool = False, report: Callable[[str], None] = lambda line: None
) -> StudyStatus:
    """Run every cell that is neither finished nor failed, wait for those of other processes, and write the tables.

    Args:
        study: from `Study.load`
        retry_failed: try failed cells again
        report: called with a line before every cell, and when one has failed

    Returns:
        the final status

    Raises:
        StoppedError: a signal stopped a training.
        RunError: the disk is full.
    """
    cells = StudyCells(study)
    write_study(study)
    if retry_failed:
        for cell in all_cells(cells):
            forget_failure(cell)
    for cell in _next_cells(cells):
        report(f"{progress_text(study_status(cells))}; {cell.id}: {cell.label}")
        error = run_cell(study, cell)
        if error is not None:
            report(f"{cell.id} failed, the others go on: {error}")
        elif cell.stage in ("final", "single"):
            write_tables(cells)
    write_tables(cells)
    return study_status(cells)


@own_errors
def run_one(study: Study, cell_id: str) -> str | None:
    """Run one cell, for other schedulers; returns its error if it failed.

    Raises:
        InputError: the study has no such cell, or its method is not chosen yet.
        LockHeldError: another process works on it.
    """
    known = {cell.id: cell for cell in all_cells(StudyCells(study))}
    if cell_id not in known:
        raise InputError(
            f"{cell_id}: is not one of the {len(known)} cells that are known now; `multilora study STUDY --list` "
            "prints those that can be run. Final runs are known when the trials of their method are finished, and "
            "single-task runs when the final run of their seed is"
        )
    cell = known[cell_id]
    with claim(study.path, cell):
        if is_open(study, cell):
            return run_cell(study, cell)
    return failure_of(cell)


def progress_text(status: StudyStatus) -> str:
    """How far a study is, in one line."""
    failed = status.count("failed")
    text = f"{status.count('finished')} of {status.total} cells finished{f', {failed} failed' if failed else ''}"
    if status.remaining_seconds is None:
        return text
    return f"{text}, about {duration(status.remaining_seconds)} left"


def duration(seconds: float) -> str:
    """A time for people: seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def is_open(study: Study, cell: Cell) -> bool:
    """Whether a cell is neither finished nor failed."""
    return failure_of(cell) is None and finished_result(study, cell) is None


def open_cells(cells: StudyCells) -> list[Cell]:
    """The known cells that are neither finished nor failed."""
    return [cell for cell in all_cells(cells) if is_open(cells.study, cell)]


def _next_cells(cells: StudyCells) -> Iterator[Cell]:
    """Yield open cells, each claimed while it is used; waits while only other processes have work."""
    while waiting := open_cells(cells):
        for cell in waiting:
            try:
                with claim(cells.study.path, cell):
                    if is_open(cells.study, cell):
                        yield cell
                        break
            except LockHeldError:
                continue
        else:
            time.sleep(WAIT)
