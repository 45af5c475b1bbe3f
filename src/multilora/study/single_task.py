"""One adapter per task: a method trained on every task alone, on as many examples of it as the mixture has."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from multilora.data.plan import SUMMARY_FILE
from multilora.errors import RunDirectoryError
from multilora.study.cells import Cell, StudyCells
from multilora.study.measures import finished_result


def single_task_cells(cells: StudyCells, finals: Sequence[Cell]) -> Iterator[Cell]:
    """Yield the single-task runs that are known: those of every finished final run, whose plan has the examples.

    Args:
        cells: of the study
        finals: the final runs of the method `single_task`
    """
    for final in finals:
        if finished_result(cells.study, final) is not None:
            for task, examples in _examples(final).items():
                if examples:
                    yield cells.single(final, task, examples)


def _examples(final: Cell) -> dict[str, int]:
    """Task -> examples in the plan of a finished run, counting repetitions."""
    path = final.path / "plan" / SUMMARY_FILE
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        return {entry["name"]: int(entry["examples"]) for entry in summary["tasks"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunDirectoryError(
            f"{path}: cannot be read ({error}); remove {final.path}, then run the study again to repeat this cell"
        ) from None
