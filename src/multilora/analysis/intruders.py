"""Intruder dimensions: large singular vectors of the tuned weight that match none of the base weight's.

Shuttleworth et al. 2024 (arXiv 2410.21228, algorithm 1), who find them after LoRA and rarely after full fine-tuning,
and relate them to forgetting: left singular vector j of W + Delta W is an intruder if
max_i |cos(u_j, u0_i)| < threshold over all left singular vectors u0_i of W.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# How many of the largest singular vectors are examined, and the largest cosine of an intruder; both as in the paper.
TOP, THRESHOLD = 10, 0.5


@dataclass(frozen=True)
class IntruderMeasures:
    """The intruder dimensions of one matrix.

    examined: number of singular vectors of the tuned weight that were examined
    threshold: largest cosine of an intruder
    cosines: largest cosine of each with any singular vector of the base, the vector of the largest value first
    count: number of intruders
    """

    examined: int
    threshold: float
    cosines: list[float]
    count: int


def intruder_dimensions(
    before: Tensor, update: Tensor, *, top: int = TOP, threshold: float = THRESHOLD
) -> IntruderMeasures:
    """Find the intruder dimensions of a weight. Needs two dense decompositions.

    Args:
        before: weight [d_out, d_in] of the base
        update: Delta W [d_out, d_in]
        top: number of singular vectors to examine, at most
        threshold: largest cosine of an intruder, from 0 to 1

    Raises:
        ValueError: top or threshold is out of range.
    """
    if top < 1 or not 0 <= threshold <= 1:
        raise ValueError(f"top is {top} and threshold {threshold}, expected at least 1, and 0 to 1")
    before = before.double()
    left_before = torch.linalg.svd(before, full_matrices=False)[0]
    left_after, values, _ = torch.linalg.svd(before + update.double().to(before.device), full_matrices=False)
    examined = min(top, int((values > 0).sum()))
    cosines = (left_before.mT @ left_after[:, :examined]).abs().amax(0).clamp(max=1.0)
    return IntruderMeasures(
        examined, threshold, [round(value, 6) for value in cosines.tolist()], int((cosines < threshold).sum())
    )
