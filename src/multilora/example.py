"""Examples: the common form of training and evaluation items of all tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict

from multilora.errors import RecordError

if TYPE_CHECKING:
    from datasets import Dataset, Features

Split = Literal["train", "eval"]


class Example(TypedDict):
    """One training or evaluation item.

    prompt: the model's input
    response: the output that is trained on
    choices: the possible responses; empty for free text
    correct: indices of the correct responses in `choices`; the first is trained on
    answer: the final answer that a generated response is compared with; empty if it is not compared
    group: name of a group of examples that are scored together; empty if the example belongs to none
    messages: a chat as a JSON list; prompt and response are then empty
    tools: descriptions of the chat's tools as a JSON list, or empty
    """

    prompt: str
    response: str
    choices: list[str]
    correct: list[int]
    answer: str
    group: str
    messages: str
    tools: str


def choice_example(
    prompt: str, choices: list[str], correct: int, *, also_correct: list[int] | None = None, group: str = ""
) -> Example:
    """An example whose response is one of `choices`.

    Args:
        prompt: the model's input
        choices: the possible responses
        correct: index of the response that is trained on
        also_correct: indices of other responses that count as correct in evaluation
        group: see `Example`

    Raises:
        RecordError: fewer than two choices, an empty or repeated choice, or an index out of range.
    """
    if len(choices) < 2:
        raise RecordError(f"expected at least two choices, got {choices!r}", "too few choices")
    for choice in choices:
        if not choice.strip():
            raise RecordError(f"one of the choices {choices!r} is empty; fill it in", "empty choice")
        if choices.count(choice) > 1:
            raise RecordError(
                f"the choice {choice!r} appears twice in {choices!r}, so the two cannot be told apart; "
                "make the choices differ",
                "repeated choice",
            )
    indices = [correct, *(also_correct or [])]
    for index in indices:
        if not 0 <= index < len(choices):
            raise RecordError(
                f"label {index!r} is outside the {len(choices)} choices (0 to {len(choices) - 1})", "label out of range"
            )
    return Example(
        prompt=prompt,
        response=choices[correct],
        choices=choices,
        correct=indices,
        answer=choices[correct],
        group=group,
        messages="",
        tools="",
    )


def free_example(prompt: str, response: str, answer: str = "", *, group: str = "") -> Example:
    """An example whose response is free text; a generated response is compared with `answer`."""
    return Example(
        prompt=prompt, response=response, choices=[], correct=[], answer=answer, group=group, messages="", tools=""
    )


def chat_example(messages: str, tools: str = "", *, group: str = "") -> Example:
    """An example that is a chat; `messages` and `tools` are JSON lists, see `multilora.tasks.messages`."""
    return Example(
        prompt="", response="", choices=[], correct=[], answer="", group=group, messages=messages, tools=tools
    )


def references_of(example: Example) -> list[str]:
    """The correct answers: the correct choices (first the one that is trained on), or the final answer."""
    if example["choices"]:
        return [example["choices"][index] for index in example["correct"]]
    return [example["answer"]]


def example_features() -> Features:
    """The columns of a dataset of examples."""
    from datasets import Features, List, Value

    return Features(
        {
            "prompt": Value("string"),
            "response": Value("string"),
            "choices": List(Value("string")),
            "correct": List(Value("int32")),
            "answer": Value("string"),
            "group": Value("string"),
            "messages": Value("string"),
            "tools": Value("string"),
        }
    )


def to_dataset(examples: list[Example]) -> Dataset:
    """The examples as an in-memory dataset; meant for few or generated examples."""
    from datasets import Dataset

    return Dataset.from_list([dict(example) for example in examples], features=example_features())
