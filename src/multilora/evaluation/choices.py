"""Which choice a model takes: the most likely one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from multilora.example import Example


def one_begins_another(choices: Sequence[list[int]]) -> bool:
    """Whether a choice is the beginning of another; without its end token it could never be the less likely one."""
    return any(a is not b and b[: len(a)] == a for a in choices for b in choices)


def chosen(example: Example, likelihoods: Sequence[Tensor], closing: int) -> str:
    """The text of the most likely choice, by the sum over its tokens without the last `closing`.

    A tie counts against the model in every metric: among tied choices a wrong one is taken.

    Args:
        example: with choices
        likelihoods: log-probabilities of each choice's tokens, [tokens]; the first correct choice comes first, then
            the others in their order
        closing: number of tokens at the end that do not count
    """
    reference = example["correct"][0]
    order = [reference, *(index for index in range(len(example["choices"])) if index != reference)]
    sums = [float(tokens[: len(tokens) - closing].double().sum()) for tokens in likelihoods]
    best = max(sums)
    tied = [index for index, value in zip(order, sums, strict=True) if value == best]
    wrong = [index for index in tied if index not in example["correct"]]
    return example["choices"][(wrong or tied)[0]]
