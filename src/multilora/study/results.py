"""Collect the results of a study as JSON-compatible values, from which all tables are made."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from multilora.study.cells import Cell, StudyCells
from multilora.study.differences import FinalRun, compare_with_reference, wins_ties_losses
from multilora.study.folder import CellResult, failure_of
from multilora.study.load import Study
from multilora.study.means import mean_loss, mean_value
from multilora.study.measures import FORGETTING, SPECTRUM, finished_result, scores_of
from multilora.study.search import Choice, choose
from multilora.study.status import study_status


def study_results(cells: StudyCells) -> dict[str, Any]:
    """Everything that is known about the cells of the current study file; cells of earlier versions are not used."""
    study = cells.study
    choices = {method: choose(cells, method) for method in study.methods}
    finals = {
        method: list(_finished(study, cells.finals(method, choice.setting)))
        for method, choice in choices.items()
        if choice is not None and choice.setting is not None
    }
    comparisons = compare_with_reference(finals, str(study.reference))
    base = finished_result(study, cells.base)
    status = study_status(cells)
    return {
        "reference": study.reference,
        "tasks": _tasks(base, finals),
        "base": None if base is None else _run_values(base, "eval"),
        "methods": {
            method: {
                **_choice_values(choices[method]),
                **_summary(finals.get(method, [])),
                "wins_ties_losses": wins_ties_losses(comparisons, method),
            }
            for method in study.methods
        },
        "runs": list(_runs(cells, choices, finals)),
        "differences": [item.as_dict() for item in comparisons],
        "notes": list(_notes(cells, choices, finals)),
        "cells": {state: status.count(state) for state in ("finished", "failed", "running", "broken off", "waiting")},
        "other_cells": status.other_cells,
    }


def _finished(study: Study, cells: Sequence[Cell]) -> Iterator[FinalRun]:
    for cell in cells:
        result = finished_result(study, cell)
        if result is not None:
            yield FinalRun(cell, result)


def _tasks(base: CellResult | None, finals: dict[str, list[FinalRun]]) -> dict[str, str]:
    """Task -> its main metric."""
    runs = [run.result for runs in finals.values() for run in runs]
    known = [*([] if base is None else [base]), *runs]
    return {task: score.metric for task, score in scores_of(known[0], "eval").items()} if known else {}


def _run_values(result: CellResult, split: str) -> dict[str, Any]:
    """The measurements of one run."""
    scores = scores_of(result, split)
    spectrum = result.value(SPECTRUM)
    return {
        "scores": {task: asdict(score) for task, score in scores.items()},
        "macro_score": mean_value(scores),
        "macro_loss": mean_loss(scores),
        "forgetting": (result.value(FORGETTING) or {}).get("loss"),
        "spectrum": None if spectrum is None else spectrum["mean"],
        "spectrum_missing": result.measures.get(SPECTRUM, {}).get("missing"),
        **{key: result.training.get(key) for key in ("trainable_parameters", "seconds", "peak_memory", "steps")},
    }


def _choice_values(choice: Choice | None) -> dict[str, Any]:
    if choice is None:
        return {"setting": None, "trials": [], "at_edge": []}
    return {
        "setting": choice.setting,
        "trials": [{"setting": trial.setting, "compared": trial.values} for trial in choice.trials],
        "at_edge": choice.at_edge,
    }


def _summary(runs: Sequence[FinalRun]) -> dict[str, Any]:
    """Means and standard deviations over the seeds of a method."""
    values = [_run_values(run.result, "eval") for run in runs]
    tasks = list(values[0]["scores"]) if values else []
    spectra = [item["spectrum"] for item in values if item["spectrum"] is not None]
    return {
        "seeds": [run.cell.seed for run in runs],
        "scores": {task: _mean([item["scores"][task]["value"] for item in values]) for task in tasks},
        "losses": {task: _mean([item["scores"][task]["loss"] for item in values]) for task in tasks},
        **{
            key: _mean([item[key] for item in values])
            for key in ("macro_score", "macro_loss", "forgetting", "trainable_parameters", "seconds", "peak_memory")
        },
        "spectrum": {key: _mean([item[key] for item in spectra]) for key in (spectra[0] if spectra else ())},
    }


def _mean(values: Sequence[float | None]) -> dict[str, float | None] | None:
    """Mean and standard deviation over seeds; None if a value is missing."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return {"mean": statistics.fmean(known), "sd": statistics.stdev(known) if len(known) > 1 else None}


def _runs(
    cells: StudyCells, choices: dict[str, Choice | None], finals: dict[str, list[FinalRun]]
) -> Iterator[dict[str, Any]]:
    """Every run of the study: the trials, which are the curves over the grid, and the final runs."""
    for method in cells.study.methods:
        choice = choices[method]
        final = cells.finals(method, choice.setting) if choice is not None and choice.setting is not None else []
        for cell in [*(cell for trial in cells.trials[method] for cell in trial), *final]:
            result = finished_result(cells.study, cell)
            split = "validation" if cell.stage == "trial" else "eval"
            yield {
                "id": cell.id,
                "stage": cell.stage,
                "method": method,
                "setting": cell.setting,
                "seed": cell.seed,
                "split": split,
                "error": failure_of(cell),
                **({} if result is None else _run_values(result, split)),
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
