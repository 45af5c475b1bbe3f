"""Local records of the built-in tasks as rows in the columns that their datasets have on the hub.

lm-eval's task definitions read those columns. A record that already has them is passed on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from multilora.errors import RecordError
from multilora.tasks.mmlu import LETTERS
from multilora.tasks.readers import Record
from multilora.tasks.source import field, list_field, text_field

Row = dict[str, Any]
# (record, where) -> rows; `where` is file and line, for errors
Convert = Callable[[Record, str], Iterator[Row]]

NO_YES = ["False", "True"]


def _class_index(record: Record, names: list[str], where: str) -> int:
    """The label as the hub's index, from the name, the index or true/false."""
    label = field(record, "label", where)
    if isinstance(label, str) and label in names:
        return names.index(label)
    if isinstance(label, int) and 0 <= label < len(names):
        return int(label)
    raise RecordError(f"{where}: label {label!r}, expected one of {names} or 0 to {len(names) - 1}", "unknown label")


def _columns(*names: str, classes: list[str]) -> Convert:
    """Rows with text columns and the label."""

    def convert(record: Record, where: str) -> Iterator[Row]:
        row: Row = {name: text_field(record, name, where) for name in names}
        yield {**row, "label": _class_index(record, classes, where)}

    return convert


def _wic(record: Record, where: str) -> Iterator[Row]:
    row: Row = {name: text_field(record, name, where) for name in ("word", "sentence1", "sentence2")}
    spans = {name: _integer(record, name, where) for name in ("start1", "end1", "start2", "end2")}
    yield {**row, **spans, "label": _class_index(record, NO_YES, where)}


def _integer(record: Record, name: str, where: str) -> int:
    value = field(record, name, where)
    if isinstance(value, bool) or not isinstance(value, int):
        raise RecordError(f"{where}: field {name!r} is {value!r}, expected an integer", f"field {name!r} is no integer")
    return value


def _multirc(record: Record, where: str) -> Iterator[Row]:
    """One row per proposed answer; the official file nests them in passages and questions."""
    if "paragraph" in record:
        row: Row = {name: text_field(record, name, where) for name in ("paragraph", "question", "answer")}
        yield {**row, "idx": field(record, "idx", where), "label": _class_index(record, NO_YES, where)}
        return
    passage = field(record, "passage", where)
    for question in list_field(passage, "questions", where):
        for answer in list_field(question, "answers", where):
            yield {
                "paragraph": text_field(passage, "text", where),
                "question": text_field(question, "question", where),
                "answer": text_field(answer, "text", where),
                "idx": {
                    "paragraph": field(record, "idx", where),
                    "question": field(question, "idx", where),
                    "answer": field(answer, "idx", where),
                },
                "label": _class_index(answer, NO_YES, where),
            }


def _record(record: Record, where: str) -> Iterator[Row]:
    """One row per query of ReCoRD; entities and answers are sorted sets, as on the hub."""
    passage = field(record, "passage", where)
    if isinstance(passage, str):
        lists = {name: list_field(record, name, where) for name in ("entities", "answers")}
        yield {"passage": passage, "query": text_field(record, "query", where), **lists}
        return
    text = text_field(passage, "text", where)
    spans = list_field(passage, "entities", where)
    entities = sorted({text[_integer(span, "start", where) : _integer(span, "end", where) + 1] for span in spans})
    for query in list_field(record, "qas", where):
        answers = {text_field(answer, "text", where) for answer in list_field(query, "answers", where)}
        query_text = text_field(query, "query", where)
        yield {"passage": text, "query": query_text, "entities": entities, "answers": sorted(answers)}


def _wsc_fixed(record: Record, where: str) -> Iterator[Row]:
    """The hub's `wsc.fixed`: span texts that differ from the text in case, a final stop or a line break are fixed."""
    target = record.get("target", record)
    text = text_field(record, "text", where)
    row: Row = {"text": text}
    for span in ("span1", "span2"):
        index, span_text = _integer(target, f"{span}_index", where), text_field(target, f"{span}_text", where)
        if span_text not in text:
            words = text.split()
            if not 0 <= index < len(words):
                raise RecordError(
                    f"{where}: {span}_index is {index}, expected 0 to {len(words) - 1}", "index outside of the text"
                )
            first = span_text[:1].lower() if words[index][0].islower() else span_text[:1].upper()
            fixed = (first + span_text[1:]).rstrip(".").replace("\n", " ")
            span_text = fixed if fixed in text else span_text
        row |= {f"{span}_index": index, f"{span}_text": span_text}
    yield {**row, "label": _class_index(record, NO_YES, where)}


def _gsm8k(record: Record, where: str) -> Iterator[Row]:
    yield {name: text_field(record, name, where) for name in ("question", "answer")}


def _science(stem: str) -> Convert:
    """Rows of ARC and OpenBookQA, whose question is in the column `stem`."""

    def convert(record: Record, where: str) -> Iterator[Row]:
        question = record.get("question")
        if isinstance(question, dict):  # the official files
            text, choices = text_field(question, "stem", where), list_field(question, "choices", where)
            columns = {name: [text_field(choice, name, where) for choice in choices] for name in ("text", "label")}
        else:
            text, choices = text_field(record, stem, where), field(record, "choices", where)
            columns = {name: list(map(str, list_field(choices, name, where))) for name in ("text", "label")}
        answer = text_field(record, "answerKey", where)
        if answer.strip() not in columns["label"]:
            raise RecordError(
                f"{where}: answerKey {answer!r} is not one of the labels {columns['label']}", "label out of range"
            )
        yield {stem: text, "choices": columns, "answerKey": answer}

    return convert


def mmlu(record: Record, where: str) -> Iterator[Row]:
    """A row of MMLU, whose answer on the hub is an index."""
    answer = field(record, "answer", where)
    index = LETTERS.index(answer) if answer in LETTERS else answer
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(LETTERS):
        raise RecordError(f"{where}: answer {answer!r}, expected a letter A to D or 0 to 3", "unknown label")
    texts = {name: text_field(record, name, where) for name in ("question", "subject")}
    yield {**texts, "choices": list(map(str, list_field(record, "choices", where))), "answer": index}


CONVERT: dict[str, Convert] = {
    "gsm8k": _gsm8k,
    "arc/easy": _science("question"),
    "arc/challenge": _science("question"),
    "openbookqa": _science("question_stem"),
    "superglue/boolq": _columns("question", "passage", classes=NO_YES),
    "superglue/cb": _columns("premise", "hypothesis", classes=["entailment", "contradiction", "neutral"]),
    "superglue/copa": _columns("premise", "choice1", "choice2", "question", classes=["choice1", "choice2"]),
    "superglue/multirc": _multirc,
    "superglue/record": _record,
    "superglue/rte": _columns("premise", "hypothesis", classes=["entailment", "not_entailment"]),
    "superglue/wic": _wic,
    "superglue/wsc": _wsc_fixed,
}
