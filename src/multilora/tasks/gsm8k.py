"""GSM8K: grade-school word problems with worked steps (Cobbe et al. 2021, arXiv 2110.14168).

A record has a question and an answer. The answer is a solution with calculator annotations such as `<<48/2=24>>`; its
last line is `#### 72`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from multilora.errors import RecordError
from multilora.example import Example, free_example
from multilora.metrics import METRICS, Metric
from multilora.metrics.formulas import last_number, number_text, numbers_in
from multilora.tasks.readers import Record
from multilora.tasks.record_task import RecordTask
from multilora.tasks.source import Layout, text_field

_CALCULATOR_ANNOTATION = re.compile(r"<<[^<>]*>>")
_MARKER = "####"
_STRICT = re.compile(r"#### (-?[0-9.,]+)")


def strict_match(references: Sequence[str], text: str) -> float:
    """1 if the text has the reference in the form `#### 72`: `strict-match` of lm-evaluation-harness's gsm8k."""
    match = _STRICT.search(text)
    return float(match is not None and match.group(1).replace(",", "").removesuffix(".") in references)


class Gsm8k(RecordTask):
    """Trained on the solution without the annotations, scored by the final number.

    `exact_match` reads the final number leniently, see `final_answer`; `strict_match` accepts only `#### 72`.
    """

    kind = "generate"
    metrics: Sequence[str] | Mapping[str, Metric] | None = {
        "exact_match": METRICS["exact_match"],
        "strict_match": Metric(strict_match, whole_text=True),
    }
    layout = Layout("hub:openai/gsm8k", ("train.jsonl", "test.jsonl"), "main", ("train", "test"))

    def examples(self, record: Record, where: str) -> Iterator[Example]:
        """One example; RecordError if the answer has no final number."""
        response = _CALCULATOR_ANNOTATION.sub("", text_field(record, "answer", where))
        answer = self.final_answer(response)
        if _MARKER not in response or not answer:
            raise RecordError(f"{where}: the answer has no line '#### number'", "no final number")
        yield free_example(text_field(record, "question", where), response, answer)

    def final_answer(self, text: str) -> str:
        """The first number after `####`, or the last number of a text without `####`; empty if there is none.

        The number has one form: `$1,000.` is `1000` and `2.50` is `2.5`, see `numbers_in` and `number_text`.
        """
        _, marker, end = text.partition(_MARKER)
        number = next(numbers_in(end), None) if marker else last_number(text)
        return "" if number is None else number_text(number)
