"""GSM8K: grade-school word problems with worked steps (Cobbe et al. 2021, arXiv 2110.14168).

Records: question, answer; the answer's steps hold calculator notes `<<48/2=24>>` and end with `#### 72`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from multilora.errors import RecordError
from multilora.example import Example, free_example
from multilora.tasks.readers import Record
from multilora.tasks.record_task import RecordTask
from multilora.tasks.source import Layout, text_field

_CALCULATOR_NOTE = re.compile(r"<<[^<>]*>>")
_FINAL = re.compile(r"####\s*(-?[\d.,]+)")


class Gsm8k(RecordTask):
    """Trained on the steps without the calculator notes; scored by the number behind `####`."""

    kind = "generate"
    layout = Layout("hub:openai/gsm8k", ("train.jsonl", "test.jsonl"), "main", ("train", "test"))

    def examples(self, record: Record, where: str) -> Iterator[Example]:
        """One example; RecordError if the answer has no final number."""
        response = _CALCULATOR_NOTE.sub("", text_field(record, "answer", where))
        answer = self.final_answer(response)
        if not answer:
            raise RecordError(f"{where}: the answer has no line '#### number'", "no final number")
        yield free_example(text_field(record, "question", where), response, answer)

    def final_answer(self, text: str) -> str:
        """The first number behind `####`, without thousands commas and a final full stop; empty if there is none."""
        match = _FINAL.search(text)
        return match.group(1).replace(",", "").rstrip(".") if match else ""
