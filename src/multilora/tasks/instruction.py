"""Alpaca and Dolly: open instructions with an optional input, scored only by the loss of the reference response.

Alpaca (Taori et al. 2023): a JSON list of instruction, input, output.
Dolly (Conover et al. 2023): JSONL of instruction, context, response.
"""

from __future__ import annotations

from collections.abc import Iterator

from multilora.errors import RecordError
from multilora.example import Example, free_example
from multilora.recipe.schema import TaskSection
from multilora.tasks.readers import Record
from multilora.tasks.record_task import RecordTask
from multilora.tasks.source import Layout, Source, field

EMPTY_RESPONSE = "empty response"


class InstructionTask(RecordTask):
    """An instruction, an optional context below it, and a reference response.

    Records without a response are dropped and counted; the original Alpaca has some.
    """

    kind = "loss"
    always_dropped = frozenset({EMPTY_RESPONSE})

    def __init__(self, section: TaskSection, layout: Layout, context: str, response: str) -> None:
        super().__init__(section, Source(section, layout))
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
    return InstructionTask(section, Layout("hub:tatsu-lab/alpaca", ("alpaca_data.json", None)), "input", "output")


def dolly(section: TaskSection) -> InstructionTask:
    """Dolly from `databricks-dolly-15k.jsonl` (or any file of that format), or the hub."""
    layout = Layout("hub:databricks/databricks-dolly-15k", ("databricks-dolly-15k.jsonl", None))
    return InstructionTask(section, layout, "context", "response")
