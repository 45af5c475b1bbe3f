"""Pick a choice by the log-probabilities of all."""

from __future__ import annotations

from collections.abc import Sequence

import torch

# Differences of log-probabilities, in nats, that rounding alone explains: in bfloat16, two ways of computing the same
# number differ by 0.015 to 0.1.
NEAR = {torch.float32: 1e-4, torch.float64: 1e-10}
NEAR_IN_LOW_PRECISION = 0.05


def lengths(kind: str, texts: Sequence[str], tokens: Sequence[int]) -> list[int]:
    """Return what the log-probability of each choice is divided by.

    Args:
        kind: `choice_score` of the recipe
        texts: of the choices
        tokens: numbers of tokens of the choices
    """
    if kind == "per_character":
        return [len(text) for text in texts]
    if kind == "per_byte":
        return [len(text.encode()) for text in texts]
    return list(tokens) if kind == "per_token" else [1] * len(texts)


def choice_scores(
    kind: str, sums: Sequence[float], texts: Sequence[str], tokens: Sequence[int], unconditional: Sequence[float] = ()
) -> list[float]:
    """Return the scores of the choices of a question; the largest is picked.

    `sum`, `per_character`, `per_byte` and `mutual_information` are acc, acc_norm, acc_bytes and acc_mutual_info of
    lm-evaluation-harness; the last is that of Brown et al. 2020 (arXiv 2005.14165, section 2.4).

    Args:
        kind: `choice_score` of the recipe
        sums: log-probabilities in nats
        texts: of the choices, without what separates them from the prompt
        tokens: numbers of tokens
        unconditional: log-probabilities without the question, for `mutual_information`
    """
    if kind == "mutual_information":
        return [given - alone for given, alone in zip(sums, unconditional, strict=True)]
    return [total / length for total, length in zip(sums, lengths(kind, texts, tokens), strict=True)]


def most_likely(scores: Sequence[float]) -> int:
    """Return the index of the largest score; the first one if several are equal."""
    return max(range(len(scores)), key=scores.__getitem__)


def is_near_tie(scores: Sequence[float], dtype: torch.dtype, divisors: Sequence[int] | None = None) -> bool:
    """Return whether the two largest scores differ so little that rounding could decide between them.

    Args:
        scores: of the choices
        dtype: of the model
        divisors: what the log-probabilities were divided by, see `lengths`
    """
    order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[:2]
    rounding = NEAR.get(dtype, NEAR_IN_LOW_PRECISION)
    if divisors is not None:
        rounding /= min(divisors[index] for index in order)
    return scores[order[0]] - scores[order[1]] <= rounding
