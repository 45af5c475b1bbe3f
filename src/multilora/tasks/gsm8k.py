"""GSM8K: grade-school word problems with worked steps (Cobbe et al. 2021, arXiv 2110.14168).

A record has a question and an answer. The answer is a solution with calculator annotations such as `<<48/2=24>>`; its
last line is `#### 72`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from multilora.errors import RecordError
from multilora.example import Example, free_example
from multilora.tasks.readers import Record
from multilora.tasks.record_task import RecordTask
from multilora.tasks.source import Layout, text_field

_CALCULATOR_ANNOTATION = re.compile(r"<<[^<>]*>>")
_FINAL = re.compile(r"####\s*(-?[\d.,]+)")


class Gsm8k(RecordTask):
    """Trained on the solution without the annotations, scored by the number after `####`."""

    kind = "generate"
    layout = Layout("hub:openai/gsm8k", ("train.jsonl", "test.jsonl"), "main", ("train", "test"))

    def examples(self, record: Record, where: str) -> Iterator[Example]:
        """One example; RecordError if the answer has no final number."""
        response = _CALCULATOR_ANNOTATION.sub("", text_field(record, "answer", where))
        answer = self.final_answer(response)
        if not answer:
            raise RecordError(f"{where}: the answer has no line '#### number'", "no final number")
        yield free_example(text_field(record, "question", where), response, answer)

    def final_answer(self, text: str) -> str:
        """The first number after `####`, without thousands separators and final full stop; empty if there is none."""
        match = _FINAL.search(text)
        return match.group(1).replace(",", "").rstrip(".") if match else ""
