"""The plan: every row of training in its order, settled and readable before the first step.

recipe ──► Task.load ──► Dataset[Example] ──► tokenize_task ──► TokenizedTask
                                                                  │
recipe.mixture, total ──► shares_of, stream, pack ──────────► Plan.table (one line per segment, rows in order)
                                                                  │
                                                PlanDataset: item k of training is row k
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
from multilora.data.rows import Wanted, amount_of, homogeneous, mixed, per_draw, shuffled, unit_cost
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
class TaskSummary:
    """What the plan takes from one task. Counts are over the whole plan, repeats included.

    asked, share: of the mixture, in its unit; epochs: times over the task's examples; truncated, cut, dropped: of the
    task's examples (prompts that lost their start, responses that lost their end, examples that do not fit);
    dropped_in_source: reason -> records; length: quantiles of the task's examples, in tokens.
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


@dataclass(frozen=True)
class Plan:
    """The order of a run's training rows and the tokens behind it.

    table columns: row; task (place in `task_names`), example (row of the task's tokenised dataset), epoch (of that
    task), tokens, trained_tokens. Without packing every row is one example. `rows_per_step` counts all processes and
    accumulated batches. shares: asked of each task, in `unit`. made_from: what decides on the plan, for comparison.
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
        """The tasks, in the recipe's order."""
        return list(self.tokenized)

    @property
    def rows(self) -> int:
        """Rows of the whole training."""
        return int(self.table["row"][-1].as_py()) + 1

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.rows // self.rows_per_step

    def __len__(self) -> int:
        return self.rows

    @property
    def fill_rate(self) -> float:
        """Share of a row's room that holds tokens: of `max_length` if packed, else of the longest in each step."""
        tokens = self.table["tokens"].to_numpy()
        if self.packed:
            return float(tokens.sum() / (self.rows * self.max_length))
        steps = tokens.reshape(-1, self.rows_per_step)
        return float(tokens.sum() / (steps.max(axis=1).sum() * self.rows_per_step))

    def dataset(self) -> PlanDataset:
        """The training rows in order."""
        row, task, example = (self.table[name].to_numpy() for name in ("row", "task", "example"))
        return PlanDataset(row, task, example, [task.dataset for task in self.tokenized.values()])

    def summary(self) -> list[TaskSummary]:
        """One entry per task."""
        columns = {name: self.table[name].to_numpy() for name in ("task", "tokens", "trained_tokens")}
        unit = np.ones(len(columns["task"])) if self.unit == "examples" else columns[self.unit]
        entries = []
        for place, (name, task) in enumerate(self.tokenized.items()):
            mine = columns["task"] == place
            count = int(mine.sum())
            lengths = task.column("length")
            points = {"median": 0.5, "90 %": 0.9, "99 %": 0.99, "longest": 1.0}
            entries.append(
                TaskSummary(
                    name=name,
                    available=len(task),
                    examples=count,
                    asked=self.shares[name],
                    share=float(unit[mine].sum() / unit.sum()),
                    epochs=count / len(task),
                    tokens=int(columns["tokens"][mine].sum()),
                    trained_tokens=int(columns["trained_tokens"][mine].sum()),
                    truncated=task.truncated,
                    cut=task.cut,
                    dropped=task.dropped,
                    dropped_in_source=task.dropped_in_source,
                    length={key: int(np.quantile(lengths, point, method="higher")) for key, point in points.items()},
                )
            )
        return entries

    def as_dict(self) -> dict[str, Any]:
        """The summary as plain values."""
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

    def rendered(self, task: str, position: int = 0) -> list[tuple[str, bool]]:
        """A tokenised example as stretches of text, special tokens included, with whether each is trained on."""
        example = self.tokenized[task].dataset[position]
        decode = self.renderer.tokenizer.decode
        ids, spans = example["input_ids"], example["spans"]
        edges = [0, *spans, len(ids)]
        stretches = [(edges[i], edges[i + 1], i % 2 == 1) for i in range(len(edges) - 1)]
        return [(decode(ids[start:end]), trained) for start, end, trained in stretches if end > start]

    def save(self, folder: Path) -> None:
        """Write the table as an Arrow file, and `plan.json` with the summary and what the plan was made from."""
        import pyarrow.feather as feather

        folder.mkdir(parents=True, exist_ok=True)
        feather.write_feather(self.table, str(folder / TABLE_FILE), compression="uncompressed")
        write_json(folder / SUMMARY_FILE, {**self.as_dict(), "made_from": self.made_from})

    def check_same(self, folder: Path) -> None:
        """Compare with a plan saved before.

        Raises:
            RunDirectoryError: recipe or data have changed since; says what differs.
        """
        try:
            saved = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))["made_from"]
        except (OSError, KeyError, json.JSONDecodeError) as error:
            raise RunDirectoryError(f"{folder / SUMMARY_FILE}: no readable plan ({error})") from None
        found = changes(saved, json.loads(json.dumps(self.made_from)))
        if found:
            raise RunDirectoryError(
                f"{folder}: the plan saved there was made from something else:\n  "
                + "\n  ".join(found)
                + "\nrestore it to go on with this run, or start another one in a new output_dir"
            )


def make_plan(
    recipe: Recipe, tokenizer: Any, *, max_length: int, rows_per_step: int, max_steps: int, epochs: float
) -> Plan:
    """Load, tokenise, mix and pack all training examples.

    Args:
        recipe: a checked recipe
        tokenizer: the base's
        max_length: of a row, in tokens
        rows_per_step: per optimizer step over all processes and accumulated batches
        max_steps: optimizer steps; where it is not positive, the mixture's total or `epochs` over all examples
            together, rounded up to whole steps
        epochs: see max_steps

    Raises:
        RecipeError: with one problem per task whose data cannot be used.
    """
    section, data = recipe.mixture, recipe.data
    renderer = Renderer(tokenizer, data.template)
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
    wanted = Wanted(
        steps=max_steps if max_steps > 0 else None,
        amount=amount_of(section, draws, lengths, list(shares.values()), epochs),
        rows_per_step=rows_per_step,
        capacity=max_length if data.packing else None,
    )
    make = homogeneous if section.homogeneous_batches else mixed
    row, stream = make(draws, lengths, list(shares.values()), wanted, section.seed)
    if section.order == "shuffled":
        row = shuffled(row, rows_per_step if section.homogeneous_batches else 1, section.seed)
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
                    # A fixed random subset: sources are often sorted.
                    keep = mixture.generator(recipe.mixture.seed, "subset", section.name)
                    chosen = np.sort(keep.permutation(len(examples))[: section.max_examples])
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

    sizes = [np.arange(source.size, dtype=np.int64) for source in draws]
    tasks = list(tokenized.values())
    order = np.argsort(row, kind="stable")
    epoch_length = np.array([source.size for source in draws], dtype=np.int64)
    columns = {
        "row": row,
        "task": stream.task,
        "example": per_draw(stream, draws, sizes),
        "epoch": stream.draw // epoch_length[stream.task],
        "tokens": per_draw(stream, draws, [task.column("length") for task in tasks]),
        "trained_tokens": per_draw(stream, draws, [task.column("trained_tokens") for task in tasks]),
    }
    return pa.table({name: values[order] for name, values in columns.items()})
