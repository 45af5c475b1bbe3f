"""The eight tasks of SuperGLUE (Wang et al. 2019, arXiv 1905.00537), from the official JSONL or the hub.

The official files and the hub's `aps/super_glue` differ in nesting and in labels (words or numbers); every function
here reads both. All eight are choices, scored as in section 3 of the paper: by accuracy, except for CB (accuracy and
F1), MultiRC (F1a and EM) and ReCoRD (F1 and EM), whose main score is the mean of the two.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from multilora.errors import RecordError
from multilora.example import Example, choice_example
from multilora.metrics import METRICS, Metric
from multilora.metrics.formulas import is_correct, normalised_match, token_f1
from multilora.metrics.sums import f1_macro, f1_of, group_exact_match, item_mean, mean_of
from multilora.recipe.schema import TaskSection
from multilora.tasks.readers import Record
from multilora.tasks.record_task import RecordTask
from multilora.tasks.source import Layout, Source, field, list_field, text_field

YES_NO = ["yes", "no"]
CB_WORDS = ["true", "false", "undecided"]


def _label_index(record: Record, names: list[str], where: str) -> int:
    """The label as an index into `names`, whether stored as a word or (on the hub) as a number."""
    label = field(record, "label", where)
    if isinstance(label, str) and label in names:
        return names.index(label)
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(names):
        return label
    raise RecordError(f"{where}: label {label!r}, expected one of {names} or 0 to {len(names) - 1}", "unknown label")


def _yes_no_index(label: Any, where: str) -> int:
    """The index in YES_NO of a label stored as true/false or 1/0."""
    if label in (0, 1):  # True == 1
        return 0 if label else 1
    raise RecordError(f"{where}: label {label!r}, expected true or false (or 1 or 0)", "unknown label")


def _passage_name(text: str) -> str:
    """A short name of a passage, as the group of its questions."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def boolq(record: Record, where: str) -> Iterator[Example]:
    """BoolQ: a yes/no question about a passage."""
    question = text_field(record, "question", where).strip().rstrip("?")
    passage = text_field(record, "passage", where)
    prompt = f"{passage}\n\nQuestion: {question}? Answer yes or no."
    label = _yes_no_index(field(record, "label", where), where)
    yield choice_example(prompt, YES_NO, label, group=_passage_name(passage))


def cb(record: Record, where: str) -> Iterator[Example]:
    """CommitmentBank: does the text entail, contradict, or leave open the statement?"""
    prompt = (
        f"{text_field(record, 'premise', where)}\n\nStatement: {text_field(record, 'hypothesis', where)}\n"
        "Is the statement true, false or undecided, given the text?"
    )
    names = ["entailment", "contradiction", "neutral"]
    yield choice_example(prompt, CB_WORDS, _label_index(record, names, where))


def copa(record: Record, where: str) -> Iterator[Example]:
    """COPA: the more plausible cause or effect of two."""
    kind = text_field(record, "question", where)
    if kind not in ("cause", "effect"):
        raise RecordError(f"{where}: question {kind!r}, expected 'cause' or 'effect'", "unknown kind of question")
    question = "What was the cause of this?" if kind == "cause" else "What happened as a result?"
    choices = [text_field(record, name, where) for name in ("choice1", "choice2")]
    listed = "\n".join(f"- {choice}" for choice in choices)
    prompt = f"{text_field(record, 'premise', where)}\n{question}\n{listed}"
    yield choice_example(prompt, choices, _label_index(record, ["0", "1"], where))


def multirc(record: Record, where: str) -> Iterator[Example]:
    """MultiRC: is a proposed answer correct? One example per answer; the answers to a question form a group.

    The official file nests questions and answers in a passage; the hub has a row per answer.
    """
    if "paragraph" in record:
        index = field(record, "idx", where)
        group = f"{field(index, 'paragraph', where)}/{field(index, 'question', where)}"
        texts = [text_field(record, name, where) for name in ("paragraph", "question", "answer")]
        yield _multirc_example(texts, field(record, "label", where), group, where)
        return
    passage = field(record, "passage", where)
    for question in list_field(passage, "questions", where):
        group = f"{field(record, 'idx', where)}/{field(question, 'idx', where)}"
        for answer in list_field(question, "answers", where):
            texts = [
                text_field(passage, "text", where),
                text_field(question, "question", where),
                text_field(answer, "text", where),
            ]
            yield _multirc_example(texts, field(answer, "label", where), group, where)


def _multirc_example(texts: list[str], label: Any, group: str, where: str) -> Example:
    passage, question, answer = texts
    query = f"Question: {question}\nProposed answer: {answer}\nIs the proposed answer correct? Answer yes or no."
    return choice_example(f"{passage}\n\n{query}", YES_NO, _yes_no_index(label, where), group=group)


def record_(record: Record, where: str) -> Iterator[Example]:
    """ReCoRD: which entity of the passage fills the gap? Every official answer counts as correct."""
    passage = field(record, "passage", where)
    if isinstance(passage, str):  # the hub
        text, entities = passage, list_field(record, "entities", where)
        queries = [(text_field(record, "query", where), list_field(record, "answers", where))]
    else:
        text = text_field(passage, "text", where)
        spans = list_field(passage, "entities", where)
        entities = [text[field(span, "start", where) : field(span, "end", where) + 1] for span in spans]
        queries = [
            (
                text_field(query, "query", where),
                [text_field(answer, "text", where) for answer in list_field(query, "answers", where)],
            )
            for query in list_field(record, "qas", where)
        ]
    choices = list(dict.fromkeys(entities))
    group = _passage_name(text)
    text = re.sub(r"\n?@highlight\n", "\n- ", text)
    for query, answers in queries:
        correct = [choices.index(answer) for answer in dict.fromkeys(answers) if answer in choices]
        if not correct:
            raise RecordError(
                f"{where}: none of the answers {answers} is an entity of the passage", "no answer among the entities"
            )
        listed = ", ".join(choices)
        prompt = f"{text}\n\nWhich name replaces @placeholder?\n{query}\nNames: {listed}"
        yield choice_example(prompt, choices, correct[0], also_correct=correct[1:], group=group)


def rte(record: Record, where: str) -> Iterator[Example]:
    """RTE: does the text entail the statement?"""
    prompt = (
        f"{text_field(record, 'premise', where)}\n\nStatement: {text_field(record, 'hypothesis', where)}\n"
        "Does the statement follow from the text? Answer yes or no."
    )
    yield choice_example(prompt, YES_NO, _label_index(record, ["entailment", "not_entailment"], where))


def wic(record: Record, where: str) -> Iterator[Example]:
    """WiC: is a word used in the same sense in two sentences?"""
    prompt = (
        f"1. {text_field(record, 'sentence1', where)}\n2. {text_field(record, 'sentence2', where)}\n\n"
        f'Does the word "{text_field(record, "word", where)}" have the same meaning in both sentences? '
        "Answer yes or no."
    )
    yield choice_example(prompt, YES_NO, _yes_no_index(field(record, "label", where), where))


def wsc(record: Record, where: str) -> Iterator[Example]:
    """WSC: does a pronoun mean a given noun?"""
    target = record.get("target", record)
    noun, pronoun = (text_field(target, name, where) for name in ("span1_text", "span2_text"))
    text = text_field(record, "text", where)
    prompt = f'{text}\n\nIn this text, does "{pronoun}" refer to "{noun}"? Answer yes or no.'
    label = _yes_no_index(field(record, "label", where), where)
    yield choice_example(prompt, YES_NO, label, group=_passage_name(text))


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


def _record_score(references: Sequence[str], prediction: str) -> float:
    return (token_f1(references, prediction) + normalised_match(references, prediction)) / 2


_F1A = f1_of(YES_NO[0])

# Where SuperGLUE has two metrics, the main one, `score`, is their mean.
METRICS_OF: dict[str, dict[str, Metric]] = {
    "cb": {
        "score": Metric(mean_of(item_mean(is_correct), f1_macro), answers="choice", per="set"),
        "accuracy": METRICS["accuracy"],
        "f1_macro": METRICS["f1_macro"],
    },
    "multirc": {
        "score": Metric(mean_of(_F1A, group_exact_match), answers="choice", per="set"),
        "f1a": Metric(_F1A, answers="choice", per="set"),
        "exact_match": Metric(group_exact_match, answers="choice", per="set"),
    },
    "record": {
        "score": Metric(_record_score, answers="choice"),
        "f1": Metric(token_f1, answers="choice"),
        "exact_match": Metric(normalised_match, answers="choice"),
    },
}


class SuperGlue(RecordTask):
    """One of the eight tasks, named `superglue/<task>` in recipes."""

    kind = "choice"

    def __init__(self, section: TaskSection) -> None:
        self.task = section.name.removeprefix("superglue/")
        self.whole_groups = self.task == "multirc"
        self.metrics = METRICS_OF.get(self.task)
        # The hub's `wsc` has truncated span texts; `wsc.fixed` is the official data.
        config = "wsc.fixed" if self.task == "wsc" else self.task
        layout = Layout("hub:aps/super_glue", ("train.jsonl", "val.jsonl"), config, ("train", "validation"))
        super().__init__(section, Source(section, layout))

    def cluster_of(self, example: Example) -> str:
        """The passage of BoolQ, MultiRC, ReCoRD and WSC, which several questions can share; else empty."""
        return example["group"].partition("/")[0]

    def examples(self, record: Record, where: str) -> Iterator[Example]:
        """The examples of one record; several for MultiRC and ReCoRD."""
        return RENDERERS[self.task](record, where)
