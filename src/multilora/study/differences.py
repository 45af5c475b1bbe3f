"""Compare methods on the same seeds and items: per task and on average, in scores, losses and forgetting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from multilora.evaluation.task_score import TaskScore
from multilora.study.cells import Cell
from multilora.study.crossed import Difference, crossed_difference, holm, seed_difference
from multilora.study.folder import CellResult
from multilora.study.items import Items, items_of, loss_differences, task_differences
from multilora.study.means import mean_loss, mean_value
from multilora.study.measures import FORGETTING, scores_of

MACRO = "macro"


class Scored(Protocol):
    """What is compared: the results of one seed."""

    @property
    def seed(self) -> int:
        """Runs with the same seed are compared."""

    @property
    def scores(self) -> dict[str, TaskScore]:
        """Task -> score on the evaluation split."""

    @property
    def items(self) -> Items:
        """The samples of these scores."""

    @property
    def forgetting(self) -> float | None:
        """Nats per token of other text, if it was measured."""


@dataclass(frozen=True)
class FinalRun:
    """A finished final or single-task run."""

    cell: Cell
    result: CellResult

    @property
    def seed(self) -> int:
        """Of the cell."""
        return self.cell.seed

    @property
    def scores(self) -> dict[str, TaskScore]:
        """The scores on the evaluation split."""
        return scores_of(self.result, "eval")

    @property
    def items(self) -> Items:
        """The samples on the evaluation split, read from the cell's folder."""
        return items_of(self.cell)

    @property
    def forgetting(self) -> float | None:
        """Nats per token of other text, if it was measured."""
        value: float | None = (self.result.value(FORGETTING) or {}).get("loss")
        return value


@dataclass(frozen=True)
class Comparison:
    """The difference of a method to another in one quantity.

    quantity: `score`, `loss` or `forgetting`
    task: name of a task, or `macro` for the mean over tasks; empty for forgetting
    better: whether a larger difference is better
    adjusted: p-value adjusted for the number of methods that are compared in this quantity and task (Holm)
    """

    method: str
    quantity: str
    task: str
    difference: Difference
    better: bool
    adjusted: float = 1.0

    @property
    def verdict(self) -> str:
        """`win`, `loss`, or `tie` if the interval contains 0 or cannot be known."""
        if self.difference.low <= 0 <= self.difference.high:
            return "tie"
        return "win" if (self.difference.difference > 0) == self.better else "loss"

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-compatible values."""
        difference = self.difference
        return {
            "method": self.method,
            "quantity": self.quantity,
            "task": self.task,
            "difference": difference.difference,
            "low": difference.low,
            "high": difference.high,
            "stderr": difference.stderr,
            "p_value": difference.p_value,
            "adjusted_p_value": self.adjusted,
            "seeds": difference.seeds,
            "over": difference.over,
            "verdict": self.verdict,
        }


def compare_with_reference(finals: Mapping[str, Sequence[FinalRun]], reference: str) -> list[Comparison]:
    """Compare every method with the reference, on the seeds that both have finished.

    Args:
        finals: method -> its finished final runs
        reference: one of the methods
    """
    others = {method: runs for method, runs in finals.items() if method != reference}
    return compare_with(finals.get(reference, ()), others)


def compare_with(reference: Sequence[Scored], methods: Mapping[str, Sequence[Scored]]) -> list[Comparison]:
    """Compare every method with the same runs, on the seeds that both have.

    Args:
        reference: one entry per seed
        methods: name -> one entry per seed
    """
    base = {run.seed: run for run in reference}
    comparisons: list[Comparison] = []
    for method, runs in methods.items():
        own = {run.seed: run for run in runs if run.seed in base}
        if own:
            comparisons += _compare(method, [base[seed] for seed in own], list(own.values()))
    return _adjusted(comparisons)


def wins_ties_losses(comparisons: Sequence[Comparison], method: str) -> tuple[int, int, int]:
    """Count a method's wins, ties and losses over tasks, in the main metric."""
    verdicts = Counter(
        item.verdict
        for item in comparisons
        if item.method == method and item.quantity == "score" and item.task != MACRO
    )
    return verdicts["win"], verdicts["tie"], verdicts["loss"]


def _compare(method: str, first: Sequence[Scored], second: Sequence[Scored]) -> list[Comparison]:
    pairs = [(a.scores, b.scores) for a, b in zip(first, second, strict=True)]
    tasks = pairs[0][0]
    scored = [task for task, score in tasks.items() if score.value is not None]
    samples = [[run.items for run in runs] for runs in (first, second)]
    items, losses = task_differences(*samples), loss_differences(*samples)

    def by_seed(value: Any) -> Difference:
        return seed_difference([value(b) - value(a) for a, b in pairs])

    found = []
    for task in scored:
        value = crossed_difference({task: items[task]}) if task in items else by_seed(lambda s, t=task: s[t].value)
        found.append(Comparison(method, "score", task, value, tasks[task].higher_is_better))
    if scored and all(tasks[task].higher_is_better for task in scored):
        every = {task: items[task] for task in scored if task in items}
        macro = crossed_difference(every) if len(every) == len(scored) else by_seed(mean_value)
        found.append(Comparison(method, "score", MACRO, macro, True))
    for task in tasks:
        value = crossed_difference({task: losses[task]}) if task in losses else by_seed(lambda s, t=task: s[t].loss)
        found.append(Comparison(method, "loss", task, value, False))
    every = {task: losses[task] for task in tasks if task in losses}
    macro = crossed_difference(every) if len(every) == len(tasks) else by_seed(mean_loss)
    found.append(Comparison(method, "loss", MACRO, macro, False))
    texts = [(a.forgetting, b.forgetting) for a, b in zip(first, second, strict=True)]
    forgetting = [b - a for a, b in texts if a is not None and b is not None]
    if len(forgetting) == len(texts):
        found.append(Comparison(method, FORGETTING, "", seed_difference(forgetting), False))
    return found


def _adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Adjust the p-values within each quantity and task."""
    families: dict[tuple[str, str], list[int]] = {}
    for index, item in enumerate(comparisons):
        families.setdefault((item.quantity, item.task), []).append(index)
    adjusted: dict[int, float] = {}
    for indices in families.values():
        values = holm([comparisons[index].difference.p_value for index in indices])
        adjusted |= dict(zip(indices, values, strict=True))
    return [
        Comparison(item.method, item.quantity, item.task, item.difference, item.better, adjusted[index])
        for index, item in enumerate(comparisons)
    ]
