"""MultiLoRA as pure functions. The layer, merging, export and analysis all call them.

MultiLoRA (Wang et al. 2023, arXiv 2311.11501) adds n parallel low-rank branches to a frozen linear map:

    y = W x + b + c * sum_{i=1..n} s_i (.) B_i A_i x            c = alpha / r

          x ──────────────── W, b ─────────────────┐
          ├── A_1 ── B_1 ── (.) s_1 ── * c ────────┤
          ├── ...                                  + ── y
          └── A_n ── B_n ── (.) s_n ── * c ────────┘

Every s_i starts at zero, so the untrained adapter does not change the model; A_i and B_i are Kaiming-uniform (LoRA
starts B at zero instead). Folding s into B leaves one pair of matrices, so MultiLoRA is computed, merged, analysed
and exported as a LoRA of rank n*r, with two matrix products whatever n is:

    B_eff = c * [s_1 (.) B_1 | ... | s_n (.) B_n]       Delta W = B_eff A       A = [A_1; ...; A_n]

Shapes (the branches are stacked along the rank axis):

    A       [n*r, d_in]     down-projections, branch i in rows i*r .. (i+1)*r
    B       [d_out, n*r]    up-projections, branch i in columns i*r .. (i+1)*r
    scale   [d_out, n]      learned scales, one vector per branch ("vector"), or [n] ("scalar")
    x       [..., d_in]     ->  y [..., d_out]

For a stack of matrices, such as the experts of a mixture of experts, A, B and scale have one more leading axis (the
"scalar" scale is then [experts, 1, n]); the formulas below apply to each matrix of the stack.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "delta_weight",
    "effective_up_projection",
    "init_branches_",
    "low_rank_forward",
    "scaling_constant",
]


def scaling_constant(alpha: float, r: int, *, rank_stabilized: bool = False) -> float:
    """The constant factor c of the branches: alpha / r, or alpha / sqrt(r) (rsLoRA, arXiv 2312.03732).

    `r` is the rank of one branch, not the total rank n*r.
    """
    return alpha / math.sqrt(r) if rank_stabilized else alpha / r


@torch.no_grad()
def init_branches_(A: Tensor, B: Tensor, scale: Tensor, num_branches: int) -> None:
    """Fill the parameters in place: A_i, B_i Kaiming-uniform with a = sqrt(5), every scale zero (paper, section 3).

    Kaiming-uniform with a = sqrt(5) is U(+-1/sqrt(fan_in)). The fan-in of A_i is d_in; that of B_i is r, the rank of
    one branch, although all branches are stored in one [d_out, n*r] matrix.
    """
    r = A.shape[-2] // num_branches
    A.uniform_(-1 / math.sqrt(A.shape[-1]), 1 / math.sqrt(A.shape[-1]))
    B.uniform_(-1 / math.sqrt(r), 1 / math.sqrt(r))
    scale.zero_()


def effective_up_projection(B: Tensor, scale: Tensor, c: float) -> Tensor:
    """B_eff = c * [s_1 (.) B_1 | ... | s_n (.) B_n].

    Args:
        B: [..., d_out, n*r]
        scale: [..., d_out, n], [..., 1, n] or [n]; the last axis has one entry per branch
        c: the constant factor, see `scaling_constant`

    Returns:
        [..., d_out, n*r]
    """
    # [n] and [d_out, n] both broadcast against [d_out, n, r] once the rank axis is added.
    branches = B.view(*B.shape[:-1], scale.shape[-1], -1)
    return (branches * (scale if c == 1 else c * scale).unsqueeze(-1)).view(B.shape)


def low_rank_forward(x: Tensor, A: Tensor, up: Tensor) -> Tensor:
    """The update's contribution to the output, (x A^T) up^T; x [..., d_in] -> [..., d_out].

    The small matrices are cast to the dtype of `x` and not the other way round, so that float32 parameters on a
    bfloat16 base need only bfloat16 products.
    """
    return F.linear(F.linear(x, A.to(x.dtype)), up.to(x.dtype))


def delta_weight(A: Tensor, B: Tensor, scale: Tensor, c: float) -> Tensor:
    """The dense update Delta W = B_eff A, [..., d_out, d_in], in the parameters' dtype (at least float32)."""
    dtype = torch.promote_types(A.dtype, torch.float32)
    return effective_up_projection(B.to(dtype), scale.to(dtype), c) @ A.to(dtype)
