"""What a task is: it loads examples, says how a model answers them, and scores the answers.

`Task.load(split)` gives a `datasets.Dataset` whose rows are `Example`s; rendering to text and tokens happens later, in
`multilora.data`, the same way for training and evaluation.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypedDict

from multilora.errors import DataError, RecordError
from multilora.evaluation.metrics import accuracy, exact_match

if TYPE_CHECKING:
    from datasets import Dataset, Features

Split = Literal["train", "eval"]
Kind = Literal["choice", "generate", "loss"]


class Example(TypedDict):
    """One training or evaluation item.

    prompt: what the model is given; response: what it learns to say; choices: the possible responses (empty for free
    text); labels: positions of the right ones among `choices`; answer: the final answer that a generated response
    must contain (empty where nothing is matched); group: examples with the same one are scored together (empty where
    each stands for itself); messages: a chat as a JSON list, in place of prompt and response, which then are empty;
    tools: the descriptions of the chat's tools as a JSON list, or empty.
    """

    prompt: str
    response: str
    choices: list[str]
    labels: list[int]
    answer: str
    group: str
    messages: str
    tools: str


def choice_example(
    prompt: str, choices: list[str], label: int, *, also_right: list[int] | None = None, group: str = ""
) -> Example:
    """An example whose response is one of `choices`; `label` is trained on, `also_right` counts in evaluation too.

    Raises:
        RecordError: fewer than two choices, one of them empty or given twice, or a label outside them.
    """
    if len(choices) < 2:
        raise RecordError(f"a choice list needs at least two choices, got {choices!r}", "too few choices")
    for choice in choices:
        if not choice.strip():
            raise RecordError(f"one of the choices {choices!r} is empty; fill it in", "empty choice")
        if choices.count(choice) > 1:
            raise RecordError(
                f"the choice {choice!r} is given twice in {choices!r}, so no answer could be told from the other; "
                "make the choices differ",
                "choice given twice",
            )
    labels = [label, *(also_right or [])]
    for item in labels:
        if not 0 <= item < len(choices):
            raise RecordError(
                f"label {item!r} is outside the {len(choices)} choices (0 to {len(choices) - 1})", "label out of range"
            )
    return Example(
        prompt=prompt,
        response=choices[label],
        choices=choices,
        labels=labels,
        answer=choices[label],
        group=group,
        messages="",
        tools="",
    )


def free_example(prompt: str, response: str, answer: str = "", *, group: str = "") -> Example:
    """An example whose response is free text; `answer` is what a generated response is matched against."""
    return Example(
        prompt=prompt, response=response, choices=[], labels=[], answer=answer, group=group, messages="", tools=""
    )


def chat_example(messages: str, tools: str = "", *, group: str = "") -> Example:
    """An example that is a whole chat; both arguments are JSON lists, as `multilora.tasks.messages` checks them."""
    return Example(
        prompt="", response="", choices=[], labels=[], answer="", group=group, messages=messages, tools=tools
    )


def example_features() -> Features:
    """The columns of a dataset of examples."""
    from datasets import Features, List, Value

    return Features(
        {
            "prompt": Value("string"),
            "response": Value("string"),
            "choices": List(Value("string")),
            "labels": List(Value("int32")),
            "answer": Value("string"),
            "group": Value("string"),
            "messages": Value("string"),
            "tools": Value("string"),
        }
    )


def to_dataset(examples: list[Example]) -> Dataset:
    """The examples as an in-memory `datasets.Dataset` with fixed column types; for few that are made, not read."""
    from datasets import Dataset

    return Dataset.from_list([dict(example) for example in examples], features=example_features())


def held_out_positions(count: int, fraction: float) -> set[int]:
    """Which of `count` examples are kept for evaluation where a source has no such split.

    A fixed function of both numbers, so that training and evaluation agree without sharing state; at least one
    example on either side.

    Raises:
        DataError: fewer than two examples.
    """
    if count < 2:
        raise DataError(f"{count} example(s) cannot be split into training and evaluation; add data or an eval_path")
    size = min(max(1, round(count * fraction)), count - 1)
    return set(random.Random(0).sample(range(count), size))


class Task(ABC):
    """A task of the mixture.

    kind: how a model answers: `choice` (the most likely of the choices), `generate` (greedy text) or `loss` (not at
    all; only the loss is measured). whole_groups: a subset for evaluation takes groups whole, because a metric is
    over groups. dropped: after `load`, the records of that split that were left out, as reason -> count.

    Args:
        name: the name in the recipe, in logs and in tables
        kind: see above
    """

    whole_groups = False

    def __init__(self, name: str, kind: Kind) -> None:
        self.name = name
        self.kind: Kind = kind
        self.dropped: dict[str, int] = {}

    @abstractmethod
    def load(self, split: Split) -> Dataset:
        """All examples of a split, in the source's order; sets `dropped`.

        Raises:
            DataError: the source cannot be read or holds something unexpected; says where.
        """

    def score(self, examples: Sequence[Example], predictions: Sequence[str]) -> dict[str, float]:
        """The task's metrics, the main one first: name -> value in [0, 1].

        Here accuracy for choices, exact match of the final answer for generated text, nothing for `loss`.

        Args:
            examples: what was asked
            predictions: the text of the chosen choice, or the generated text, one per example
        """
        if self.kind == "choice":
            return {"accuracy": accuracy([right_choices(example) for example in examples], predictions)}
        if self.kind == "generate":
            finals = [self.final_answer(text) for text in predictions]
            return {"exact_match": exact_match([example["answer"] for example in examples], finals)}
        return {}

    def final_answer(self, text: str) -> str:
        """What is compared with `Example.answer` in a generated response; here the stripped text itself."""
        return text.strip()


def right_choices(example: Example) -> list[str]:
    """The texts of the right choices; the one that is trained on comes first."""
    return [example["choices"][label] for label in example["labels"]]
