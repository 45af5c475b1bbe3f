"""Which choice a model takes: the most likely one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from multilora.tasks.base import Example


def one_begins_another(choices: Sequence[list[int]]) -> bool:
    """Whether some choice is the beginning of another; without its end it could never be the less likely one."""
    return any(a is not b and b[: len(a)] == a for a in choices for b in choices)


def chosen(example: Example, likelihoods: Sequence[Tensor], closing: int) -> str:
    """The text of the most likely choice, by the sum over its tokens without the last `closing`.

    A tie counts against the model in whatever metric follows: among tied choices a wrong one is taken.

    Args:
        example: with choices
        likelihoods: log-probabilities of each choice's tokens, [tokens]; the first label's choice comes first, then
            the others in their order
        closing: how many tokens at the end do not count
    """
    gold = example["labels"][0]
    order = [gold, *(place for place in range(len(example["choices"])) if place != gold)]
    sums = [float(tokens[: len(tokens) - closing].double().sum()) for tokens in likelihoods]
    best = max(sums)
    tied = [place for place, value in zip(order, sums, strict=True) if value == best]
    wrong = [place for place in tied if place not in example["labels"]]
    return example["choices"][(wrong or tied)[0]]
