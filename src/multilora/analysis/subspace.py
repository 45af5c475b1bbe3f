"""How similar two updates are: do their largest singular vectors span the same subspaces?

Similarity of the first i left singular vectors of one update and the first j of another (Hu et al. 2021, LoRA,
arXiv 2106.09685, section 7.2; right vectors likewise):

    phi(i, j) = ||U1[:, :i]^T U2[:, :j]||_F^2 / min(i, j)

It is in [0, 1]: 1 if one subspace contains the other, 0 if they are orthogonal. For random subspaces of R^d its
expectation is max(i, j) / d, with which every value must be compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multilora.analysis.update import Decomposition, kind_of, layer_of

# Where phi is kept; all pairs of these that both updates have.
GRID = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def phi(first: Tensor, second: Tensor) -> Tensor:
    """Compute phi(i, j) for all i and j.

    Args:
        first: singular vectors [d, I], largest first
        second: singular vectors [d, J] of another update

    Returns:
        [I, J]; entry [i - 1, j - 1] is phi(i, j)
    """
    squares = (first.double().mT @ second.double()) ** 2
    sums = squares.cumsum(0).cumsum(1)
    i = torch.arange(1, sums.shape[0] + 1, device=sums.device)
    j = torch.arange(1, sums.shape[1] + 1, device=sums.device)
    return (sums / torch.minimum(i[:, None], j[None, :])).clamp(0.0, 1.0)


def expected_phi(i: int, j: int, d: int) -> float:
    """The expectation of phi(i, j) for independent, uniformly random subspaces of R^d."""
    return max(i, j) / d


def principal_angles(first: Tensor, second: Tensor) -> Tensor:
    """Compute the principal angles of two subspaces, smallest first.

    Small angles are computed from their sines, which are accurate where cosines are not (Björck & Golub 1973).

    Args:
        first: orthonormal basis [d, i]
        second: orthonormal basis [d, j]

    Returns:
        [min(i, j)] in radians, from 0 to pi / 2
    """
    first, second = first.double(), second.double()
    if first.shape[1] < second.shape[1]:
        first, second = second, first
    product = first.mT @ second
    cosines = torch.linalg.svdvals(product).clamp(0.0, 1.0)
    sines = torch.linalg.svdvals(second - first @ product).flip(0).clamp(0.0, 1.0)
    return torch.where(cosines**2 > 0.5, torch.arcsin(sines), torch.arccos(cosines))


@dataclass(frozen=True)
class MatrixSimilarity:
    """The similarity of two updates of one matrix.

    grid: the values of i and j
    left, right: phi(i, j) of left (output) and right (input) singular vectors, one row per i of the first update
    expected_left, expected_right: expectation for random subspaces, likewise
    left_angles, right_angles: principal angles in degrees between the subspaces of the largest value of the grid
    ranks: number of singular values of each update that are not rounding errors
    """

    name: str
    grid: list[int]
    left: list[list[float]]
    right: list[list[float]]
    expected_left: list[list[float]]
    expected_right: list[list[float]]
    left_angles: list[float]
    right_angles: list[float]
    ranks: tuple[int, int]

    @property
    def kind(self) -> str:
        """The module type, such as `q_proj`."""
        return kind_of(self.name)

    @property
    def layer(self) -> int | None:
        """The number of the layer; None for what is outside of the layers."""
        return layer_of(self.name)

    def at(self, count: int) -> tuple[float, float, float, float] | None:
        """(left, right, expected left, expected right) of phi(count, count); None if a rank is smaller."""
        if count not in self.grid:
            return None
        k = self.grid.index(count)
        return self.left[k][k], self.right[k][k], self.expected_left[k][k], self.expected_right[k][k]


def similarity(name: str, first: Decomposition, second: Decomposition) -> MatrixSimilarity | None:
    """Compare two updates of one matrix by their singular vectors; None if one of them is zero.

    Args:
        name: of the matrix
        first, second: with vectors
    """
    ranks = (first.rank, second.rank)
    grid = [count for count in GRID if count <= min(ranks)]
    if not grid or first.left is None or second.left is None or first.right is None or second.right is None:
        return None
    count = grid[-1]
    values: dict[str, Any] = {}
    for side, a, b in (("left", first.left, second.left), ("right", first.right, second.right)):
        table = phi(a[:, :count], b[:, :count])
        values[side] = [[round(float(table[i - 1, j - 1]), 6) for j in grid] for i in grid]
        values[f"expected_{side}"] = [[expected_phi(i, j, a.shape[0]) for j in grid] for i in grid]
        angles = torch.rad2deg(principal_angles(a[:, :count], b[:, :count]))
        values[f"{side}_angles"] = [round(angle, 3) for angle in angles.tolist()]
    return MatrixSimilarity(name=name, grid=grid, ranks=ranks, **values)
