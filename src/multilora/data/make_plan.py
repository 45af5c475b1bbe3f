"""Make the plan of a recipe: load, tokenize, mix and pack all training examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from multilora.data import mixture
from multilora.data.mixture import Draws, Int64, Stream
from multilora.data.plan import Plan
from multilora.data.render import Renderer
from multilora.data.rows import (
    RowBudget,
    check_size,
    homogeneous_rows,
    mixed_rows,
    per_draw,
    shuffle_rows,
    total_amount,
    unit_cost,
)
from multilora.data.saved_plan import SavedPlan
from multilora.data.tokenize import TokenizedTask, TokenizeOptions, tokenize_task
from multilora.errors import DataError, RecipeError, RunDirectoryError
from multilora.progress import progress
from multilora.recipe import Recipe
from multilora.tasks.make import make_task
from multilora.tasks.splits import load_split

if TYPE_CHECKING:
    import pyarrow as pa


def make_plan(
    recipe: Recipe,
    tokenizer: Any,
    *,
    max_length: int,
    rows_per_step: int,
    max_steps: int,
    epochs: float,
    saved: SavedPlan | None = None,
) -> Plan:
    """Load, tokenize, mix and pack all training examples.

    Args:
        recipe: a validated recipe
        tokenizer: of the base model
        max_length: of a row, in tokens
        rows_per_step: rows per optimizer step, over all processes and accumulated batches
        max_steps: optimizer steps; if not positive, the mixture's total or else `epochs` over all examples determines
            the length, rounded up to full steps
        epochs: see max_steps
        saved: the plan of the run to continue. If the length is the same, the result has its rows; if it is larger,
            its rows come first, and the rest continues the sequence of draws of every task

    Raises:
        RecipeError: the data of some tasks cannot be used; one problem per task.
        RunDirectoryError: recipe or data differ from those of `saved`, or the plan would be shorter.
    """
    section, data = recipe.mixture, recipe.data
    renderer = Renderer(tokenizer, data.template, data.special_tokens)
    options = TokenizeOptions(max_length, data.loss_on, data.overlong, data.cut_responses)
    tokenized = _tokenize_all(recipe, renderer, options)
    costs = {name: unit_cost(task, section.unit) for name, task in tokenized.items()}
    shares = mixture.shares_of(
        section.strategy,
        {name: float(cost.sum()) for name, cost in costs.items()},
        temperature=section.temperature or 1.0,
        weights={task.name: task.weight or 0.0 for task in recipe.tasks},
    )
    made_from = {
        "mixture": section.model_dump(exclude={"total_examples", "total_tokens"}),
        "data": data.model_dump(exclude={"num_proc"}),
        "max_length": max_length,
        "rows_per_step": rows_per_step,
        "tasks": {task.name: task.model_dump(exclude_none=True) for task in recipe.tasks},
        "tokens": {name: task.dataset._fingerprint for name, task in tokenized.items()},
    }
    length = {
        "max_steps": max_steps if max_steps > 0 else None,
        "epochs": epochs,
        **section.model_dump(include={"total_examples", "total_tokens"}),
    }
    if saved is not None:
        saved.check_same(made_from)

    def rows(after: SavedPlan | None) -> pa.Table:
        return _rows(recipe, tokenized, shares, max_length, rows_per_step, max_steps, epochs, after)

    extended_at: tuple[int, ...] = ()
    if saved is None:
        table = rows(None)
    elif saved.length == length:
        table, extended_at = saved.table, saved.extended_at
    else:
        table, extended_at = concatenate(saved.table, rows(saved)), (*saved.extended_at, saved.steps)
    return Plan(
        table=table,
        tokenized=tokenized,
        renderer=renderer,
        rows_per_step=rows_per_step,
        max_length=max_length,
        packed=data.packing,
        unit=section.unit,
        shares=shares,
        made_from=made_from,
        length=length,
        extended_at=extended_at,
    )


def _rows(
    recipe: Recipe,
    tokenized: Mapping[str, TokenizedTask],
    shares: Mapping[str, float],
    max_length: int,
    rows_per_step: int,
    max_steps: int,
    epochs: float,
    after: SavedPlan | None,
) -> pa.Table:
    """Return the table of all rows, or of those after a saved plan; they are counted from 0."""
    section, share_list = recipe.mixture, list(shares.values())
    used = [0] * len(tokenized) if after is None else after.used(len(tokenized))
    draws = [
        Draws(name, unit_cost(task, section.unit), section.seed, start)
        for (name, task), start in zip(tokenized.items(), used, strict=True)
    ]
    lengths = [task.column("length") for task in tokenized.values()]
    budget = RowBudget(
        steps=max_steps if max_steps > 0 else None,
        amount=total_amount(section, draws, lengths, share_list, epochs),
        rows_per_step=rows_per_step,
        capacity=max_length if recipe.data.packing else None,
    )
    seed = section.seed
    if after is not None:
        budget = _remaining(budget, after, draws)
        # The order of the new rows must not repeat that of the rows before them.
        seed = int(mixture.generator(seed, "from step", after.steps).integers(2**31))
    check_size(draws, lengths, share_list, budget)
    make_rows = homogeneous_rows if section.homogeneous_batches else mixed_rows
    row, stream = make_rows(draws, lengths, share_list, budget, seed)
    if section.order == "shuffled":
        row = shuffle_rows(row, rows_per_step if section.homogeneous_batches else 1, seed)
    return _table(row, stream, draws, tokenized)


def _remaining(budget: RowBudget, saved: SavedPlan, draws: Sequence[Draws]) -> RowBudget:
    """Return the part of the budget that a saved plan has not used.

    Raises:
        RunDirectoryError: nothing is left.
    """
    steps = None if budget.steps is None else budget.steps - saved.steps
    task, example = (saved.table[name].to_numpy() for name in ("task", "example"))
    used = sum(float(source.cost[example[task == index]].sum()) for index, source in enumerate(draws))
    if (steps is not None and steps <= 0) or (steps is None and budget.amount <= used):
        raise RunDirectoryError(
            f"{saved.folder.parent}: the plan of this run has {saved.steps:,} steps, and a run can be extended but not "
            "shortened; use a larger training.max_steps or total, restore the old length, or start a new run in "
            "another output_dir"
        )
    return dataclasses.replace(budget, steps=steps, amount=budget.amount - used)


def concatenate(first: pa.Table, second: pa.Table) -> pa.Table:
    """Append the rows of a table to those of another."""
    import pyarrow as pa

    shifted = pa.array(second["row"].to_numpy() + first["row"][-1].as_py() + 1)
    return pa.concat_tables([first, second.set_column(second.schema.get_field_index("row"), "row", shifted)])


def _tokenize_all(recipe: Recipe, renderer: Renderer, options: TokenizeOptions) -> dict[str, TokenizedTask]:
    tokenized: dict[str, TokenizedTask] = {}
    problems: list[str] = []
    with progress("tokenizing", len(recipe.tasks)) as advance:
        for section in recipe.tasks:
            advance(0, note=section.name)
            try:
                task = make_task(section)
                examples = load_split(task, "train", recipe.evaluation.validation_share)
                if section.max_examples is not None and section.max_examples < len(examples):
                    # A random subset, since sources are often sorted; the seed keeps it fixed.
                    rng = mixture.generator(recipe.mixture.seed, "subset", section.name)
                    chosen = np.sort(rng.permutation(len(examples))[: section.max_examples])
                    examples = examples.select(chosen)
                tokenized[section.name] = tokenize_task(
                    section.name,
                    examples,
                    renderer,
                    options,
                    num_proc=recipe.data.num_proc,
                    dropped_in_source=task.dropped,
                )
            except DataError as error:
                problems.append(str(error))
            advance()
    if problems:
        raise RecipeError(problems, "data")
    return tokenized


def _table(row: Int64, stream: Stream, draws: Sequence[Draws], tokenized: Mapping[str, TokenizedTask]) -> pa.Table:
    import pyarrow as pa

    examples = [np.arange(source.size, dtype=np.int64) for source in draws]
    tasks = list(tokenized.values())
    order = np.argsort(row, kind="stable")
    sizes = np.array([source.size for source in draws], dtype=np.int64)
    starts = np.array([source.start for source in draws], dtype=np.int64)
    columns = {
        "row": row,
        "task": stream.task,
        "example": per_draw(stream, draws, examples),
        "epoch": (starts[stream.task] + stream.draw) // sizes[stream.task],
        "tokens": per_draw(stream, draws, [task.column("length") for task in tasks]),
        "trained_tokens": per_draw(stream, draws, [task.column("trained_tokens") for task in tasks]),
    }
    return pa.table({name: values[order] for name, values in columns.items()})
