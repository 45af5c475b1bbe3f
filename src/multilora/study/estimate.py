"""Estimate the time and memory of every cell without training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from multilora.foreign_errors import own_errors
from multilora.runs.preview import plan_preview
from multilora.study.cells import Cell, StudyCells
from multilora.study.load import Study
from multilora.study.measures import finished_result
from multilora.study.search import all_cells, chosen_cells, open_methods, unknown_single_task_runs

# Keys that do not change the cost of a step.
_WITHOUT_COST = {"learning_rate", "seed", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta2"}


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of a cell.

    id: None for runs that are not known yet: final runs whose setting is not chosen, and all single-task runs at once
    seconds: of training and, if a cell of this method is finished, of evaluation
    peak_bytes: peak memory
    source: `finished cells` of the same method, or `two steps`, which were run
    """

    label: str
    id: str | None
    seconds: float
    peak_bytes: int
    source: str

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-compatible values."""
        return asdict(self)


@own_errors
def estimate(study: Study) -> list[Estimate]:
    """Estimate the cost of every cell, by finished cells of its method, else by two steps of it.

    Raises:
        InputError: data or model of a cell cannot be used.
    """
    cells = StudyCells(study)
    known = [cell for cell in all_cells(cells) if cell.stage != "base"]
    costs: dict[str, tuple[float, int, str]] = {}
    result = []
    for cell in known:
        result.append(Estimate(cell.label, cell.id, *_cost(study, cell, known, costs)))
    for method in open_methods(cells):
        first = cells.trials[method][0][0]
        for seed in study.seeds:
            label = f"{method} with the chosen setting seed {seed} (final)"
            result.append(Estimate(label, None, *_cost(study, first, known, costs)))
    return [*result, *_single_task(cells, known, costs)]


def _single_task(cells: StudyCells, known: list[Cell], costs: dict[str, tuple[float, int, str]]) -> Iterator[Estimate]:
    """Yield the cost of the single-task runs that are not known yet; those of a seed train as much as a final run."""
    study, count = cells.study, unknown_single_task_runs(cells)
    if study.single_task is not None and count:
        finals = chosen_cells(cells, study.single_task)
        like = finals[0] if finals else cells.trials[study.single_task][0][0]
        seconds, peak, source = _cost(study, like, known, costs)
        label = f"{study.single_task} on every task alone ({count} runs)"
        yield Estimate(label, None, seconds * count / len(like.recipe.tasks), peak, source)


def _cost(
    study: Study, cell: Cell, known: list[Cell], costs: dict[str, tuple[float, int, str]]
) -> tuple[float, int, str]:
    key = str(_costly(cell))
    if key not in costs:
        same = [other for other in known if other.method == cell.method and str(_costly(other)) == key]
        finished = [result for other in same if (result := finished_result(study, other)) is not None]
        if finished:
            seconds = sum(result.seconds for result in finished) / len(finished)
            peak = max(int(result.training.get("peak_memory") or 0) for result in finished)
            costs[key] = (seconds, peak, "finished cells")
        else:
            preview = plan_preview(cell.recipe)
            cost = preview["cost"]
            costs[key] = (cost["seconds"] * preview["steps"], cost["peak_bytes"], "two steps")
    return costs[key]


def _costly(cell: Cell) -> dict[str, Any]:
    """The recipe without what does not change the cost of a step."""
    values = cell.recipe.values()
    values["training"] = {key: value for key, value in values["training"].items() if key not in _WITHOUT_COST}
    for key in ("output_dir", "optimizer", "evaluation"):
        values.pop(key, None)
    values["mixture"].pop("seed", None)
    return values
