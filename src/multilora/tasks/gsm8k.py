"""GSM8K: grade-school word problems with worked steps (Cobbe et al. 2021, arXiv 2110.14168).

Records: question, answer; the answer's steps hold calculator notes `<<48/2=24>>` and end with `#### 72`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from multilora.errors import DataError
from multilora.recipe import TaskSection
from multilora.tasks.base import Example, free_example
from multilora.tasks.from_records import RecordTask
from multilora.tasks.source import Record, Source, field

_CALCULATOR_NOTE = re.compile(r"<<[^<>]*>>")
_FINAL = re.compile(r"####\s*(-?[\d.,]+)")


class Gsm8k(RecordTask):
    """Trained on the steps without the calculator notes; scored by the number behind `####`."""

    def __init__(self, section: TaskSection) -> None:
        source = Source(
            section.path or "hub:openai/gsm8k",
            section.eval_path,
            files=("train.jsonl", "test.jsonl"),
            hub_config="main",
            hub_splits=("train", "test"),
        )
        super().__init__(section.name, "exact_match", source, section.holdout)

    def examples(self, record: Record, where: str) -> Iterator[Example]:
        """One example; DataError if the answer has no final number."""
        response = _CALCULATOR_NOTE.sub("", str(field(record, "answer", where)))
        answer = self.final_answer(response)
        if not answer:
            raise DataError(f"{where}: the answer has no line '#### number'")
        yield free_example(str(field(record, "question", where)), response, answer)

    def final_answer(self, text: str) -> str:
        """The first number behind `####`, without thousands commas and a final full stop; empty if there is none."""
        found = _FINAL.search(text)
        return found.group(1).replace(",", "").rstrip(".") if found else ""
