"""The branches' share of a linear map, added to the base's output, with a backward of its own.

Same numbers as `functional.low_rank_forward`, but lean: parameters stay float32 while all products run in the dtype of
the input; the update is accumulated into the base's output where that is safe; and only the input and one n*r-wide
vector per token are kept for backward. The effective up-projection and the dropout mask are made again there.

    up = B_eff(B, s, c)          h = D(x) A^T          y = base + h up^T            D: dropout, by a seed
    g = dL/dy:   dh = g up       d_up = g^T h          dA = dh^T D(x)     dx = D(dh A)
                 dB = d_up * c s                       ds = c * sum over a branch's columns of d_up * B
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from multilora.functional import effective_up_projection


def add_branches(
    base: Tensor, x: Tensor, A: Tensor, B: Tensor, scale: Tensor, c: float, *, dropout: float, in_place: bool
) -> Tensor:
    """base + D(x) A^T B_eff^T.

    Args:
        base: the frozen map's output [..., d_out], in the dtype of `x`
        x: [..., d_in]
        A, B, scale, c: see `multilora.functional`
        dropout: probability of zeroing an input feature; 0 for none
        in_place: write the result over `base`, see `may_overwrite`
    """
    apply: Callable[..., Tensor] = _AddBranches.apply
    return apply(base, x, A, B, scale, c, dropout, in_place)


def applies(base_layer: Any, base: Tensor, x: Tensor) -> bool:
    """Whether `add_branches` may be used on this output of this layer; the plain form serves where it may not.

    Not while compiling (the compiler fuses the plain form itself, and decides what to keep), not under functorch
    transforms, and not where base and input differ in dtype.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return base.dtype == x.dtype and type(base_layer) is torch.nn.Linear


def may_overwrite(base_layer: Any, base: Tensor) -> bool:
    """Whether nothing but the caller holds this output of a linear: no hook has seen it, and it is no view.

    A linear's backward does not need its own output, so autograd does not hold it either.
    """
    return base.is_contiguous() and base._base is None and not base_layer._forward_hooks


def _dropped(x: Tensor, p: float, seed: int) -> Tensor:
    """x with features zeroed at random and the rest scaled by 1 / (1 - p); the same for the same seed."""
    if p == 0:
        return x
    generator = torch.Generator(device=x.device).manual_seed(seed)
    keep = torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(1 - p, generator=generator)
    return torch.where(keep, x / (1 - p), 0)


class _AddBranches(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        base: Tensor,
        x: Tensor,
        A: Tensor,
        B: Tensor,
        scale: Tensor,
        c: float,
        dropout: float,
        in_place: bool,
    ) -> Tensor:
        # The seed comes from the CPU's generator: no wait for a device, and checkpointing restores it.
        seed = int(torch.randint(2**62, ())) if dropout else 0
        flat = x.reshape(-1, x.shape[-1])
        h = _dropped(flat, dropout, seed) @ A.to(x.dtype).T
        up = effective_up_projection(B, scale, c).to(x.dtype)
        if in_place:
            base.view(-1, base.shape[-1]).addmm_(h, up.T)
            ctx.mark_dirty(base)
            y = base
        else:
            # A tensor of its own, not a view of one: an in-place activation may follow.
            y = base.clone(memory_format=torch.contiguous_format)
            y.view(-1, y.shape[-1]).addmm_(h, up.T)
        ctx.save_for_backward(x, h, A, B, scale)
        ctx.c, ctx.dropout, ctx.seed = c, dropout, seed
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, h, A, B, scale = ctx.saved_tensors
        needs_base, needs_x, needs_A, needs_B, needs_scale = ctx.needs_input_grad[:5]
        g = grad.reshape(-1, grad.shape[-1])
        up = effective_up_projection(B, scale, ctx.c).to(x.dtype)
        d_x = d_A = d_B = d_scale = None
        if needs_x or needs_A:
            d_h = g @ up
            if needs_A:
                flat = _dropped(x.reshape(-1, x.shape[-1]), ctx.dropout, ctx.seed)
                d_A = (d_h.T @ flat).to(A.dtype)
            if needs_x:
                d_x = _dropped(d_h @ A.to(x.dtype), ctx.dropout, ctx.seed).view(x.shape)
        if needs_B or needs_scale:
            n = scale.shape[-1]
            d_up = (g.T @ h).to(B.dtype).view(B.shape[0], n, -1)
            if needs_B:
                d_B = (d_up * (ctx.c * scale).unsqueeze(-1)).view(B.shape)
            if needs_scale:
                d_scale = ctx.c * (d_up * B.view(d_up.shape)).sum(-1)
                d_scale = d_scale if scale.dim() == 2 else d_scale.sum(0)
        return grad if needs_base else None, d_x, d_A, d_B, d_scale, None, None, None
