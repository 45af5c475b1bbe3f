"""The examples that evaluations during training score: as many as fit into `evaluation.max_seconds`.

Their number is chosen once per run, from the time that examples take before the first evaluation, and kept in the run
directory. All evaluations score the same examples, so they can be compared, also after a resume on another machine.

    evaluation_examples.json    the chosen numbers, and the times that they follow from
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from multilora.errors import DataError, RunDirectoryError
from multilora.evaluation.evaluation_set import EvaluationSet
from multilora.evaluation.score import evaluation_sets
from multilora.evaluation.task_score import TaskScore
from multilora.example import Example
from multilora.files import write_json
from multilora.processes import is_main_process
from multilora.recipe import Recipe

logger = logging.getLogger(__name__)

EXAMPLES_FILE = "evaluation_examples.json"

Sets = dict[str, EvaluationSet]
Score = Callable[[Sets], dict[str, TaskScore]]


def divide_seconds(seconds: float, costs: Mapping[str, float], available: Mapping[str, int]) -> dict[str, int]:
    """Return how many examples of each task fit into a time.

    Every task gets the same share of the time. What a task does not need, because all its examples fit, is shared by
    the others.

    Args:
        seconds: for all tasks together
        costs: task -> seconds per example, positive
        available: task -> number of examples, at least 1

    Returns:
        task -> number of examples: at least one, even if it does not fit, and at most all
    """
    counts = {}
    by_need = sorted(available, key=lambda name: costs[name] * available[name])
    for position, name in enumerate(by_need):
        share = max(seconds, 0.0) / (len(by_need) - position)
        counts[name] = min(max(int(share / costs[name]), 1), available[name])
        seconds -= counts[name] * costs[name]
    return {name: counts[name] for name in available}


def seconds_per_example(score: Callable[[list[Example]], Any], examples: Sequence[Example], limit: float) -> float:
    """Return how long an example takes, the same in all processes.

    More and more examples are scored, until they take `limit` seconds. All rounds together take less than four times as
    long, unless a single example takes longer.

    Args:
        score: scores some examples; all processes call it
        examples: of one task
        limit: in seconds

    Raises:
        DataError: none of the examples can be scored.
    """
    _seconds(score, examples, 1)  # pays for what happens once, such as loading kernels
    count = 1
    while True:
        seconds = _seconds(score, examples, count)
        if count == len(examples) or seconds >= limit:
            return seconds / count
        count = min(2 * count, len(examples))


def _seconds(score: Callable[[list[Example]], Any], examples: Sequence[Example], count: int) -> float:
    spread = [examples[number * len(examples) // count] for number in range(count)]
    start = time.perf_counter()
    try:
        score(spread)
    except DataError:  # all are too long
        if count == len(examples):
            raise
        return 0.0
    (seconds,) = broadcast_object_list([time.perf_counter() - start])
    return float(seconds)


class EvaluationExamples:
    """The examples that every evaluation during training scores.

    Args:
        recipe: sets `evaluation.max_examples_during` and `evaluation.max_seconds`
        folder: the run directory

    Raises:
        RecipeError: the data of some tasks cannot be used.
        RunDirectoryError: the numbers chosen before a resume cannot be read.
    """

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.file = recipe, folder / EXAMPLES_FILE
        self.max_seconds = recipe.evaluation.max_seconds
        self.sets: Sets = evaluation_sets(recipe, recipe.evaluation.max_examples_during)
        self._chosen = self.max_seconds is None
        (counts,) = broadcast_object_list([self._read() if is_main_process() else None])
        if counts is not None:
            self._keep(counts)

    def score(self, score: Score) -> dict[str, TaskScore]:
        """Score all tasks, and choose the number of examples first if there is a limit; all processes call it.

        Raises:
            DataError: no example of a task can be scored.
        """
        if not self._chosen and self.max_seconds is not None:
            self._choose(score, self.max_seconds)
        return score(self.sets)

    def _choose(self, score: Score, max_seconds: float) -> None:
        costs = {}
        for name, items in self.sets.items():

            def score_some(some: list[Example], name: str = name, items: EvaluationSet = items) -> None:
                score({name: replace(items, examples=some)})

            costs[name] = seconds_per_example(score_some, items.examples, max_seconds / len(self.sets) / 4)
        available = {name: len(items.examples) for name, items in self.sets.items()}
        counts = divide_seconds(max_seconds, costs, available)
        self._keep(counts)
        if is_main_process():
            write_json(self.file, {"examples": counts, "seconds_per_example": costs, "max_seconds": max_seconds})
            self._report(available, costs, max_seconds)

    def _keep(self, counts: Mapping[str, int]) -> None:
        """Draw the examples that `max_examples_during` would draw with these numbers."""
        for section in self.recipe.tasks:
            if counts[section.name] < len(self.sets[section.name].examples):
                only = self.recipe.model_copy(update={"tasks": [section]})
                self.sets |= evaluation_sets(only, counts[section.name])
        self._chosen = True

    def _report(self, available: Mapping[str, int], costs: Mapping[str, float], max_seconds: float) -> None:
        kept = {name: len(items.examples) for name, items in self.sets.items()}
        total = sum(costs[name] * count for name, count in kept.items())
        logger.warning(
            "every evaluation during training scores %s, which takes about %.3g s (evaluation.max_seconds: %g%s)",
            ", ".join(f"{kept[name]} of {available[name]} examples of {name}" for name in kept),
            total,
            max_seconds,
            "; it must score one example or group of every task" if total > max_seconds else "",
        )

    def _read(self) -> dict[str, int] | None:
        """The numbers chosen earlier in this run, if any."""
        if self.max_seconds is None or not self.file.exists():
            return None
        try:
            counts = json.loads(self.file.read_text(encoding="utf-8"))["examples"]
            if counts.keys() == self.sets.keys() and all(type(n) is int and n > 0 for n in counts.values()):
                return dict(counts)
            problem = f"examples are {counts}, expected a number for each of {', '.join(self.sets)}"
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            problem = f"{type(error).__name__}: {error}"
        raise RunDirectoryError(
            f"{self.file}: cannot be read ({problem}); restore it. Without it, the numbers of examples are chosen "
            "again, and later evaluations cannot be compared with earlier ones"
        )
