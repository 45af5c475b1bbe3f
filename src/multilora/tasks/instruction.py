"""Alpaca and Dolly: open instructions with an optional input; scored by the loss of the reference response only.

Alpaca (Taori et al. 2023): a JSON list of instruction, input, output.
Dolly (Conover et al. 2023): JSONL of instruction, context, response.
"""

from __future__ import annotations

from collections.abc import Iterator

from multilora.errors import RecordError
from multilora.recipe import TaskSection
from multilora.tasks.base import Example, free_example
from multilora.tasks.from_records import RecordTask
from multilora.tasks.readers import Record
from multilora.tasks.source import Source, field

EMPTY_RESPONSE = "empty response"


class InstructionTask(RecordTask):
    """An instruction, further text below it if there is any, and a reference response.

    Records without a response, of which the original Alpaca has some, are left out and counted.
    """

    left_out = frozenset({EMPTY_RESPONSE})

    def __init__(self, section: TaskSection, source: Source, context: str, response: str) -> None:
        super().__init__(section, "loss", source)
        self.context, self.response = context, response

    def examples(self, record: Record, where: str) -> Iterator[Example]:
        """One example; RecordError if the response is empty."""
        prompt = str(field(record, "instruction", where) or "").strip()
        response = str(field(record, self.response, where) or "").strip()
        if not response:
            raise RecordError(f"{where}: field {self.response!r} is empty", EMPTY_RESPONSE)
        context = str(record.get(self.context) or "").strip()
        if context:
            prompt += f"\n\n{context}"
        yield free_example(prompt, response)


def alpaca(section: TaskSection) -> InstructionTask:
    """Alpaca from `alpaca_data.json` (or any file of that format), or the hub."""
    source = Source(
        section.path or "hub:tatsu-lab/alpaca",
        section.eval_path,
        split=section.split,
        eval_split=section.eval_split,
        files=("alpaca_data.json", None),
    )
    return InstructionTask(section, source, "input", "output")


def dolly(section: TaskSection) -> InstructionTask:
    """Dolly from `databricks-dolly-15k.jsonl` (or any file of that format), or the hub."""
    source = Source(
        section.path or "hub:databricks/databricks-dolly-15k",
        section.eval_path,
        split=section.split,
        eval_split=section.eval_split,
        files=("databricks-dolly-15k.jsonl", None),
    )
    return InstructionTask(section, source, "context", "response")
