"""Alpaca and Dolly: open instructions with an optional input; scored by the loss of the reference response only.

Alpaca (Taori et al. 2023): a JSON list of instruction, input, output.
Dolly (Conover et al. 2023): JSONL of instruction, context, response.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from multilora.recipe import TaskSection
from multilora.tasks.base import Example, Split, free_example
from multilora.tasks.from_records import RecordTask
from multilora.tasks.source import Record, Source, field

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


class InstructionTask(RecordTask):
    """An instruction, further text below it if there is any, and a reference response.

    Records without a response, of which the original Alpaca has some, are left out and their number is logged.
    """

    def __init__(self, section: TaskSection, source: Source, context: str, response: str) -> None:
        super().__init__(section.name, "none", source, section.holdout)
        self.context, self.response = context, response
        self.left_out = 0

    def load(self, split: Split) -> Dataset:
        """All examples of a split; see `Task.load`."""
        self.left_out = 0
        dataset = super().load(split)
        if self.left_out:
            logger.warning("task %r: left out %d records without a response", self.name, self.left_out)
        return dataset

    def examples(self, record: Record, where: str) -> Iterator[Example]:
        """One example, or none if the response is empty."""
        prompt = str(field(record, "instruction", where) or "").strip()
        response = str(field(record, self.response, where) or "").strip()
        if not response:
            self.left_out += 1
            return
        context = str(record.get(self.context) or "").strip()
        if context:
            prompt += f"\n\n{context}"
        yield free_example(prompt, response)


def alpaca(section: TaskSection) -> InstructionTask:
    """Alpaca from `alpaca_data.json` (or any file of that format), or the hub."""
    source = Source(section.path or "hub:tatsu-lab/alpaca", section.eval_path, files=("alpaca_data.json", None))
    return InstructionTask(section, source, "input", "output")


def dolly(section: TaskSection) -> InstructionTask:
    """Dolly from `databricks-dolly-15k.jsonl` (or any file of that format), or the hub."""
    source = Source(
        section.path or "hub:databricks/databricks-dolly-15k",
        section.eval_path,
        files=("databricks-dolly-15k.jsonl", None),
    )
    return InstructionTask(section, source, "context", "response")
