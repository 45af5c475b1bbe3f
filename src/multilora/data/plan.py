"""The plan: every training example in its order, settled and readable before the first step.

recipe ──► Task.load ──► Dataset[Example] ──► tokenize_task ──► TokenizedTask
                                                                  │
recipe.mixture, steps ──► apportion, draw, interleave ──────► Plan.table (one line per example, in order)
                                                                  │
                                                PlanDataset: item k of training is line k
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multilora.data import mixture
from multilora.data.collate import PlanDataset
from multilora.data.tokenize import Renderer, TokenizedTask, tokenize_task
from multilora.errors import DataError, RecipeError
from multilora.files import write_json
from multilora.progress import progress
from multilora.recipe import Recipe
from multilora.tasks import make_task

if TYPE_CHECKING:
    import pyarrow as pa

TABLE_FILE, SUMMARY_FILE = "plan.arrow", "plan.json"


@dataclass(frozen=True)
class TaskSummary:
    """What the plan takes from one task. Tokens are counted over the whole plan, repeats included."""

    name: str
    available: int
    examples: int
    share: float
    epochs: float
    tokens: int
    trained_tokens: int
    truncated: int
    dropped: int


@dataclass(frozen=True)
class Plan:
    """The order of a run's training examples and the tokens behind it.

    table columns: task (place in `task_names`), example (row of the task's tokenised dataset), epoch (of that task),
    tokens, trained_tokens. `examples_per_step` counts all processes and accumulated batches.
    """

    table: pa.Table
    tokenized: dict[str, TokenizedTask]
    renderer: Renderer
    examples_per_step: int
    max_length: int

    @property
    def task_names(self) -> list[str]:
        """The tasks, in the recipe's order."""
        return list(self.tokenized)

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return len(self.table) // self.examples_per_step

    def __len__(self) -> int:
        return len(self.table)

    def dataset(self) -> PlanDataset:
        """The training examples in order."""
        sources = [task.dataset for task in self.tokenized.values()]
        return PlanDataset(self.table["task"].to_numpy(), self.table["example"].to_numpy(), sources)

    def summary(self) -> list[TaskSummary]:
        """One entry per task."""
        columns = {name: self.table[name].to_numpy() for name in ("task", "tokens", "trained_tokens")}
        entries = []
        for place, (name, task) in enumerate(self.tokenized.items()):
            mine = columns["task"] == place
            count = int(mine.sum())
            entries.append(
                TaskSummary(
                    name=name,
                    available=len(task),
                    examples=count,
                    share=count / len(self),
                    epochs=count / len(task),
                    tokens=int(columns["tokens"][mine].sum()),
                    trained_tokens=int(columns["trained_tokens"][mine].sum()),
                    truncated=task.truncated,
                    dropped=task.dropped,
                )
            )
        return entries

    def as_dict(self) -> dict[str, Any]:
        """The summary as plain values."""
        return {
            "steps": self.steps,
            "examples_per_step": self.examples_per_step,
            "max_length": self.max_length,
            "tasks": [dataclasses.asdict(entry) for entry in self.summary()],
        }

    def rendered(self, task: str, position: int = 0) -> tuple[str, str]:
        """(prefix, response) of a tokenised example as text, special tokens included; the second part is trained on."""
        row = self.tokenized[task].dataset[position]
        decode = self.renderer.tokenizer.decode
        ids, cut = row["input_ids"], row["prefix_length"]
        return decode(ids[:cut]), decode(ids[cut:])

    def save(self, folder: Path) -> None:
        """Write the table as an Arrow file, and `plan.json` with the summary."""
        import pyarrow.feather as feather

        folder.mkdir(parents=True, exist_ok=True)
        feather.write_feather(self.table, str(folder / TABLE_FILE), compression="uncompressed")
        write_json(folder / SUMMARY_FILE, self.as_dict())


def make_plan(
    recipe: Recipe, tokenizer: Any, *, max_length: int, examples_per_step: int, max_steps: int, epochs: float
) -> Plan:
    """Load, tokenise and order all training examples.

    Args:
        recipe: a checked recipe
        tokenizer: the base's
        max_length: of an example, in tokens
        examples_per_step: per optimizer step over all processes and accumulated batches
        max_steps: optimizer steps; where it is not positive, `epochs` over all examples together, rounded up
        epochs: see max_steps

    Raises:
        RecipeError: with one problem per task whose data cannot be used.
    """
    renderer = Renderer(tokenizer)
    tokenized: dict[str, TokenizedTask] = {}
    problems: list[str] = []
    with progress("tokenizing", len(recipe.tasks)) as advance:
        for section in recipe.tasks:
            advance(0, note=section.name)
            try:
                examples = make_task(section).load("train")
                if section.max_examples is not None and section.max_examples < len(examples):
                    # A fixed random subset: sources are often sorted.
                    keep = mixture.generator(recipe.mixture.seed, "subset", section.name)
                    chosen = np.sort(keep.permutation(len(examples))[: section.max_examples])
                    examples = examples.select(chosen)
                tokenized[section.name] = tokenize_task(section.name, examples, renderer, max_length)
            except DataError as error:
                problems.append(str(error))
            advance()
    if problems:
        raise RecipeError(problems, "data")
    sizes = {name: len(task) for name, task in tokenized.items()}
    epochs_steps = int(np.ceil(epochs * sum(sizes.values()) / examples_per_step))
    steps = max_steps if max_steps > 0 else max(1, epochs_steps)
    if recipe.mixture.strategy == "weights":
        shares = {section.name: section.weight or 0.0 for section in recipe.tasks}
    else:
        shares = {name: float(size) for name, size in sizes.items()}
    table = order(tokenized, shares, steps * examples_per_step, recipe.mixture.seed)
    return Plan(table, tokenized, renderer, examples_per_step, max_length)


def order(tokenized: dict[str, TokenizedTask], shares: dict[str, float], total: int, seed: int) -> pa.Table:
    """The plan's table: `total` examples in the given shares."""
    import pyarrow as pa

    counts = mixture.apportion(total, shares)
    task = mixture.interleave(counts, seed)
    columns = {name: np.empty(total, dtype=np.int64) for name in ("example", "epoch", "tokens", "trained_tokens")}
    for place, (name, count) in enumerate(counts.items()):
        positions, epochs = mixture.draw(name, len(tokenized[name]), count, seed)
        data = tokenized[name].dataset
        lengths = np.fromiter((len(ids) for ids in data["input_ids"]), dtype=np.int64, count=len(data))
        trained = lengths - np.asarray(data["prefix_length"], dtype=np.int64)
        mine = task == place
        columns["example"][mine] = positions
        columns["epoch"][mine] = epochs
        columns["tokens"][mine] = lengths[positions]
        columns["trained_tokens"][mine] = trained[positions]
    return pa.table({"task": task, **columns})
