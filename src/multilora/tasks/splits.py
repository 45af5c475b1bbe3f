"""The splits of a task as a recipe uses them: training, validation and evaluation.

With `evaluation.validation_share`, that share of the training examples is set aside for validation, so that settings
can be chosen without the evaluation split. As for held-out records (`multilora.tasks.holdout`), a hash decides: an
example stays in its split when others are added, and examples with the same prompt, or in the same cluster
(`Task.cluster_of`), are in the same split.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from multilora.cache import cache_key
from multilora.errors import DataError
from multilora.example import Example
from multilora.tasks.base import Task
from multilora.tasks.holdout import draw_of, held_out

if TYPE_CHECKING:
    from datasets import Dataset

RecipeSplit = Literal["train", "validation", "eval"]


def load_split(task: Task, split: RecipeSplit, validation_share: float | None = None) -> Dataset:
    """Load a split of a task.

    Args:
        task: from `make_task`
        split: `validation` needs a `validation_share`
        validation_share: approximate share of the training examples that belongs to validation; None for none

    Raises:
        DataError: the data cannot be used, or the training examples cannot be divided.
    """
    if split == "eval":
        return task.load("eval")
    dataset = task.load("train")
    if validation_share is None:
        return dataset
    draws = np.fromiter((_draw(task, example) for example in _examples(dataset)), np.float64, len(dataset))
    try:
        chosen = held_out(draws, validation_share, float(draws.min()), float(draws.max()))
    except DataError:
        raise DataError(
            f"task {task.name!r}: its training examples have one prompt or are one cluster, so none can be set aside "
            "for validation; add data, or leave evaluation.validation_share out"
        ) from None
    indices = np.flatnonzero(chosen if split == "validation" else ~chosen)
    return dataset.select(indices, new_fingerprint=cache_key(dataset._fingerprint, split, validation_share))


def _examples(dataset: Dataset) -> Iterator[Example]:
    for batch in dataset.iter(batch_size=1000):
        columns: Any = batch
        for values in zip(*columns.values(), strict=True):
            example: Any = dict(zip(columns, values, strict=True))
            yield example


def _draw(task: Task, example: Example) -> float:
    cluster = task.cluster_of(example)
    if cluster:
        return draw_of({"cluster": cluster})
    text = example["messages"] or example["prompt"] or example["response"]
    return draw_of({"text": text})
