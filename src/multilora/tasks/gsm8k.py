"""GSM8K: grade-school word problems with worked steps (Cobbe et al. 2021, arXiv 2110.14168).

Records: question, answer; the answer's steps hold calculator notes `<<48/2=24>>` and end with `#### 72`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from multilora.errors import RecordError
from multilora.recipe import TaskSection
from multilora.tasks.base import Example, free_example
from multilora.tasks.from_records import RecordTask
from multilora.tasks.readers import Record
from multilora.tasks.source import Source, text_field

_CALCULATOR_NOTE = re.compile(r"<<[^<>]*>>")
_FINAL = re.compile(r"####\s*(-?[\d.,]+)")


class Gsm8k(RecordTask):
    """Trained on the steps without the calculator notes; scored by the number behind `####`."""

    def __init__(self, section: TaskSection) -> None:
        source = Source(
            section.path or "hub:openai/gsm8k",
            section.eval_path,
            split=section.split,
            eval_split=section.eval_split,
            files=("train.jsonl", "test.jsonl"),
            hub_config="main",
            hub_splits=("train", "test"),
        )
        super().__init__(section, "generate", source)

    def examples(self, record: Record, where: str) -> Iterator[Example]:
        """One example; RecordError if the answer has no final number."""
        response = _CALCULATOR_NOTE.sub("", text_field(record, "answer", where))
        answer = self.final_answer(response)
        if not answer:
            raise RecordError(f"{where}: the answer has no line '#### number'", "no final number")
        yield free_example(text_field(record, "question", where), response, answer)

    def final_answer(self, text: str) -> str:
        """The first number behind `####`, without thousands commas and a final full stop; empty if there is none."""
        found = _FINAL.search(text)
        return found.group(1).replace(",", "").rstrip(".") if found else ""
