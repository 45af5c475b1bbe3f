"""Which examples make which row of training: from the tasks' draws and shares to rows and segments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from multilora.data import mixture
from multilora.data.mixture import Draws, Int64, Stream
from multilora.data.pack import pack
from multilora.data.tokenize import TokenizedTask
from multilora.recipe import MixtureSection


def unit_cost(task: TokenizedTask, unit: str) -> Int64:
    """What each example of a task counts for in the mixture's unit: 1, its tokens or its trained tokens."""
    if unit == "examples":
        return np.ones(len(task), dtype=np.int64)
    return task.column("length" if unit == "tokens" else "trained_tokens")


@dataclass(frozen=True)
class Wanted:
    """How long the training is: `steps`, or an `amount` of the unit; capacity of a packed row in tokens, or None."""

    steps: int | None
    amount: float
    rows_per_step: int
    capacity: int | None

    def whole_rows(self, rows: int) -> int:
        """`rows` rounded up to whole steps."""
        return max(1, -(-rows // self.rows_per_step)) * self.rows_per_step


def amount_of(
    section: MixtureSection,
    draws: Sequence[Draws],
    lengths: Sequence[Int64],
    shares: Sequence[float],
    epochs: float,
) -> float:
    """The mixture's total in its unit."""
    in_all = float(sum(int(source.cost.sum()) for source in draws))
    # Unit per example and tokens per unit of the mixture as it is drawn.
    if section.total_examples is not None:
        per_unit = sum(share / source.cost.mean() for source, share in zip(draws, shares, strict=True))
        return section.total_examples / float(per_unit)
    if section.total_tokens is not None:
        per_unit = sum(
            share * size.mean() / source.cost.mean() for source, size, share in zip(draws, lengths, shares, strict=True)
        )
        return section.total_tokens / float(per_unit)
    return epochs * in_all


def mixed(
    draws: Sequence[Draws], lengths: Sequence[Int64], shares: Sequence[float], wanted: Wanted, seed: int
) -> tuple[Int64, Stream]:
    """(row of each segment, the segments): every row may hold any task."""
    if wanted.capacity is None:
        if wanted.steps is not None:
            total = wanted.steps * wanted.rows_per_step
        else:
            total = wanted.whole_rows(len(mixture.stream(draws, shares, wanted.amount)))
        found = mixture.in_order(draws, mixture.exact_counts(draws, shares, total))
        return np.arange(total, dtype=np.int64), found
    if wanted.steps is None:
        stream = mixture.stream(draws, shares, wanted.amount)
        packed = pack(per_draw(stream, draws, lengths), wanted.capacity, seed)
        made = int(packed.max(initial=-1)) + 1  # none if the total is below one example
        rows = wanted.whole_rows(made)
        if rows == made:  # nothing to fill up
            return packed, stream
    else:
        rows = wanted.steps * wanted.rows_per_step
    return _packed_rows(draws, lengths, shares, rows, wanted.capacity, seed)


def _packed_rows(
    draws: Sequence[Draws], lengths: Sequence[Int64], shares: Sequence[float], rows: int, capacity: int, seed: int
) -> tuple[Int64, Stream]:
    """Exactly `rows` packed rows from the beginning of the stream."""
    tokens_per_unit = sum(
        share * size.mean() / source.cost.mean() for source, size, share in zip(draws, lengths, shares, strict=True)
    )
    amount = 1.02 * rows * capacity / float(tokens_per_unit) + float(max(source.cost.max() for source in draws))
    while True:
        found = mixture.stream(draws, shares, amount)
        try:
            packed = pack(per_draw(found, draws, lengths), capacity, seed, rows)
        except ValueError:  # the lengths came out shorter than on average
            amount *= 1.1
            continue
        kept = packed >= 0
        return packed[kept], Stream(found.task[kept], found.draw[kept])


def homogeneous(
    draws: Sequence[Draws], lengths: Sequence[Int64], shares: Sequence[float], wanted: Wanted, seed: int
) -> tuple[Int64, Stream]:
    """(row of each segment, the segments): all rows of an optimizer step are of one task."""
    # Units that one row of a task holds; its steps follow from its share.
    per_row = [
        float(source.cost.mean() * (1 if wanted.capacity is None else wanted.capacity / size.mean()))
        for source, size in zip(draws, lengths, strict=True)
    ]
    rows_per_unit = sum(share / held for share, held in zip(shares, per_row, strict=True))
    steps = wanted.steps or wanted.whole_rows(int(np.ceil(wanted.amount * rows_per_unit))) // wanted.rows_per_step
    weights = {source.name: share / held for source, share, held in zip(draws, shares, per_row, strict=True)}
    steps_of = list(mixture.apportion(steps, weights).values())
    blocks = [
        Draws(source.name, np.ones(max(count, 1), dtype=np.int64), seed)
        for source, count in zip(draws, steps_of, strict=True)
    ]
    order = mixture.in_order(blocks, steps_of)
    rows, tasks, numbers = [], [], []
    for place, (source, size, count) in enumerate(zip(draws, lengths, steps_of, strict=True)):
        mine = np.flatnonzero(order.task == place)  # the steps of this task, in order
        needed = count * wanted.rows_per_step
        if not needed:
            continue
        if wanted.capacity is None:
            own, drawn = np.arange(needed, dtype=np.int64), np.arange(needed, dtype=np.int64)
        else:
            own, found = _packed_rows([source], [size], [1.0], needed, wanted.capacity, seed)
            drawn = found.draw
        rows.append(mine[own // wanted.rows_per_step] * wanted.rows_per_step + own % wanted.rows_per_step)
        tasks.append(np.full(len(drawn), place, dtype=np.int64))
        numbers.append(drawn)
    return np.concatenate(rows), Stream(np.concatenate(tasks), np.concatenate(numbers))


def per_draw(stream: Stream, draws: Sequence[Draws], values: Sequence[Int64]) -> Int64:
    """A number per example of each task, for every draw of the stream."""
    found = np.empty(len(stream), dtype=np.int64)
    for place, (source, column) in enumerate(zip(draws, values, strict=True)):
        mine = stream.task == place
        drawn = stream.draw[mine]
        if len(drawn):
            found[mine] = column[source.first(int(drawn.max()) + 1)[drawn]]
    return found


def shuffled(row: Int64, block: int, seed: int) -> Int64:
    """Rows in a random order; blocks of that many stay together."""
    blocks = (int(row.max()) + 1) // block
    order = mixture.generator(seed, "order").permutation(blocks)
    shuffled: Int64 = order[row // block] * block + row % block
    return shuffled
