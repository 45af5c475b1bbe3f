"""Per-task summary of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from multilora.data.tokenize import TokenizedTask

if TYPE_CHECKING:
    import pyarrow as pa

LENGTH_QUANTILES = {"median": 0.5, "90 %": 0.9, "99 %": 0.99, "longest": 1.0}


@dataclass(frozen=True)
class TaskSummary:
    """What a plan takes from one task.

    available: examples of the task that fit
    examples, tokens, trained_tokens: counts over the plan, repeats included
    asked, share: requested and actual share of the mixture, in its unit
    epochs: passes over the task's examples
    truncated, cut, dropped, dropped_in_source: see `TokenizedTask`
    length: quantiles of the lengths of the task's examples, in tokens
    """

    name: str
    available: int
    examples: int
    asked: float
    share: float
    epochs: float
    tokens: int
    trained_tokens: int
    truncated: int
    cut: int
    dropped: int
    dropped_in_source: dict[str, int]
    length: dict[str, int]


def summarize_tasks(
    table: pa.Table, tokenized: Mapping[str, TokenizedTask], shares: Mapping[str, float], unit: str
) -> list[TaskSummary]:
    """Summarize every task of a plan; see `Plan` for the arguments."""
    columns = {name: table[name].to_numpy() for name in ("task", "tokens", "trained_tokens")}
    costs = np.ones(len(columns["task"])) if unit == "examples" else columns[unit]
    summaries = []
    for index, (name, task) in enumerate(tokenized.items()):
        in_task = columns["task"] == index
        count = int(in_task.sum())
        lengths = task.column("length")
        summaries.append(
            TaskSummary(
                name=name,
                available=len(task),
                examples=count,
                asked=shares[name],
                share=float(costs[in_task].sum() / costs.sum()),
                epochs=count / len(task),
                tokens=int(columns["tokens"][in_task].sum()),
                trained_tokens=int(columns["trained_tokens"][in_task].sum()),
                truncated=task.truncated,
                cut=task.cut,
                dropped=task.dropped,
                dropped_in_source=task.dropped_in_source,
                length={
                    key: int(np.quantile(lengths, quantile, method="higher"))
                    for key, quantile in LENGTH_QUANTILES.items()
                },
            )
        )
    return summaries
