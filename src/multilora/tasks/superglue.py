"""The eight tasks of SuperGLUE (Wang et al. 2019, arXiv 1905.00537), from the official JSONL or the hub.

The official files and the hub's `aps/super_glue` differ in nesting and in labels (words against numbers); every
function here reads both. All eight are choices, scored by accuracy over single answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from multilora.errors import DataError
from multilora.recipe import TaskSection
from multilora.tasks.base import Example, choice_example
from multilora.tasks.from_records import RecordTask
from multilora.tasks.source import Record, Source, field

YES_NO = ["yes", "no"]


def _index(record: Record, names: list[str], where: str) -> int:
    """The label as a position in `names`, whether stored as a word or as a number (hub)."""
    label = field(record, "label", where)
    if isinstance(label, str) and label in names:
        return names.index(label)
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(names):
        return label
    raise DataError(f"{where}: label {label!r}, expected one of {names} or 0 to {len(names) - 1}")


def _truth(label: Any, where: str) -> int:
    """Position in YES_NO of a label stored as true/false or 1/0."""
    if label in (0, 1):  # True == 1
        return 0 if label else 1
    raise DataError(f"{where}: label {label!r}, expected true or false (or 1 or 0)")


def boolq(record: Record, where: str) -> Iterator[Example]:
    """BoolQ: a yes/no question about a passage."""
    question = str(field(record, "question", where)).strip().rstrip("?")
    prompt = f"{field(record, 'passage', where)}\n\nQuestion: {question}? Answer yes or no."
    yield choice_example(prompt, YES_NO, _truth(field(record, "label", where), where))


def cb(record: Record, where: str) -> Iterator[Example]:
    """CommitmentBank: does the text entail, contradict, or leave open the statement?"""
    prompt = (
        f"{field(record, 'premise', where)}\n\nStatement: {field(record, 'hypothesis', where)}\n"
        "Is the statement true, false or undecided, given the text?"
    )
    names = ["entailment", "contradiction", "neutral"]
    yield choice_example(prompt, ["true", "false", "undecided"], _index(record, names, where))


def copa(record: Record, where: str) -> Iterator[Example]:
    """COPA: the more plausible cause or effect of two."""
    kind = str(field(record, "question", where))
    if kind not in ("cause", "effect"):
        raise DataError(f"{where}: question {kind!r}, expected 'cause' or 'effect'")
    asked = "What was the cause of this?" if kind == "cause" else "What happened as a result?"
    choices = [str(field(record, name, where)) for name in ("choice1", "choice2")]
    listed = "\n".join(f"- {choice}" for choice in choices)
    prompt = f"{field(record, 'premise', where)}\n{asked}\n{listed}"
    yield choice_example(prompt, choices, _index(record, ["0", "1"], where))


def multirc(record: Record, where: str) -> Iterator[Example]:
    """MultiRC: is this candidate answer right? One example per candidate; the official file nests them."""
    if "paragraph" in record:  # the hub's flat rows
        candidates = [(record["paragraph"], record["question"], record["answer"], record["label"])]
    else:
        passage = field(record, "passage", where)
        candidates = [
            (passage["text"], question["question"], answer["text"], answer["label"])
            for question in passage["questions"]
            for answer in question["answers"]
        ]
    for text, question, answer, label in candidates:
        asked = f"Question: {question}\nProposed answer: {answer}\nIs the proposed answer correct? Answer yes or no."
        prompt = f"{text}\n\n{asked}"
        yield choice_example(prompt, YES_NO, _truth(label, where))


def record_(record: Record, where: str) -> Iterator[Example]:
    """ReCoRD: which entity of the passage fills the gap? Every official answer counts as right."""
    passage = field(record, "passage", where)
    if isinstance(passage, str):  # the hub
        text, entities = passage, list(field(record, "entities", where))
        queries = [(field(record, "query", where), list(field(record, "answers", where)))]
    else:
        text = passage["text"]
        # Spans are inclusive; one name may occur several times.
        entities = [text[span["start"] : span["end"] + 1] for span in passage["entities"]]
        queries = [(qa["query"], [a["text"] for a in qa.get("answers", [])]) for qa in record["qas"]]
    choices = list(dict.fromkeys(entities))
    text = re.sub(r"\n?@highlight\n", "\n- ", text)
    for query, answers in queries:
        right = [choices.index(answer) for answer in dict.fromkeys(answers) if answer in choices]
        if not right:
            raise DataError(f"{where}: none of the answers {answers} is an entity of the passage")
        listed = ", ".join(choices)
        prompt = f"{text}\n\nWhich name replaces @placeholder?\n{query}\nNames: {listed}"
        yield choice_example(prompt, choices, right[0], also_right=right[1:])


def rte(record: Record, where: str) -> Iterator[Example]:
    """RTE: does the text entail the statement?"""
    prompt = (
        f"{field(record, 'premise', where)}\n\nStatement: {field(record, 'hypothesis', where)}\n"
        "Does the statement follow from the text? Answer yes or no."
    )
    yield choice_example(prompt, YES_NO, _index(record, ["entailment", "not_entailment"], where))


def wic(record: Record, where: str) -> Iterator[Example]:
    """WiC: is a word used in the same sense in two sentences?"""
    prompt = (
        f"1. {field(record, 'sentence1', where)}\n2. {field(record, 'sentence2', where)}\n\n"
        f'Does the word "{field(record, "word", where)}" have the same meaning in both sentences? Answer yes or no.'
    )
    yield choice_example(prompt, YES_NO, _truth(field(record, "label", where), where))


def wsc(record: Record, where: str) -> Iterator[Example]:
    """WSC: does a pronoun mean a given noun?"""
    target = record.get("target", record)
    prompt = (
        f"{field(record, 'text', where)}\n\n"
        f'In this text, does "{field(target, "span2_text", where)}" refer to "{field(target, "span1_text", where)}"? '
        "Answer yes or no."
    )
    yield choice_example(prompt, YES_NO, _truth(field(record, "label", where), where))


RENDERERS: dict[str, Callable[[Record, str], Iterator[Example]]] = {
    "boolq": boolq,
    "cb": cb,
    "copa": copa,
    "multirc": multirc,
    "record": record_,
    "rte": rte,
    "wic": wic,
    "wsc": wsc,
}


class SuperGlue(RecordTask):
    """One of the eight; the recipe's name is `superglue/<task>`."""

    def __init__(self, section: TaskSection) -> None:
        task = section.name.removeprefix("superglue/")
        source = Source(
            section.path or "hub:aps/super_glue",
            section.eval_path,
            files=("train.jsonl", "val.jsonl"),
            # The hub's plain `wsc` cuts the spans' texts; `wsc.fixed` is the official data.
            hub_config="wsc.fixed" if task == "wsc" else task,
            hub_splits=("train", "validation"),
        )
        super().__init__(section.name, "accuracy", source, section.holdout)
        self._render = RENDERERS[task]

    def examples(self, record: Record, where: str) -> Iterator[Example]:
        """The examples of one record; several for MultiRC and ReCoRD."""
        return self._render(record, where)
