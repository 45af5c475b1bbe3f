"""The plan: all training rows in order, fixed and inspectable before the first step.

`make_plan` makes it:

recipe ──► Task.load ──► Dataset[Example] ──► tokenize_task ──► TokenizedTask
                                                                  │
recipe.mixture, total ──► shares_of, stream, pack ──────────► Plan.table (one line per segment, rows in order)
                                                                  │
                                                PlanDataset: item k is row k
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multilora.data.collate import PlanDataset
from multilora.data.render import Renderer
from multilora.data.summary import TaskSummary, summarize_tasks
from multilora.data.tokenize import TokenizedTask
from multilora.files import atomic_folder, checksum, write_json

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
    made_from: everything that determines the plan but its length, to compare it with another
    length: what the recipe says about the length, as it says it
    extended_at: steps at which an earlier plan ended and was continued
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
    length: dict[str, Any]
    extended_at: tuple[int, ...] = ()

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
            "length": self.length,
            "extended_at": list(self.extended_at),
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
        """Write the table as an Arrow file, and the summary and `made_from` as `plan.json`; both or neither."""
        import pyarrow.feather as feather

        with atomic_folder(folder) as new_folder:
            table = new_folder / TABLE_FILE
            feather.write_feather(self.table, str(table), compression="uncompressed")
            contents = {**self.as_dict(), "table": checksum(table), "made_from": self.made_from}
            write_json(new_folder / SUMMARY_FILE, contents)
