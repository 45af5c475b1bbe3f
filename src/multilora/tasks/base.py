"""What a task is: it loads examples and says how an answer is scored.

`Task.load(split)` gives a `datasets.Dataset` whose rows are `Example`s; rendering to text and tokens happens later, in
`multilora.data.tokenize`, the same way for training and evaluation.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal, TypedDict

from multilora.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

Split = Literal["train", "eval"]
Metric = Literal["accuracy", "exact_match", "none"]


class Example(TypedDict):
    """One training or evaluation item.

    prompt: what the model is given; response: what it learns to say; choices: the possible responses (empty for free
    text); labels: positions of the right ones among `choices`; answer: the final answer that a generated response
    must contain (empty where nothing is matched).
    """

    prompt: str
    response: str
    choices: list[str]
    labels: list[int]
    answer: str


def choice_example(prompt: str, choices: list[str], label: int, *, also_right: list[int] | None = None) -> Example:
    """An example whose response is one of `choices`; `label` is trained on, `also_right` counts in evaluation too.

    Raises:
        DataError: fewer than two choices, or a label outside them.
    """
    if len(choices) < 2:
        raise DataError(f"a choice list needs at least two choices, got {choices!r}")
    labels = [label, *(also_right or [])]
    for item in labels:
        if not 0 <= item < len(choices):
            raise DataError(f"label {item!r} is outside the {len(choices)} choices (0 to {len(choices) - 1})")
    return Example(prompt=prompt, response=choices[label], choices=choices, labels=labels, answer=choices[label])


def free_example(prompt: str, response: str, answer: str = "") -> Example:
    """An example whose response is free text; `answer` is what a generated response is matched against."""
    return Example(prompt=prompt, response=response, choices=[], labels=[], answer=answer)


def to_dataset(examples: list[Example]) -> Dataset:
    """The examples as a memory-mapped-ready `datasets.Dataset` with fixed column types."""
    from datasets import Dataset, Features, List, Value

    features = Features(
        {
            "prompt": Value("string"),
            "response": Value("string"),
            "choices": List(Value("string")),
            "labels": List(Value("int32")),
            "answer": Value("string"),
        }
    )
    return Dataset.from_list([dict(example) for example in examples], features=features)


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

    Args:
        name: the name in the recipe, in logs and in tables
        metric: `accuracy` (the most likely choice), `exact_match` (generated text) or `none` (loss only)
    """

    def __init__(self, name: str, metric: Metric) -> None:
        self.name = name
        self.metric: Metric = metric

    @abstractmethod
    def load(self, split: Split) -> Dataset:
        """All examples of a split, in the source's order.

        Raises:
            DataError: the source cannot be read or holds something unexpected; says where.
        """

    def final_answer(self, text: str) -> str:
        """What is compared with `Example.answer` in a generated response; here the stripped text itself."""
        return text.strip()
