"""The frozen linear map and its branches as one autograd function.

It computes the same as the plain form (the base's output plus `functional.low_rank_forward`) with less time and memory:
parameters stay in float32 while all products run in the dtype of the input; the update is accumulated into the base's
product; and only the input and one n*r-wide vector per token are saved for backward, which recomputes the effective
up-projection and the dropout mask.

    up = B_eff(B, s, c)          h = D(x) A^T          y = x W^T + b + h up^T        D: dropout with a seed
    g = dL/dy:   dh = g up       d_up = g^T h          dA = dh^T D(x)     dx = g W + D(dh A)
                 dB = d_up * c s                       ds = c * sum over a branch's columns of d_up * B

If the base layer has to be called itself (it is quantised, has hooks or a trained weight), only the branches are added
to its output. Second derivatives are not supported and raise an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.module import _has_any_global_hook
from transformers.pytorch_utils import Conv1D

from multilora.errors import AdapterError
from multilora.functional import effective_up_projection


def applies(x: Tensor) -> bool:
    """Whether the fused form can be used for this input; otherwise use the plain form.

    It cannot be used when compiling (the compiler fuses the plain form and decides what to save) or tracing, under
    functorch transforms or forward-mode differentiation, and for tensor subclasses (fake tensors, DTensor) or the meta
    device.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or torch._C._is_tracing():
        return False
    if type(x) not in (Tensor, nn.Parameter) or x.is_meta:
        return False
    return torch.autograd.forward_ad._current_level < 0


def frozen_weight(base_layer: nn.Module, x: Tensor) -> Tensor | None:
    """The base's weight as [d_out, d_in] if its product can be computed without calling the layer; else None.

    This needs a dense, frozen `nn.Linear` or `Conv1D` without hooks and without a replaced `forward` (accelerate's
    offloading replaces it), and a dtype that matches the input's.
    """
    if type(base_layer) not in (nn.Linear, Conv1D) or "forward" in vars(base_layer):
        return None
    if _has_any_global_hook():  # type: ignore[no-untyped-call]
        return None
    hooks = (base_layer._forward_hooks, base_layer._forward_pre_hooks, base_layer._backward_hooks)
    if any(hooks) or base_layer._backward_pre_hooks:
        return None
    weight = cast(Tensor, base_layer.weight)
    if type(weight) not in (Tensor, nn.Parameter) or weight.requires_grad or not weight.dtype.is_floating_point:
        return None
    if weight.device != x.device:
        return None
    # For other dtypes the base itself raises the error, except under autocast, which casts.
    if weight.dtype != x.dtype and (weight.dtype == torch.float64 or not torch.is_autocast_enabled(x.device.type)):
        return None
    return weight.T if type(base_layer) is Conv1D else weight


def linear_with_branches(
    x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: Tensor, c: float, *, dropout: float
) -> Tensor:
    """x W^T + b + D(x) A^T B_eff^T, all products in the dtype of `x`; W gets no gradient.

    Args:
        x: [..., d_in]
        weight: [d_out, d_in], see `frozen_weight`
        bias: [d_out] or None
        A, B, scale, c: see `multilora.functional`
        dropout: dropout probability of the branches' input; 0 for none
    """
    return _apply(x, None, weight, bias, A, B, scale, c, dropout)


def add_branches(base: Tensor, x: Tensor, A: Tensor, B: Tensor, scale: Tensor, c: float, *, dropout: float) -> Tensor:
    """base + D(x) A^T B_eff^T, where `base` [..., d_out] is the base's output in the dtype of `x`."""
    return _apply(x, base, None, None, A, B, scale, c, dropout)


def _apply(x: Tensor, base: Tensor | None, weight: Tensor | None, bias: Tensor | None, A: Tensor, *rest: Any) -> Tensor:
    if A.device != x.device:
        raise AdapterError(
            f"the adapter's parameters are on {A.device}, the input on {x.device}; move the whole model to one device"
        )
    apply: Callable[..., Tensor] = _WithBranches.apply
    if not torch.is_autocast_enabled(x.device.type):
        return apply(x, base, weight, bias, A, *rest)
    with torch.autocast(x.device.type, enabled=False):  # `_WithBranches` does all casts itself
        return apply(x, base, weight, bias, A, *rest)


class _Dropout:
    """Dropout whose mask is determined by a seed, so that backward can recompute it.

    Each entry uses 16 random bits, several times cheaper than `bernoulli_` on a CPU, so the probability is rounded to
    1 / 65536. Kept entries are not scaled: `gain` is applied to A, which is smaller than the activations.
    """

    def __init__(self, p: float, seed: int | None = None) -> None:
        self.dropped = min(round(p * 2**16), 2**16 - 1)
        self.gain = 2**16 / (2**16 - self.dropped)
        if seed is None:
            # From the CPU's generator: this does not synchronise with the device, and checkpointing restores its state.
            seed = int(torch.randint(2**62, (), device="cpu")) if self.dropped else 0
        self.seed = seed

    def __call__(self, x: Tensor) -> Tensor:
        if not self.dropped:
            return x
        generator = torch.Generator(device=x.device).manual_seed(self.seed)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
        bits = words.random_(-(2**63), None, generator=generator).view(torch.int16)[: x.numel()].view(x.shape)
        return x * (bits >= self.dropped - 2**15)


class _WithBranches(torch.autograd.Function):
    """Takes either the base's output (`base`) or its parameters (`weight`, `bias`); the other is None."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        base: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        scale: Tensor,
        c: float,
        dropout: float,
    ) -> Tensor:
        dtype, d_out = x.dtype, B.shape[0]
        drop = _Dropout(dropout) if dropout else None
        flat = x.reshape(-1, x.shape[-1])
        h = torch.mm(flat if drop is None else drop(flat), _down(A, drop, dtype).T)
        up = _in_dtype(effective_up_projection(B, scale, c), dtype)
        if base is not None:
            y = torch.addmm(base.reshape(-1, d_out), h, up.T)
        else:
            assert weight is not None
            weight = _in_dtype(weight, dtype)
            y = torch.mm(flat, weight.T) if bias is None else torch.addmm(_in_dtype(bias, dtype), flat, weight.T)
            y.addmm_(h, up.T)
        if x.dim() != 2:  # in place, since `y` must not be a view: an in-place activation may follow
            y.resize_(*x.shape[:-1], d_out)
        needs_x, _, _, _, needs_A, needs_B, needs_scale = ctx.needs_input_grad[:7]
        ctx.save_for_backward(
            x if needs_A else None,
            h if needs_B or needs_scale else None,
            weight if needs_x else None,
            A if needs_x else None,
            B,
            scale,
        )
        ctx.c, ctx.dropout, ctx.seed = c, dropout, 0 if drop is None else drop.seed
        ctx.shape = x.shape
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        # Only for `create_graph=True`, because the wrapper takes as long as a small product.
        backward = _backward_once if torch.is_grad_enabled() else _backward
        if not torch.is_autocast_enabled(grad.device.type):
            return backward(ctx, grad)
        with torch.autocast(grad.device.type, enabled=False):
            return backward(ctx, grad)


def _backward(ctx: Any, grad: Tensor) -> Any:
    x, h, weight, A, B, scale = ctx.saved_tensors
    needs_x, needs_base, _, needs_bias, needs_A, needs_B, needs_scale = ctx.needs_input_grad[:7]
    c, dtype = ctx.c, grad.dtype
    g = grad.reshape(-1, grad.shape[-1])
    drop = _Dropout(ctx.dropout, ctx.seed) if ctx.dropout else None
    d_x = d_A = d_B = d_scale = None
    if needs_x or needs_A:
        d_h = g @ _in_dtype(effective_up_projection(B, scale, c), dtype)
    if needs_A:
        flat = x.reshape(-1, x.shape[-1])
        d_A = _in_dtype(d_h.T @ (flat if drop is None else drop(flat)), torch.promote_types(B.dtype, dtype))
        d_A = d_A if drop is None else d_A.mul_(drop.gain)
    if needs_x:
        d_x = _input_gradient(g, weight, d_h, _down(A, drop, dtype), drop).view(ctx.shape)
    if needs_B or needs_scale:
        n = scale.shape[-1]
        d_up = _in_dtype(g.T @ h, B.dtype).view(B.shape[0], n, -1)
        if needs_scale:
            d_scale = (d_up * B.view(d_up.shape)).sum(-1 if scale.dim() == 2 else (0, 2))
            d_scale = d_scale if c == 1 else d_scale.mul_(c)
        if needs_B:
            d_B = d_up.mul_((scale if c == 1 else c * scale).unsqueeze(-1)).view(B.shape)
    d_bias = g.sum(0) if needs_bias else None
    return d_x, grad if needs_base else None, None, d_bias, d_A, d_B, d_scale, None, None


_backward_once = once_differentiable(_backward)


def _in_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in a dtype; a call of `Tensor.to` that changes nothing would cost as much as a small product."""
    return x if x.dtype == dtype else x.to(dtype)


def _down(A: Tensor, drop: _Dropout | None, dtype: torch.dtype) -> Tensor:
    return _in_dtype(A if drop is None else A * drop.gain, dtype)


def _input_gradient(g: Tensor, weight: Tensor | None, d_h: Tensor, A: Tensor, drop: _Dropout | None) -> Tensor:
    """g W + D(d_h A), [tokens, d_in]; without the first term if the base layer computed its own product."""
    if weight is None:
        return d_h @ A if drop is None else drop(d_h @ A)
    d_x = torch.mm(g, _in_dtype(weight, g.dtype))
    return d_x.addmm_(d_h, A) if drop is None else d_x.add_(drop(d_h @ A))
