"""The plan: all training rows in order, fixed and inspectable before the first step.

recipe ──► Task.load ──► Dataset[Example] ──► tokenize_task ──► TokenizedTask
                                                                  │
recipe.mixture, total ──► shares_of, stream, pack ──────────► Plan.table (one line per segment, rows in order)
                                                                  │
                                                PlanDataset: item k is row k
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multilora.data import mixture
from multilora.data.collate import PlanDataset
from multilora.data.mixture import Draws, Int64, Stream
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
from multilora.data.summary import TaskSummary, summarize_tasks
from multilora.data.tokenize import TokenizedTask, TokenizeOptions, tokenize_task
from multilora.errors import DataError, RecipeError, RunDirectoryError, changes
from multilora.files import write_json
from multilora.progress import progress
from multilora.recipe import Recipe
from multilora.tasks.make import make_task

if TYPE_CHECKING:
    import pyarrow as pa

TABLE_FILE, SUMMARY_FILE = "plan.arrow", "plan.json"


@dataclass(frozen=True)
class Plan:
    """The training rows of a run in order, and their tokens.

    table: one line per segment, with columns row, task (index in `task_names`), example (index in the task's tokenized
    dataset), epoch (of that task), tokens and trained_tokens; without packing every row is one example
    rows_per_step: over all processes and accumulated batches
    shares: requested share of each task, in `unit`
    made_from: everything that determines the plan, to compare it with another
    """

    table: pa.Table
    tokenized: dict[str, TokenizedTask]
    renderer: Renderer
    rows_per_step: int
    max_length: int
    packed: bool
    unit: str
    shares: dict[str, float]
    made_from: dict[str, Any]

    @property
    def task_names(self) -> list[str]:
        """Names of the tasks, in the order of the recipe."""
        return list(self.tokenized)

    @property
    def rows(self) -> int:
        """Number of training rows."""
        return int(self.table["row"][-1].as_py()) + 1

    @property
    def steps(self) -> int:
        """Number of optimizer steps."""
        return self.rows // self.rows_per_step

    def __len__(self) -> int:
        return self.rows

    @property
    def fill_rate(self) -> float:
        """Share of token slots in use; a row has `max_length` if packed, else the length of the longest in its step."""
        tokens = self.table["tokens"].to_numpy()
        if self.packed:
            return float(tokens.sum() / (self.rows * self.max_length))
        steps = tokens.reshape(-1, self.rows_per_step)
        return float(tokens.sum() / (steps.max(axis=1).sum() * self.rows_per_step))

    def dataset(self) -> PlanDataset:
        """Return the training rows in order."""
        row, task, example = (self.table[name].to_numpy() for name in ("row", "task", "example"))
        return PlanDataset(row, task, example, [task.dataset for task in self.tokenized.values()])

    def summary(self) -> list[TaskSummary]:
        """Return one entry per task."""
        return summarize_tasks(self.table, self.tokenized, self.shares, self.unit)

    def as_dict(self) -> dict[str, Any]:
        """Return the summary as JSON-compatible values."""
        return {
            "steps": self.steps,
            "rows_per_step": self.rows_per_step,
            "rows": self.rows,
            "max_length": self.max_length,
            "packed": self.packed,
            "fill_rate": self.fill_rate,
            "unit": self.unit,
            "tasks": [dataclasses.asdict(entry) for entry in self.summary()],
        }

    def rendered(self, task: str, index: int = 0) -> list[tuple[str, bool]]:
        """Return a tokenized example as (text, trained on) pairs; the text includes special tokens."""
        example = self.tokenized[task].dataset[index]
        decode = self.renderer.tokenizer.decode
        ids, spans = example["input_ids"], example["spans"]
        edges = [0, *spans, len(ids)]
        pieces = [(edges[i], edges[i + 1], i % 2 == 1) for i in range(len(edges) - 1)]
        return [(decode(ids[start:end]), trained) for start, end, trained in pieces if end > start]

    def save(self, folder: Path) -> None:
        """Write the table as an Arrow file, and the summary and `made_from` as `plan.json`."""
        import pyarrow.feather as feather

        folder.mkdir(parents=True, exist_ok=True)
        feather.write_feather(self.table, str(folder / TABLE_FILE), compression="uncompressed")
        write_json(folder / SUMMARY_FILE, {**self.as_dict(), "made_from": self.made_from})

    def check_same(self, folder: Path) -> None:
        """Compare this plan with the one saved in `folder`.

        Raises:
            RunDirectoryError: the saved plan is unreadable, or recipe or data have changed; lists the differences.
        """
        try:
            saved = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))["made_from"]
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise RunDirectoryError(f"{folder / SUMMARY_FILE}: no readable plan ({error})") from None
        differences = changes(saved, json.loads(json.dumps(self.made_from)))
        if differences:
            raise RunDirectoryError(
                f"{folder}: recipe or data differ from those of the saved plan:\n  "
                + "\n  ".join(differences)
                + "\nrestore them to continue this run, or start a new run in another output_dir"
            )


def make_plan(
    recipe: Recipe, tokenizer: Any, *, max_length: int, rows_per_step: int, max_steps: int, epochs: float
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

    Raises:
        RecipeError: the data of some tasks cannot be used; one problem per task.
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
    draws = [Draws(name, cost, section.seed) for name, cost in costs.items()]
    lengths = [task.column("length") for task in tokenized.values()]
    budget = RowBudget(
        steps=max_steps if max_steps > 0 else None,
        amount=total_amount(section, draws, lengths, list(shares.values()), epochs),
        rows_per_step=rows_per_step,
        capacity=max_length if data.packing else None,
    )
    check_size(draws, lengths, list(shares.values()), budget)
    make_rows = homogeneous_rows if section.homogeneous_batches else mixed_rows
    row, stream = make_rows(draws, lengths, list(shares.values()), budget, section.seed)
    if section.order == "shuffled":
        row = shuffle_rows(row, rows_per_step if section.homogeneous_batches else 1, section.seed)
    return Plan(
        table=_table(row, stream, draws, tokenized),
        tokenized=tokenized,
        renderer=renderer,
        rows_per_step=rows_per_step,
        max_length=max_length,
        packed=data.packing,
        unit=section.unit,
        shares=shares,
        made_from={
            "mixture": section.model_dump(),
            "data": data.model_dump(exclude={"num_proc"}),
            "max_length": max_length,
            "rows_per_step": rows_per_step,
            "steps": int(row.max() + 1) // rows_per_step,
            "tasks": {task.name: task.model_dump(exclude_none=True) for task in recipe.tasks},
            "tokens": {name: task.dataset._fingerprint for name, task in tokenized.items()},
        },
    )


def _tokenize_all(recipe: Recipe, renderer: Renderer, options: TokenizeOptions) -> dict[str, TokenizedTask]:
    tokenized: dict[str, TokenizedTask] = {}
    problems: list[str] = []
    with progress("tokenizing", len(recipe.tasks)) as advance:
        for section in recipe.tasks:
            advance(0, note=section.name)
            try:
                task = make_task(section)
                examples = task.load("train")
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
    columns = {
        "row": row,
        "task": stream.task,
        "example": per_draw(stream, draws, examples),
        "epoch": stream.draw // sizes[stream.task],
        "tokens": per_draw(stream, draws, [task.column("length") for task in tasks]),
        "trained_tokens": per_draw(stream, draws, [task.column("trained_tokens") for task in tasks]),
    }
    return pa.table({name: values[order] for name, values in columns.items()})
