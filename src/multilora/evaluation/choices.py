"""Pick the most likely choice."""

from __future__ import annotations

from collections.abc import Sequence

import torch

# Differences of log-probabilities, in nats, that rounding alone explains: in bfloat16, two ways of computing the same
# number differ by 0.015 to 0.1.
NEAR = {torch.float32: 1e-4, torch.float64: 1e-10}
NEAR_IN_LOW_PRECISION = 0.05


def most_likely(sums: Sequence[float]) -> int:
    """Return the index of the largest sum of log-probabilities; the first one if several are equal."""
    return max(range(len(sums)), key=sums.__getitem__)


def is_near_tie(sums: Sequence[float], dtype: torch.dtype) -> bool:
    """Return whether the two largest sums differ so little that rounding could decide between them."""
    first, second = sorted(sums, reverse=True)[:2]
    return first - second <= NEAR.get(dtype, NEAR_IN_LOW_PRECISION)
