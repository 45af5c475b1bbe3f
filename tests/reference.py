"""Reference implementation of MultiLoRA with plain loops over branches, independent of the package.

y = W x + b + c * sum_i s_i (.) B_i (A_i x), for lists of per-branch matrices in float64.
"""

from __future__ import annotations

from torch import Tensor


def forward(
    x: Tensor, W: Tensor, b: Tensor | None, As: list[Tensor], Bs: list[Tensor], scales: list[Tensor], c: float
) -> Tensor:
    """Map x [tokens, d_in] to [tokens, d_out], one token and one branch at a time."""
    import torch

    rows = []
    for token in x:
        y = W @ token
        if b is not None:
            y = y + b
        for A, B, s in zip(As, Bs, scales, strict=True):
            y = y + c * s * (B @ (A @ token))
        rows.append(y)
    return torch.stack(rows)


def delta_weight(As: list[Tensor], Bs: list[Tensor], scales: list[Tensor], c: float) -> Tensor:
    """Compute the sum over branches of c * diag(s_i) B_i A_i, entry by entry."""
    import torch

    d_out, d_in = Bs[0].shape[0], As[0].shape[1]
    delta = torch.zeros(d_out, d_in, dtype=As[0].dtype)
    for A, B, s in zip(As, Bs, scales, strict=True):
        for o in range(d_out):
            factor = s if s.dim() == 0 else s[o]
            for i in range(d_in):
                delta[o, i] += c * factor * sum(B[o, k] * A[k, i] for k in range(A.shape[0]))
    return delta
