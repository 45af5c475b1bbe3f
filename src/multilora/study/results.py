"""Collect the results of a study as JSON-compatible values, from which all tables are made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from multilora.study.cells import Cell, StudyCells
from multilora.study.differences import FinalRun, compare_with_reference, wins_ties_losses
from multilora.study.folder import CellResult, failure_of
from multilora.study.load import Study
from multilora.study.measures import finished_result, scores_of
from multilora.study.relation import forgetting_by_intruders
from multilora.study.search import Choice, choose
from multilora.study.single_task import single_task_cells
from multilora.study.status import study_status
from multilora.study.summary import run_values, summary_of
from multilora.study.transfer import single_task_results


def study_results(cells: StudyCells) -> dict[str, Any]:
    """Everything that is known about the cells of the current study file; cells of earlier versions are not used."""
    study = cells.study
    choices = {method: choose(cells, method) for method in study.methods}
    finals = {
        method: list(_finished(study, cells.finals(method, choice.setting)))
        for method, choice in choices.items()
        if choice is not None and choice.setting is not None
    }
    singles = _singles(cells, choices)
    comparisons = compare_with_reference(finals, str(study.reference))
    base = finished_result(study, cells.base)
    status = study_status(cells)
    tasks = _tasks(base, finals)
    runs = list(_runs(cells, choices, singles))
    return {
        "reference": study.reference,
        "tasks": tasks,
        "base": None if base is None else run_values(base, "eval"),
        "methods": {
            method: {
                **_choice_values(choices[method]),
                **_summary(finals.get(method, [])),
                "wins_ties_losses": wins_ties_losses(comparisons, method),
            }
            for method in study.methods
        },
        "single_task": None
        if study.single_task is None
        else single_task_results(
            study.single_task,
            list(_finished(study, singles)),
            finals,
            None if base is None else scores_of(base, "eval"),
            list(tasks),
        ),
        "forgetting_by_intruders": forgetting_by_intruders(runs),
        "runs": runs,
        "differences": [item.as_dict() for item in comparisons],
        "notes": [*_notes(cells, choices, finals), *_single_task_notes(study, singles)],
        "cells": {state: status.count(state) for state in ("finished", "failed", "running", "broken off", "waiting")},
        "other_cells": status.other_cells,
    }


def _finished(study: Study, cells: Sequence[Cell]) -> Iterator[FinalRun]:
    for cell in cells:
        result = finished_result(study, cell)
        if result is not None:
            yield FinalRun(cell, result)


def _singles(cells: StudyCells, choices: dict[str, Choice | None]) -> list[Cell]:
    """The single-task runs that are known."""
    method = cells.study.single_task
    choice = None if method is None else choices[method]
    if method is None or choice is None or choice.setting is None:
        return []
    return list(single_task_cells(cells, cells.finals(method, choice.setting)))


def _summary(runs: Sequence[FinalRun]) -> dict[str, Any]:
    return summary_of([run.seed for run in runs], [run_values(run.result, "eval") for run in runs])


def _tasks(base: CellResult | None, finals: dict[str, list[FinalRun]]) -> dict[str, str]:
    """Task -> its main metric."""
    runs = [run.result for runs in finals.values() for run in runs]
    known = [*([] if base is None else [base]), *runs]
    return {task: score.metric for task, score in scores_of(known[0], "eval").items()} if known else {}


def _choice_values(choice: Choice | None) -> dict[str, Any]:
    if choice is None:
        return {"setting": None, "trials": [], "at_edge": []}
    return {
        "setting": choice.setting,
        "trials": [{"setting": trial.setting, "compared": trial.values} for trial in choice.trials],
        "at_edge": choice.at_edge,
    }


def _runs(cells: StudyCells, choices: dict[str, Choice | None], singles: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    """Every run of the study: the trials, which are the curves over the grid, the final and the single-task runs."""
    for method in cells.study.methods:
        choice = choices[method]
        final = cells.finals(method, choice.setting) if choice is not None and choice.setting is not None else []
        own = singles if method == cells.study.single_task else ()
        for cell in [*(cell for trial in cells.trials[method] for cell in trial), *final, *own]:
            result = finished_result(cells.study, cell)
            split = "validation" if cell.stage == "trial" else "eval"
            yield {
                "id": cell.id,
                "stage": cell.stage,
                "method": method,
                "setting": cell.setting,
                "seed": cell.seed,
                "trained_on": cell.trained_on,
                "split": split,
                "error": failure_of(cell),
                **({} if result is None else run_values(result, split)),
            }


def _notes(cells: StudyCells, choices: dict[str, Choice | None], finals: dict[str, list[FinalRun]]) -> Iterator[str]:
    """What a reader of the tables must know."""
    study = cells.study
    for method, choice in choices.items():
        if choice is None:
            yield f"{method}: its trials are not finished, so it has no final runs yet"
        elif choice.setting is None:
            yield f"{method}: all of its trials failed, so it has no final runs"
        else:
            missing = [cell.seed for cell in cells.finals(method, choice.setting)]
            missing = [seed for seed in missing if seed not in [run.cell.seed for run in finals[method]]]
            if missing:
                yield f"{method}: the final runs of the seeds {missing} are missing or failed"
            for key in choice.at_edge:
                yield (
                    f"{method}: the chosen {key} {choice.setting[key]} is at the edge of its grid; a better value may "
                    "lie outside"
                )
    for seed in study.seeds:
        plans = {run.result.training["plan"] for runs in finals.values() for run in runs if run.cell.seed == seed}
        if len(plans) > 1:
            yield f"seed {seed}: the methods were trained on {len(plans)} different plans, so they are not paired"
    devices = sorted({run.result.training["device"] for runs in finals.values() for run in runs})
    if len(devices) > 1:
        yield f"the final runs were trained on different devices ({', '.join(devices)}); times are not comparable"


def _single_task_notes(study: Study, singles: Sequence[Cell]) -> Iterator[str]:
    if study.single_task is None:
        return
    for section in study.base_recipe["tasks"]:
        cells = [cell for cell in singles if cell.trained_on == section["name"]]
        finished = [cell.seed for cell in cells if finished_result(study, cell) is not None]
        missing = [seed for seed in study.seeds if seed not in finished]
        if missing:
            task = section["name"]
            yield f"{study.single_task}: the runs on {task} alone with the seeds {missing} are missing or failed"
