"""Choose the setting of a method by its trials on the validation split."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from multilora.errors import InputError
from multilora.evaluation.task_score import TaskScore
from multilora.study.cells import Cell, StudyCells
from multilora.study.folder import failure_of
from multilora.study.load import Setting, Study
from multilora.study.means import mean_loss, mean_value
from multilora.study.measures import finished_result, scores_of
from multilora.study.single_task import single_task_cells


@dataclass(frozen=True)
class Trial:
    """One setting of a method, and its results per seed.

    values: the compared metric per seed; infinite if the run failed. Lower is better
    """

    setting: Setting
    cells: list[Cell]
    values: list[float]

    @property
    def mean(self) -> float:
        """The mean over seeds; infinite if a run failed."""
        return sum(self.values) / len(self.values)


@dataclass(frozen=True)
class Choice:
    """The chosen setting of a method.

    setting: None if every trial failed
    trials: what it was chosen from; empty without a search
    at_edge: keys of the grid whose chosen value is its smallest or largest, so that a better one may lie outside
    """

    setting: Setting | None
    trials: list[Trial]
    at_edge: list[str]


def choose(cells: StudyCells, method: str) -> Choice | None:
    """Choose the setting of a method; None while trials are missing.

    Ties go to the earlier setting. A failed trial, such as one that diverged, is worse than any other.
    """
    study = cells.study
    if study.search is None:
        return Choice({}, [], [])
    trials = []
    for trial in cells.trials[method]:
        values = [_compared(study, cell) for cell in trial]
        if None in values:
            return None
        trials.append(Trial(trial[0].setting or {}, trial, [value for value in values if value is not None]))
    best = min(trials, key=lambda trial: trial.mean)
    if math.isinf(best.mean):
        return Choice(None, trials, [])
    return Choice(best.setting, trials, list(_at_edge(study.methods[method].grid, best.setting)))


def _compared(study: Study, cell: Cell) -> float | None:
    """What is compared, lower is better; infinite for a failed cell, None for one that is not finished."""
    result = finished_result(study, cell)
    if result is None:
        return math.inf if failure_of(cell) is not None else None
    return compared(study, scores_of(result, "validation"))


def compared(study: Study, scores: dict[str, TaskScore]) -> float:
    """The value by which trials are compared; lower is better.

    Raises:
        InputError: `search.metric` is `score`, and no task has a metric.
    """
    if study.search is None or study.search.metric == "loss":
        return mean_loss(scores)
    value = mean_value(scores)
    if math.isnan(value):
        raise InputError("search.metric: is `score`, but no task has a metric; set it to `loss`")
    return -value


def _at_edge(grid: dict[str, list[object]], setting: Setting) -> Iterator[str]:
    for key, values in grid.items():
        numbers = [_number(value) for value in values]
        known = [number for number in numbers if number is not None]
        if len(known) == len(values) > 1 and _number(setting[key]) in (min(known), max(known)):
            yield key


def _number(value: object) -> float | None:
    try:
        return None if isinstance(value, bool) else float(str(value))
    except ValueError:
        return None


def all_cells(cells: StudyCells) -> list[Cell]:
    """The cells that are known now: the base, all trials, the final runs of methods whose trials are finished, and the
    single-task runs of finished final runs.

    Trials of different methods alternate, so that all methods make progress. Every id appears once.
    """
    found = [cells.base]
    for index in range(max(map(len, cells.trials.values()), default=0)):
        found += [cell for trials in cells.trials.values() for cell in trials[index]]
    found += [cell for method in cells.study.methods for cell in chosen_cells(cells, method)]
    if cells.study.single_task is not None:
        found += single_task_cells(cells, chosen_cells(cells, cells.study.single_task))
    unique: dict[str, Cell] = {}
    for cell in found:
        unique.setdefault(cell.id, cell)
    return list(unique.values())


def chosen_cells(cells: StudyCells, method: str) -> list[Cell]:
    """The final runs of a method; empty while its setting is not chosen."""
    choice = choose(cells, method)
    return [] if choice is None or choice.setting is None else cells.finals(method, choice.setting)


def open_methods(cells: StudyCells) -> list[str]:
    """The methods whose setting is not chosen yet."""
    return [method for method in cells.study.methods if choose(cells, method) is None]


def unknown_single_task_runs(cells: StudyCells) -> int:
    """Count the single-task runs that are not known yet; those of a failed final run will not be, nor counted."""
    study = cells.study
    choice = None if study.single_task is None else choose(cells, study.single_task)
    if study.single_task is None or (choice is not None and choice.setting is None):
        return 0
    finals = chosen_cells(cells, study.single_task)
    known = sum(finished_result(study, final) is not None or failure_of(final) is not None for final in finals)
    return (len(study.seeds) - known) * len(study.base_recipe["tasks"])
