"""The branches of a MultiLoRA update: how large each is, and whether it does what another does.

With Delta W_i = (c s_i (.) B_i) A_i, all from the k x k cores of the factors:

    energy            ||Delta W_i||_F^2 / sum_j ||Delta W_j||_F^2
    change_if_dropped ||Delta W_i||_F / ||Delta W||_F: how far the update moves without the branch, relative to its size
    energy_lost       1 - ||Delta W - Delta W_i||_F^2 / ||Delta W||_F^2; below 0 if the branch cancels others
    overlap           phi of its row space (inputs) or column space (outputs) with that of another branch: 1 if one
                      contains the other, 0 if they are orthogonal
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from multilora.analysis.update import NUMERICAL_RANK, Update


@dataclass(frozen=True)
class BranchMeasures:
    """One branch of one matrix.

    scale_mean, scale_mean_abs, scale_sd, scale_min, scale_max: of the learned scale s_i
    norm: Frobenius norm of Delta W_i
    energy, change_if_dropped, energy_lost: see above; NaN if the update is zero
    row_overlap, column_overlap: with each branch, itself included; NaN with a branch that is zero
    """

    scale_mean: float
    scale_mean_abs: float
    scale_sd: float
    scale_min: float
    scale_max: float
    norm: float
    energy: float
    change_if_dropped: float
    energy_lost: float
    row_overlap: list[float]
    column_overlap: list[float]


def measure_branches(update: Update) -> list[BranchMeasures] | None:
    """Measure the branches of an update; None if it has none."""
    if update.branches is None or update.factors is None:
        return None
    count = update.branches.count
    up, down = (factor.detach().double() for factor in update.factors)
    # The parts of R that belong to a branch have the same norms and angles as its factors.
    ups = torch.linalg.qr(up, mode="r")[1].chunk(count, dim=1)
    downs = [part.mT for part in torch.linalg.qr(down.mT, mode="r")[1].chunk(count, dim=1)]
    parts = [left @ right for left, right in zip(ups, downs, strict=True)]
    whole = torch.stack(parts).sum(0)
    energies = [float((part**2).sum()) for part in parts]
    total = float((whole**2).sum())
    rows, columns = [orthonormal(part.mT) for part in downs], [orthonormal(part) for part in ups]
    scales = update.branches.scale.detach().double().reshape(-1, count)
    result = []
    for index, part in enumerate(parts):
        scale = scales[:, index]
        rest = float(((whole - part) ** 2).sum())
        result.append(
            BranchMeasures(
                scale_mean=float(scale.mean()),
                scale_mean_abs=float(scale.abs().mean()),
                scale_sd=float(scale.std(correction=0)),
                scale_min=float(scale.min()),
                scale_max=float(scale.max()),
                norm=math.sqrt(energies[index]),
                energy=energies[index] / sum(energies) if sum(energies) else math.nan,
                change_if_dropped=math.sqrt(energies[index] / total) if total else math.nan,
                energy_lost=1 - rest / total if total else math.nan,
                row_overlap=[overlap(rows[index], other) for other in rows],
                column_overlap=[overlap(columns[index], other) for other in columns],
            )
        )
    return result


def orthonormal(matrix: Tensor) -> Tensor:
    """An orthonormal basis [d, rank] of the column space of a matrix [d, k]."""
    left, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((values > NUMERICAL_RANK * values[0]).sum()) if len(values) and values[0] > 0 else 0
    basis: Tensor = left[:, :rank]
    return basis


def overlap(first: Tensor, second: Tensor) -> float:
    """phi of two subspaces with orthonormal bases [d, i] and [d, j]; NaN if one is empty."""
    smaller = min(first.shape[1], second.shape[1])
    return float(((first.mT @ second) ** 2).sum() / smaller) if smaller else math.nan
