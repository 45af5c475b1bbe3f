"""ARC and OpenBookQA: science questions, scored by the accuracy of the chosen letter.

ARC is Clark et al. 2018, arXiv 1803.05457; OpenBookQA is Mihaylov et al. 2018, arXiv 1809.02789.

The official JSONL has question (stem, and choices with text and label) and answerKey. The hub has the stem at the top
level (`question` in ARC, `question_stem` in OpenBookQA) and the choices as a list of texts and a list of labels. The
label of a choice is a letter or a number from 1 to 5.
"""

from __future__ import annotations

from collections.abc import Iterator

from multilora.errors import RecordError
from multilora.example import Example
from multilora.recipe.schema import TaskSection
from multilora.tasks.multiple_choice import lettered_example
from multilora.tasks.readers import Record
from multilora.tasks.record_task import RecordTask
from multilora.tasks.source import Layout, Source, field, list_field, text_field


class ScienceTask(RecordTask):
    """A stem with three to five choices, which are lettered from A whatever their labels are."""

    kind = "choice"

    def examples(self, record: Record, where: str) -> Iterator[Example]:
        """One example; RecordError if answerKey is not one of the labels."""
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
            texts, names = (list_field(choices, name, where) for name in ("text", "label"))
            if len(texts) != len(names):
                raise RecordError(
                    f"{where}: {len(texts)} choices and {len(names)} labels, expected a label per choice",
                    "number of choices",
                )
            pairs = [(str(name), str(text)) for name, text in zip(names, texts, strict=True)]
        names = [name for name, _ in pairs]
        answer = text_field(record, "answerKey", where)
        if answer not in names:
            raise RecordError(
                f"{where}: answerKey {answer!r} is not one of the labels {names}; fix or remove the record",
                "label out of range",
            )
        yield lettered_example(stem, [text for _, text in pairs], names.index(answer), where)


def arc(section: TaskSection) -> ScienceTask:
    """`arc/easy` or `arc/challenge`, from a folder with ARC-Easy-Train.jsonl and ARC-Easy-Test.jsonl, or the hub."""
    name = {"arc/easy": "ARC-Easy", "arc/challenge": "ARC-Challenge"}[section.name]
    files = (f"{name}-Train.jsonl", f"{name}-Test.jsonl")
    return ScienceTask(section, Source(section, Layout("hub:allenai/ai2_arc", files, name, ("train", "test"))))


def openbookqa(section: TaskSection) -> ScienceTask:
    """OpenBookQA without its book, from a folder with train.jsonl and test.jsonl (the official Main), or the hub."""
    layout = Layout("hub:allenai/openbookqa", ("train.jsonl", "test.jsonl"), "main", ("train", "test"))
    return ScienceTask(section, Source(section, layout))
