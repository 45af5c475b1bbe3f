"""The update Delta W of one weight matrix, as two factors or dense, and its singular value decomposition."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from multilora.errors import AdapterError
from multilora.low_rank import singular_values_of_product, svd_of_product

# Of a randomised decomposition: additional columns, and passes over the matrix (Halko, Martinsson, Tropp 2011, 4.4).
OVERSAMPLING, POWER_ITERATIONS = 16, 4
# Singular values below this share of the largest are rounding errors, and their vectors are arbitrary.
NUMERICAL_RANK = 1e-7

_LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


def layer_of(name: str) -> int | None:
    """The number of the layer in a name such as `model.layers.3.self_attn.q_proj`: its first number; None without."""
    match = _LAYER.search(name)
    return None if match is None else int(match.group(1))


def kind_of(name: str) -> str:
    """The module type: the last part of a name, such as `q_proj`, without the index of an expert."""
    return name.rsplit(".", 1)[-1].partition("[")[0]


@dataclass(frozen=True)
class Decomposition:
    """Singular values, largest first, and vectors if they were asked for.

    values: [k] in float64
    left: [d_out, k], or None
    right: [d_in, k], or None
    norm: Frobenius norm of the matrix
    residual: Frobenius norm of what the values leave out: 0 if they are exact, more for a randomised decomposition.
        Each true singular value is at most sqrt(value^2 + residual^2), and at least the value
    """

    values: Tensor
    left: Tensor | None
    right: Tensor | None
    norm: float
    residual: float = 0.0

    @property
    def rank(self) -> int:
        """The number of singular values that are not rounding errors."""
        if not len(self.values) or self.values[0] == 0:
            return 0
        return int((self.values > NUMERICAL_RANK * self.values[0]).sum())


@dataclass(frozen=True)
class Branches:
    """The branches of a MultiLoRA update; they share its factors.

    count: n; the columns of `up` are branch by branch
    scale: s [d_out, n], or [n] with one number per branch
    """

    count: int
    scale: Tensor


@dataclass
class Update:
    """Delta W [d_out, d_in] of one matrix: `up @ down`, or dense.

    name: of the module, without `.weight`; of an expert in a stack, `experts.down_proj[3]`
    up: [d_out, k] with all constants and scales, or None
    down: [k, d_in], or None
    dense: [d_out, d_in], or None
    base: reads the base's weight [d_out, d_in]; None if the base is not at hand
    branches: of MultiLoRA, else None
    """

    name: str
    up: Tensor | None = None
    down: Tensor | None = None
    dense: Tensor | None = None
    base: Callable[[], Tensor] | None = None
    branches: Branches | None = None

    @property
    def factors(self) -> tuple[Tensor, Tensor] | None:
        """(up, down), or None for a dense update."""
        return None if self.up is None or self.down is None else (self.up, self.down)

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in)."""
        if self.up is not None and self.down is not None:
            return self.up.shape[-2], self.down.shape[-1]
        return self.matrix().shape[0], self.matrix().shape[1]

    def matrix(self) -> Tensor:
        """Delta W [d_out, d_in] in at least float32."""
        if self.dense is not None:
            return self.dense
        assert self.up is not None
        assert self.down is not None
        return self.up @ self.down

    @cached_property
    def weight(self) -> Tensor | None:
        """The base's weight [d_out, d_in] as it is stored; None if the base is not at hand."""
        return None if self.base is None else self.base()

    def decompose(self, *, vectors: bool = False, randomised: int | None = None) -> Decomposition:
        """Compute the singular values, on the device of the update.

        From factors this is exact and cheap. A dense update is decomposed exactly in float64, or at random.

        Args:
            vectors: also compute the singular vectors
            randomised: number of singular values of a dense update to compute at random; for an update with at most
                twice as many rows or columns, exact is faster and used instead. None for exact

        Raises:
            AdapterError: a value is NaN or infinite.
        """
        if self.factors is not None:
            up, down = self.factors
            self._check_finite(up, down)
            if not vectors:
                values = singular_values_of_product(up, down)
                return Decomposition(values, None, None, float(torch.linalg.vector_norm(values)))
            left, values, right = svd_of_product(up, down)
            return Decomposition(values, left, right, float(torch.linalg.vector_norm(values)))
        matrix = self.matrix().detach()
        self._check_finite(matrix)
        if randomised is not None and min(matrix.shape) > 2 * (randomised + OVERSAMPLING):
            return randomised_svd(matrix, randomised)
        return _dense_svd(matrix.double(), vectors=vectors)

    def _check_finite(self, *tensors: Tensor) -> None:
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
            raise AdapterError(
                f"{self.name}: the update has NaN or infinite values; give earlier weights, such as a checkpoint"
            )


def _dense_svd(matrix: Tensor, *, vectors: bool) -> Decomposition:
    changed = matrix.any(dim=1)
    if not changed.any():
        count = min(matrix.shape)
        left, right = (matrix.new_zeros(size, count) if vectors else None for size in matrix.shape)
        return Decomposition(matrix.new_zeros(count), left, right, 0.0)
    is_sparse = matrix.shape[0] > matrix.shape[1] and 2 * int(changed.sum()) < len(changed)
    rows = matrix[changed] if is_sparse else matrix  # few rows of an embedding are trained
    norm = float(torch.linalg.matrix_norm(rows))
    if not vectors:
        return Decomposition(torch.linalg.svdvals(rows), None, None, norm)
    left, values, right = torch.linalg.svd(rows, full_matrices=False)
    if is_sparse:
        scattered = left.new_zeros(matrix.shape[0], left.shape[1])
        scattered[changed] = left
        left = scattered
    return Decomposition(values, left, right.mT, norm)


def randomised_svd(matrix: Tensor, count: int) -> Decomposition:
    """Compute the largest singular values and vectors by a randomised range finder with power iterations.

    The error is known: the values are those of the projection of the matrix on a subspace, and `residual` is the norm
    of the rest (Halko, Martinsson, Tropp 2011, arXiv 0909.4061, algorithms 4.4 and 5.1).

    Args:
        matrix: [d_out, d_in]
        count: of the values
    """
    generator = torch.Generator(device=matrix.device).manual_seed(0)
    columns = min(count + OVERSAMPLING, *matrix.shape)
    working = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    start = torch.randn(matrix.shape[1], columns, generator=generator, device=matrix.device, dtype=working.dtype)
    basis = torch.linalg.qr(working @ start)[0]
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(working.mT @ basis)[0]
        basis = torch.linalg.qr(working @ basis)[0]
    basis = torch.linalg.qr(basis.double())[0]  # orthonormal in float64, so that the residual is right
    left, values, right = torch.linalg.svd(basis.mT @ working.double(), full_matrices=False)
    norm = float(torch.linalg.vector_norm(working.double()))
    kept = float(torch.linalg.vector_norm(values[:count]))
    residual = max(norm**2 - kept**2, 0.0) ** 0.5
    return Decomposition(values[:count], basis @ left[:, :count], right[:count].mT, norm, residual)
