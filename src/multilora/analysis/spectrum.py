"""Singular values of Delta W, and measures of how concentrated they are.

With sigma the singular values of one matrix's update and p_i = sigma_i^2 / sum sigma^2:

    energy in the top k     sum of the k largest p_i (near 1 for small k: a few directions dominate)
    effective rank          exp(H(p)), H the entropy in nats (Roy & Vetterli 2007, on p instead of sigma)
    stable rank             sum sigma^2 / sigma_1^2
    participation ratio     1 / sum p_i^2
    relative norm           the Frobenius norm of Delta W over that of the base weight
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from multilora.analysis.branches import BranchMeasures, measure_branches
from multilora.analysis.intruders import IntruderMeasures
from multilora.analysis.update import Decomposition, Update, kind_of, layer_of


@dataclass(frozen=True)
class Measures:
    """How concentrated a spectrum is.

    For an update that is exactly zero, all but the norms are NaN. From a randomised decomposition, which has only the
    largest values, the effective rank and the participation ratio are NaN. The relative norm is NaN without the base.
    """

    norm: float
    top1_energy: float
    top4_energy: float
    effective_rank: float
    stable_rank: float
    participation_ratio: float
    relative_norm: float = float("nan")


NAMES = tuple(Measures.__dataclass_fields__)


def measures(singular_values: Tensor, *, norm: float | None = None, base_norm: float | None = None) -> Measures:
    """Compute the measures of a spectrum.

    Args:
        singular_values: [k], in any order
        norm: Frobenius norm of the update, if these are not all of its singular values
        base_norm: Frobenius norm of the base weight, if it is known
    """
    squared = torch.sort(singular_values.double() ** 2, descending=True).values
    total = squared.sum() if norm is None else torch.tensor(norm**2, dtype=torch.float64)
    relative = math.nan if not base_norm else float(total.sqrt()) / base_norm
    if total == 0:
        nan = math.nan
        return Measures(0.0, nan, nan, nan, nan, nan, relative)
    p = squared / total
    entropy = -(p * p.clamp_min(1e-300).log()).sum()
    return Measures(
        norm=float(total.sqrt()),
        top1_energy=float(p[0]),
        top4_energy=float(p[:4].sum()),
        effective_rank=math.nan if norm is not None else float(entropy.exp()),
        stable_rank=float(total / squared[0]),
        participation_ratio=math.nan if norm is not None else float(1 / (p**2).sum()),
        relative_norm=relative,
    )


@dataclass(frozen=True)
class MatrixSpectrum:
    """The update of one weight matrix.

    name: of its module in the base
    shape: (d_out, d_in)
    singular_values: largest first
    measures: of the singular values
    residual: Frobenius norm of what the singular values leave out: 0 if they are exact
    branches: one entry per branch of MultiLoRA
    intruders: if they were asked for
    """

    name: str
    shape: tuple[int, int]
    singular_values: list[float]
    measures: Measures
    residual: float = 0.0
    branches: list[BranchMeasures] | None = None
    intruders: IntruderMeasures | None = None

    @property
    def kind(self) -> str:
        """The module type: the last part of the name, such as `q_proj`, without the index of an expert."""
        return kind_of(self.name)

    @property
    def layer(self) -> int | None:
        """The number of the layer; None for what is outside of the layers."""
        return layer_of(self.name)


@dataclass(frozen=True)
class Spectrum:
    """The updates of all adapted matrices.

    method: as in `adapter.method`
    matrices: in the order of the model
    """

    method: str
    matrices: list[MatrixSpectrum]

    def by_kind(self) -> dict[str, list[MatrixSpectrum]]:
        """Group the matrices by module type, in order of appearance."""
        groups: dict[str, list[MatrixSpectrum]] = {}
        for matrix in self.matrices:
            groups.setdefault(matrix.kind, []).append(matrix)
        return groups

    def mean(self, matrices: list[MatrixSpectrum] | None = None) -> dict[str, float]:
        """Average every measure over matrices (by default, all), ignoring updates that are zero."""
        nonzero = [m for m in (self.matrices if matrices is None else matrices) if m.measures.norm > 0]
        if not nonzero:
            return dict.fromkeys(NAMES, float("nan"))
        return {name: sum(getattr(m.measures, name) for m in nonzero) / len(nonzero) for name in NAMES}

    def intruders(self, matrices: list[MatrixSpectrum] | None = None) -> dict[str, float] | None:
        """The number of intruder dimensions over matrices (by default, all), and their share; None if not computed."""
        known = [m.intruders for m in (self.matrices if matrices is None else matrices) if m.intruders is not None]
        if not known:
            return None
        count, examined = sum(item.count for item in known), sum(item.examined for item in known)
        return {"count": float(count), "examined": float(examined), "share": count / examined if examined else math.nan}

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-compatible values."""
        return {
            "method": self.method,
            "mean": self.mean(),
            "intruders": self.intruders(),
            "matrices": [{**asdict(matrix), "kind": matrix.kind, "layer": matrix.layer} for matrix in self.matrices],
        }


def spectrum_of_update(
    update: Update, decomposition: Decomposition, intruders: IntruderMeasures | None = None
) -> MatrixSpectrum:
    """Measure one update.

    Args:
        update: of one matrix
        decomposition: of the update
        intruders: of the tuned weight, if they were asked for
    """
    truncated = decomposition.residual > 0
    base_norm = None if update.weight is None else float(torch.linalg.matrix_norm(update.weight.double()))
    return MatrixSpectrum(
        update.name,
        update.shape,
        decomposition.values.tolist(),
        measures(decomposition.values, norm=decomposition.norm if truncated else None, base_norm=base_norm),
        decomposition.residual,
        measure_branches(update),
        intruders,
    )
