"""Drop the branches, or the single ranks, that contribute little to the update of their matrix.

The share of a branch i is ||c s_i (.) B_i A_i||_F / ||Delta W||_F. With G = (up^T up) * (down down^T) elementwise
[k, k], the squared norm of the sum of some ranks is the sum of their block of G, so that no product is formed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor

from multilora.errors import InputError
from multilora.export.factors import AdapterFactors, Factors

AnyFactors = TypeVar("AnyFactors", bound=Factors)


@dataclass(frozen=True)
class Pruning:
    """What was dropped.

    unit: `branch` or `rank`
    below: the threshold
    shares: name of the matrix -> share of each branch or rank, in order
    kept: name of the matrix -> indices of those that are kept
    """

    unit: str
    below: float
    shares: dict[str, list[float]]
    kept: dict[str, list[int]]

    @property
    def total(self) -> int:
        """The number of branches or ranks before."""
        return sum(map(len, self.shares.values()))

    @property
    def dropped(self) -> int:
        """How many are dropped."""
        return self.total - sum(map(len, self.kept.values()))

    def __str__(self) -> str:
        plural = "branches" if self.unit == "branch" else "ranks"
        return f"dropped {self.dropped} of {self.total} {plural}: share of the update below {self.below:g}"


def prune(factors: AdapterFactors, below: float, *, ranks: bool = False) -> tuple[AdapterFactors, Pruning]:
    """Drop the branches whose share is below a threshold; the largest one of every matrix is kept.

    Args:
        factors: unchanged
        below: in [0, 1]
        ranks: drop single ranks instead of branches, as for a LoRA, which has no branches

    Raises:
        InputError: `below` is out of range.
    """
    if not (math.isfinite(below) and 0 <= below <= 1):
        raise InputError(f"the threshold is {below}, expected a share of the update from 0 to 1, such as 0.05")
    by_rank = ranks or factors.branches == 1
    shares = {name: _shares(item, item.rank if by_rank else factors.branches) for name, item in factors.matrices()}
    kept = {name: _kept(values, below) for name, values in shares.items()}

    def shorten(items: Mapping[str, AnyFactors]) -> dict[str, AnyFactors]:
        return {name: _only(item, kept[name], len(shares[name])) for name, item in items.items()}

    pruned = replace(
        factors,
        modules=shorten(factors.modules),
        parameters=shorten(factors.parameters),
        experts=shorten(factors.experts),
        branches=1,
    )
    return pruned, Pruning("rank" if by_rank else "branch", below, shares, kept)


def _shares(item: Factors, groups: int) -> list[float]:
    """The share of each of the groups of consecutive ranks; of a stack, in all of its matrices."""
    up, down = item.up.double(), item.down.double()
    gram = (up.mT @ up) * (down @ down.mT)
    gram = gram.sum(0) if gram.dim() == 3 else gram
    total = float(gram.sum().clamp_min(0).sqrt())
    size = item.rank // groups
    blocks: Tensor = gram.view(groups, size, groups, size).sum((1, 3)).diagonal()
    return [math.sqrt(max(0.0, value)) / total if total else 0.0 for value in blocks.tolist()]


def _kept(shares: list[float], below: float) -> list[int]:
    kept = [index for index, share in enumerate(shares) if share >= below]
    return kept or [shares.index(max(shares))]


def _only(item: AnyFactors, kept: list[int], groups: int) -> AnyFactors:
    size = item.rank // groups
    ranks = list(_ranks(kept, size))
    return replace(item, down=item.down[..., ranks, :].contiguous(), up=item.up[..., ranks].contiguous())


def _ranks(groups: list[int], size: int) -> Iterator[int]:
    for group in groups:
        yield from range(group * size, (group + 1) * size)
