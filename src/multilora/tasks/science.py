"""Science questions of the Allen Institute: ARC (Clark et al. 2018, arXiv 1803.05457) and OpenBookQA (Mihaylov et al.
2018, arXiv 1809.02789); accuracy of the chosen letter.

Official JSONL: id, question (stem, choices of text and label), answerKey. The hub has the stem at the top (`question`
in ARC, `question_stem` in OpenBookQA) and choices as lists of text and of label. Labels are letters or 1 to 5.
"""

from __future__ import annotations

from collections.abc import Iterator

from multilora.errors import RecordError
from multilora.recipe import TaskSection
from multilora.tasks.base import Example
from multilora.tasks.from_records import RecordTask
from multilora.tasks.multiple_choice import lettered_example
from multilora.tasks.readers import Record
from multilora.tasks.source import Source, field, list_field, text_field


class ScienceTask(RecordTask):
    """A stem with three to five choices; they are lettered from A whatever their labels are."""

    def examples(self, record: Record, where: str) -> Iterator[Example]:
        """One example; RecordError if answerKey is none of the labels."""
        question = record.get("question")
        if isinstance(question, dict):
            stem = text_field(question, "stem", where)
            pairs = [
                (text_field(choice, "label", where), text_field(choice, "text", where))
                for choice in list_field(question, "choices", where)
            ]
        else:
            stem = text_field(record, "question_stem" if "question_stem" in record else "question", where)
            choices = field(record, "choices", where)
            texts, labels = (list_field(choices, name, where) for name in ("text", "label"))
            if len(texts) != len(labels):
                raise RecordError(
                    f"{where}: {len(texts)} choices and {len(labels)} labels, expected as many", "number of choices"
                )
            pairs = [(str(label), str(text)) for label, text in zip(labels, texts, strict=True)]
        names = [label for label, _ in pairs]
        answer = text_field(record, "answerKey", where)
        if answer not in names:
            raise RecordError(
                f"{where}: answerKey {answer!r} is none of the labels {names}; mend or remove the record",
                "label out of range",
            )
        yield lettered_example(stem, [text for _, text in pairs], names.index(answer), where)


def arc(section: TaskSection) -> ScienceTask:
    """`arc/easy` or `arc/challenge`, from a folder with ARC-Easy-Train.jsonl and ARC-Easy-Test.jsonl, or the hub."""
    name = {"arc/easy": "ARC-Easy", "arc/challenge": "ARC-Challenge"}[section.name]
    source = Source(
        section.path or "hub:allenai/ai2_arc",
        section.eval_path,
        split=section.split,
        eval_split=section.eval_split,
        files=(f"{name}-Train.jsonl", f"{name}-Test.jsonl"),
        hub_config=name,
        hub_splits=("train", "test"),
    )
    return ScienceTask(section, "choice", source)


def openbookqa(section: TaskSection) -> ScienceTask:
    """OpenBookQA without its book, from a folder with train.jsonl and test.jsonl (the official Main), or the hub."""
    source = Source(
        section.path or "hub:allenai/openbookqa",
        section.eval_path,
        split=section.split,
        eval_split=section.eval_split,
        files=("train.jsonl", "test.jsonl"),
        hub_config="main",
        hub_splits=("train", "test"),
    )
    return ScienceTask(section, "choice", source)
