"""Scores and losses per item of the final runs, as differences between two methods on the same items."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from multilora.evaluation.samples import Sample, read_samples
from multilora.evaluation.statistics.intervals import indices_of
from multilora.study.cells import Cell
from multilora.study.crossed import TaskDifferences
from multilora.study.execute import samples_folder

# (task, index, hash of the prompt) -> sample
Items = dict[tuple[str, int, str], Sample]


def items_of(cell: Cell) -> Items:
    """The samples of a final run by task and item."""
    samples = read_samples(samples_folder(cell) / "run.parquet")
    return {(sample.task, sample.index, sample.prompt_hash): sample for sample in samples}


def task_differences(first: Sequence[Items], second: Sequence[Items]) -> dict[str, TaskDifferences]:
    """Differences of the main metric, second minus first, on the items that all runs have answered.

    Tasks whose metric has no score per item, such as F1, are left out.

    Args:
        first, second: one entry per seed, in the same order
    """
    return _differences(first, second, lambda sample: sample.score)


def loss_differences(first: Sequence[Items], second: Sequence[Items]) -> dict[str, TaskDifferences]:
    """Differences of the loss, in nats per token, on the items that all runs have answered.

    The loss of a task is that of all its tokens, so an item counts by its tokens: its nats are divided by the mean
    number of tokens of an item, and the mean over items is the loss.

    Args:
        first, second: one entry per seed, in the same order
    """
    differences = _differences(first, second, lambda sample: sample.reference_nats)
    tokens: dict[str, list[int]] = {}
    for key, sample in first[0].items():
        if all(key in run for run in (*first, *second)):
            tokens.setdefault(key[0], []).append(sample.reference_tokens or 0)
    return {
        task: TaskDifferences(found.values / np.mean(tokens[task]), found.clusters)
        for task, found in differences.items()
    }


def _differences(
    first: Sequence[Items], second: Sequence[Items], value: Callable[[Sample], float | None]
) -> dict[str, TaskDifferences]:
    runs = [*first, *second]
    shared = [key for key in runs[0] if all(key in run for run in runs)]
    tasks: dict[str, list[tuple[str, int, str]]] = {}
    for key in shared:
        tasks.setdefault(key[0], []).append(key)
    result = {}
    for task, keys in tasks.items():
        scores = [[value(run[key]) for key in keys] for run in runs]
        if any(score is None for row in scores for score in row):
            continue
        values = np.asarray(scores, dtype=np.float64)
        clusters = indices_of([runs[0][key].cluster or key[1] for key in keys])
        result[task] = TaskDifferences(values[len(first) :] - values[: len(first)], clusters)
    return result
