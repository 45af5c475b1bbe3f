"""What is measured of a cell, and what each measure depends on besides the training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from multilora.cache import cache_key
from multilora.evaluation.task_score import TaskScore
from multilora.study.cells import Cell
from multilora.study.folder import CellResult, result_of
from multilora.study.load import Study
from multilora.study.text_loss import text_key

SPECTRUM, FORGETTING, INTRUDERS = "spectrum", "forgetting", "intruders"


def scores_name(split: str) -> str:
    """The name of the measure that scores a split."""
    return f"scores of {split}"


def scores_of(result: CellResult, split: str) -> dict[str, TaskScore]:
    """The scores of a finished cell on a split: task -> score."""
    known = {item.name for item in fields(TaskScore)}  # a later version may have added some
    scores: Mapping[str, Any] = result.value(scores_name(split))
    return {
        task: TaskScore(**{name: value for name, value in score.items() if name in known})
        for task, score in scores.items()
    }


def wanted_measures(study: Study, cell: Cell) -> dict[str, str]:
    """Name of a measure -> key: what it depends on besides the training.

    A cell is finished when it has all of these with these keys; otherwise only what is missing is measured.
    """
    section = cell.scored_by.evaluation
    wanted = {
        scores_name(section.split): cache_key(section.model_dump(exclude={"batch_tokens"}, exclude_defaults=True))
    }
    if FORGETTING in study.measure:
        wanted[FORGETTING] = text_key(study.forgetting)
    if SPECTRUM in study.measure and cell.stage != "base":
        wanted[SPECTRUM] = ""
    if INTRUDERS in study.measure and cell.stage != "base":
        wanted[INTRUDERS] = ""
    return wanted


def missing_measures(study: Study, cell: Cell, result: CellResult) -> list[str]:
    """The measures that a cell does not have yet."""
    return [
        name
        for name, key in wanted_measures(study, cell).items()
        if name not in result.measures or result.measures[name]["key"] != key
    ]


def finished_result(study: Study, cell: Cell) -> CellResult | None:
    """The result of a cell that has been trained and has all its measures, else None."""
    result = result_of(cell)
    if result is None or (cell.stage != "base" and not result.training):
        return None
    return None if missing_measures(study, cell, result) else result
