"""Assign examples to training rows, from the draws and shares of the tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from multilora.data import mixture
from multilora.data.mixture import Draws, Int64, Stream
from multilora.data.pack import pack
from multilora.data.tokenize import TokenizedTask
from multilora.errors import RecipeError
from multilora.recipe import MixtureSection

# Examples of a plan, repeats included: about 5 GiB in the table and its making.
MAX_SEGMENTS = 100_000_000


def unit_cost(task: TokenizedTask, unit: str) -> Int64:
    """Return the cost of each example in the mixture's unit: 1, its tokens or its trained tokens."""
    if unit == "examples":
        return np.ones(len(task), dtype=np.int64)
    return task.column("length" if unit == "tokens" else "trained_tokens")


@dataclass(frozen=True)
class RowBudget:
    """How many rows to make.

    steps: number of optimizer steps; None: as many as `amount` needs; amount: total cost in the mixture's unit;
    capacity: tokens of a packed row, None without packing.
    """

    steps: int | None
    amount: float
    rows_per_step: int
    capacity: int | None

    def round_up(self, rows: int) -> int:
        """Round `rows` up to full steps, at least one."""
        return max(1, -(-rows // self.rows_per_step)) * self.rows_per_step


def total_amount(
    section: MixtureSection,
    draws: Sequence[Draws],
    lengths: Sequence[Int64],
    shares: Sequence[float],
    epochs: float,
) -> float:
    """Return the total to draw, in the mixture's unit: `total_examples`, `total_tokens` or `epochs` over all tasks."""
    if section.total_examples is not None:
        examples_per_unit = sum(share / source.cost.mean() for source, share in zip(draws, shares, strict=True))
        return section.total_examples / float(examples_per_unit)
    if section.total_tokens is not None:
        tokens_per_unit = sum(
            share * size.mean() / source.cost.mean() for source, size, share in zip(draws, lengths, shares, strict=True)
        )
        return section.total_tokens / float(tokens_per_unit)
    return epochs * float(sum(int(source.cost.sum()) for source in draws))


def check_size(draws: Sequence[Draws], lengths: Sequence[Int64], shares: Sequence[float], budget: RowBudget) -> None:
    """Refuse a plan that would not fit into memory, before it is made.

    Raises:
        RecipeError: more than `MAX_SEGMENTS` examples.
    """
    per_unit = float(sum(share / source.cost.mean() for source, share in zip(draws, shares, strict=True)))
    if budget.steps is None:
        segments = budget.amount * per_unit
    else:
        rows = float(budget.steps) * budget.rows_per_step
        tokens_per_unit = sum(
            share * size.mean() / source.cost.mean() for source, size, share in zip(draws, lengths, shares, strict=True)
        )
        segments = rows if budget.capacity is None else rows * budget.capacity * per_unit / float(tokens_per_unit)
    if segments > MAX_SEGMENTS:
        raise RecipeError(
            [
                f"the plan would hold about {segments:,.0f} examples, at most {MAX_SEGMENTS:,} are supported; lower "
                "training.max_steps, training.num_train_epochs or the mixture's total"
            ]
        )


def mixed_rows(
    draws: Sequence[Draws], lengths: Sequence[Int64], shares: Sequence[float], budget: RowBudget, seed: int
) -> tuple[Int64, Stream]:
    """Make rows in which tasks are mixed; return the row of each segment, and the segments."""
    if budget.capacity is None:
        if budget.steps is not None:
            total = budget.steps * budget.rows_per_step
        else:
            total = budget.round_up(len(mixture.stream(draws, shares, budget.amount)))
        stream = mixture.in_order(draws, mixture.exact_counts(draws, shares, total))
        return np.arange(total, dtype=np.int64), stream
    if budget.steps is None:
        stream = mixture.stream(draws, shares, budget.amount)
        packed_rows = pack(per_draw(stream, draws, lengths), budget.capacity, seed)
        row_count = int(packed_rows.max(initial=-1)) + 1  # 0 if the total is below one example
        rows = budget.round_up(row_count)
        if rows == row_count:  # the last step is full
            return packed_rows, stream
    else:
        rows = budget.steps * budget.rows_per_step
    return _packed_rows(draws, lengths, shares, rows, budget.capacity, seed)


def _packed_rows(
    draws: Sequence[Draws], lengths: Sequence[Int64], shares: Sequence[float], rows: int, capacity: int, seed: int
) -> tuple[Int64, Stream]:
    """Pack exactly `rows` rows from the start of the stream."""
    tokens_per_unit = sum(
        share * size.mean() / source.cost.mean() for source, size, share in zip(draws, lengths, shares, strict=True)
    )
    amount = 1.02 * rows * capacity / float(tokens_per_unit) + float(max(source.cost.max() for source in draws))
    while True:
        stream = mixture.stream(draws, shares, amount)
        try:
            packed_rows = pack(per_draw(stream, draws, lengths), capacity, seed, rows)
        except ValueError:  # the drawn examples are shorter than average
            amount *= 1.1
            continue
        kept = packed_rows >= 0
        return packed_rows[kept], Stream(stream.task[kept], stream.draw[kept])


def homogeneous_rows(
    draws: Sequence[Draws], lengths: Sequence[Int64], shares: Sequence[float], budget: RowBudget, seed: int
) -> tuple[Int64, Stream]:
    """Make rows with one task per optimizer step; return the row of each segment, and the segments."""
    # Average cost of one row of each task. The steps of a task follow from its share.
    row_costs = [
        float(source.cost.mean() * (1 if budget.capacity is None else budget.capacity / size.mean()))
        for source, size in zip(draws, lengths, strict=True)
    ]
    rows_per_unit = sum(share / cost for share, cost in zip(shares, row_costs, strict=True))
    steps = budget.steps or budget.round_up(int(np.ceil(budget.amount * rows_per_unit))) // budget.rows_per_step
    weights = {source.name: share / cost for source, share, cost in zip(draws, shares, row_costs, strict=True)}
    steps_per_task = list(mixture.apportion(steps, weights).values())
    step_draws = [
        Draws(source.name, np.ones(max(count, 1), dtype=np.int64), seed)
        for source, count in zip(draws, steps_per_task, strict=True)
    ]
    order = mixture.in_order(step_draws, steps_per_task)
    rows, tasks, indices = [], [], []
    for task, (source, size, count) in enumerate(zip(draws, lengths, steps_per_task, strict=True)):
        task_steps = np.flatnonzero(order.task == task)
        row_count = count * budget.rows_per_step
        if not row_count:
            continue
        if budget.capacity is None:
            task_rows, drawn = np.arange(row_count, dtype=np.int64), np.arange(row_count, dtype=np.int64)
        else:
            task_rows, stream = _packed_rows([source], [size], [1.0], row_count, budget.capacity, seed)
            drawn = stream.draw
        step, row_in_step = np.divmod(task_rows, budget.rows_per_step)
        rows.append(task_steps[step] * budget.rows_per_step + row_in_step)
        tasks.append(np.full(len(drawn), task, dtype=np.int64))
        indices.append(drawn)
    return np.concatenate(rows), Stream(np.concatenate(tasks), np.concatenate(indices))


def per_draw(stream: Stream, draws: Sequence[Draws], values: Sequence[Int64]) -> Int64:
    """Look up a value for every draw of the stream.

    Args:
        stream: the draws
        draws: one per task
        values: one array per task, with one value per example
    """
    result = np.empty(len(stream), dtype=np.int64)
    for task, (source, column) in enumerate(zip(draws, values, strict=True)):
        in_task = stream.task == task
        drawn = stream.draw[in_task]
        if len(drawn):
            result[in_task] = column[source.first(int(drawn.max()) + 1)[drawn]]
    return result


def shuffle_rows(row: Int64, block: int, seed: int) -> Int64:
    """Shuffle blocks of `block` consecutive rows; the order within a block stays."""
    blocks = (int(row.max()) + 1) // block
    order = mixture.generator(seed, "order").permutation(blocks)
    shuffled: Int64 = order[row // block] * block + row % block
    return shuffled
