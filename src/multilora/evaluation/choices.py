"""Pick the most likely choice."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from multilora.example import Example


def one_begins_another(choices: Sequence[list[int]]) -> bool:
    """Return whether a choice is a prefix of another; without its end token, it could never be less likely."""
    return any(a is not b and b[: len(a)] == a for a in choices for b in choices)


def most_likely_choice(example: Example, likelihoods: Sequence[Tensor], closing: int) -> str:
    """Return the text of the choice with the largest sum of log-probabilities, without its last `closing` tokens.

    Ties count against the model: among tied choices, an incorrect one is returned.

    Args:
        example: an example with choices
        likelihoods: log-probabilities of each choice's tokens, [tokens]; first those of the first correct choice, then
            those of the remaining choices in order
        closing: number of tokens at the end to ignore
    """
    reference = example["correct"][0]
    order = [reference, *(index for index in range(len(example["choices"])) if index != reference)]
    sums = [float(tokens[: len(tokens) - closing].double().sum()) for tokens in likelihoods]
    best = max(sums)
    tied = [index for index, value in zip(order, sums, strict=True) if value == best]
    incorrect = [index for index in tied if index not in example["correct"]]
    return example["choices"][(incorrect or tied)[0]]
