"""Lower the rank of an adapter: the best approximation of every update by fewer ranks.

The error of one matrix is known from its singular values (Eckart-Young): with Delta W_k the approximation of rank k,

    ||Delta W - Delta W_k||_F / ||Delta W||_F = sqrt(1 - E_k)        E_k = sum_{i<=k} sigma_i^2 / sum_i sigma_i^2
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor

from multilora.errors import InputError
from multilora.export.factors import AdapterFactors, Factors
from multilora.low_rank import singular_values_of_product, truncated_product

AnyFactors = TypeVar("AnyFactors", bound=Factors)


@dataclass(frozen=True)
class Truncation:
    """What a truncation loses.

    rank: the largest rank that is left
    errors: name of the matrix -> ||Delta W - Delta W_k||_F / ||Delta W||_F; for a stack of experts, over the stack
    """

    rank: int
    errors: dict[str, float]

    @property
    def largest(self) -> float:
        """The largest error of any matrix."""
        return max(self.errors.values(), default=0.0)

    @property
    def mean(self) -> float:
        """The mean error over the matrices."""
        return sum(self.errors.values()) / max(1, len(self.errors))

    def __str__(self) -> str:
        worst = max(self.errors, key=lambda name: self.errors[name]) if self.errors else ""
        return (
            f"rank {self.rank}: the relative error of an update is {self.mean:.2g} on average, and at most "
            f"{self.largest:.2g} ({worst})"
        )


def truncate(
    factors: AdapterFactors, *, rank: int | None = None, energy: float | None = None
) -> tuple[AdapterFactors, Truncation]:
    """Approximate every update by one of a lower rank.

    Args:
        factors: unchanged
        rank: of the result, at least 1. Updates of at most this rank stay as they are.
        energy: instead of a rank, the share E of every update's squared Frobenius norm to keep, in (0, 1]; the rank is
            the smallest that keeps it in all matrices

    Raises:
        InputError: not exactly one of `rank` and `energy`, or out of range.
    """
    check_size(rank, energy)
    spectra = {name: singular_values_of_product(item.up, item.down) for name, item in factors.matrices()}
    if rank is None:
        assert energy is not None
        rank = max((_rank_for(values, energy) for values in spectra.values()), default=1)
    errors = {name: _error(values, rank) for name, values in spectra.items()}

    shortened = replace(
        factors,
        modules=_truncated(factors.modules, rank),
        parameters=_truncated(factors.parameters, rank),
        experts=_truncated(factors.experts, rank),
    )
    return shortened, Truncation(shortened.largest_rank, errors)


def check_size(rank: int | None, energy: float | None) -> None:
    """Check the size of a truncation.

    Raises:
        InputError: not exactly one of them, or out of range.
    """
    if (rank is None) == (energy is None):
        raise InputError(f"rank is {rank} and energy is {energy}; set one of them")
    if rank is not None and rank < 1:
        raise InputError(f"rank is {rank}, expected at least 1")
    if energy is not None and not 0 < energy <= 1:
        raise InputError(f"energy is {energy}, expected a share above 0 and at most 1, such as 0.99")


def _rank_for(values: Tensor, energy: float) -> int:
    """The smallest rank that keeps a share of the energy of one matrix, or of every matrix of a stack."""
    squared = values.double() ** 2
    kept = squared.cumsum(-1)
    missing = kept < energy * kept[..., -1:]  # the last one is never missing
    return max(1, int(missing.sum(-1).max()) + 1 if bool(squared.any()) else 1)


def _error(values: Tensor, rank: int) -> float:
    squared = values.double() ** 2
    total = float(squared.sum())
    return float((squared[..., rank:].sum() / total).sqrt()) if total else 0.0


def _truncated(items: Mapping[str, AnyFactors], rank: int) -> dict[str, AnyFactors]:
    result = {}
    for name, item in items.items():
        up, down = truncated_product(item.up, item.down, rank)
        result[name] = replace(item, down=down.contiguous(), up=up.contiguous())
    return result
