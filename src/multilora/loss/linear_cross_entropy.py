"""Chunked cross-entropy of a linear output head: only one chunk of logits is in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Logits per chunk: 128 MiB in float32. Smaller chunks would read the weight of a wide head too often.
CHUNK_LOGITS = 2**25


@dataclass(frozen=True)
class LogitMap:
    """Elementwise map from the head's output z to the logits: scale * z, or cap * tanh(scale * z / cap)."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Turn the head's output into logits, in place."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        return logits if self.cap is None else logits.div_(self.cap).tanh_().mul_(self.cap)

    def slope(self, logits: Tensor) -> Tensor | float:
        """Return the derivative with respect to the head's output, computed from the logits."""
        return self.scale if self.cap is None else logits.div(self.cap).square_().neg_().add_(1).mul_(self.scale)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    logit_map: LogitMap | None = None,
    *,
    chunk: int | None = None,
) -> Tensor:
    """Compute the cross-entropy of every token, differentiable in the hidden states and in a trained head.

    Logits are computed in the head's dtype (under autocast, in autocast's dtype), their softmax in float32. With a
    frozen head, the forward pass also computes the gradient of each token's loss with respect to its hidden state, and
    the backward pass only scales it. With a trained head, or in float16, where gradients must be scaled before they are
    rounded, the backward pass recomputes the logits. Either way, only one chunk of logits is in memory.

    Args:
        hidden: [tokens, d]
        weight, bias: of the head, [vocabulary, d] and [vocabulary] or None
        targets: token ids, [tokens]
        logit_map: applied to the head's output
        chunk: tokens per chunk; by default, chosen so that a chunk has at most 2^25 logits

    Returns:
        [tokens], float32, in nats
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    chunk = chunk or max(1, CHUNK_LOGITS // weight.shape[0])
    arguments = (hidden, weight, bias, targets, logit_map or LogitMap(), chunk, dtype)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in arguments[:3]):
        apply: Any = _LinearCrossEntropy.apply
        losses: Tensor = apply(*arguments)
        return losses
    return _losses(*arguments, gradient=False)[0]


def _losses(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    logit_map: LogitMap,
    chunk: int,
    dtype: torch.dtype,
    *,
    gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return the losses [tokens] and, if `gradient`, their gradients with respect to the hidden states [tokens, d]."""
    losses = hidden.new_empty(len(targets), dtype=torch.float32)
    d_hidden = torch.empty_like(hidden) if gradient else None
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        head = weight.to(dtype)
        for tokens, d_logits in _chunks(
            hidden, head, bias, targets, logit_map, chunk, losses=losses, gradient=gradient
        ):
            if d_hidden is not None:
                d_hidden[tokens] = d_logits.to(dtype) @ head
            del d_logits
    return losses, d_hidden


def _chunks(
    hidden: Tensor,
    head: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    logit_map: LogitMap,
    chunk: int,
    *,
    losses: Tensor | None = None,
    gradient: bool = True,
) -> Iterator[tuple[slice, Tensor]]:
    """Yield each chunk's slice of tokens and the gradient of its losses with respect to the head's output.

    The gradient is [chunk, vocabulary] in float32. A single buffer holds the logits, their exponentials, the softmax
    and the gradient in turn. The losses are written to `losses`. Without `gradient`, ignore the yielded buffer.
    """
    head_bias = None if bias is None else bias.to(head.dtype)
    for start in range(0, len(targets), chunk):
        tokens = slice(start, start + chunk)
        buffer = logit_map(F.linear(hidden[tokens].to(head.dtype), head, head_bias).float())
        slope = logit_map.slope(buffer) if gradient else 1.0
        target = targets[tokens, None]
        target_logits = buffer.gather(1, target)
        largest = buffer.amax(dim=1, keepdim=True)
        total = buffer.sub_(largest).exp_().sum(dim=1, keepdim=True)
        if losses is not None:
            losses[tokens] = (total.log() + largest - target_logits).squeeze(1)
        if gradient:
            buffer.div_(total).scatter_add_(1, target, torch.full_like(target_logits, -1.0)).mul_(slope)
        yield tokens, buffer
        del buffer, slope  # free them before the next chunk is computed; the caller does the same


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        logit_map: LogitMap,
        chunk: int,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.recompute = any(ctx.needs_input_grad[1:3]) or dtype == torch.float16
        ctx.options = logit_map, chunk, dtype
        gradient = not ctx.recompute and ctx.needs_input_grad[0]
        losses, d_hidden = _losses(hidden, weight, bias, targets, logit_map, chunk, dtype, gradient=gradient)
        if ctx.recompute:
            ctx.save_for_backward(hidden, weight, bias, targets)
        else:
            ctx.save_for_backward(d_hidden)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        no_gradients = (None,) * 4  # targets, logit_map, chunk, dtype
        if not ctx.recompute:
            (d_hidden,) = ctx.saved_tensors
            return d_hidden * gradient[:, None].to(d_hidden.dtype), None, None, *no_gradients
        hidden, weight, bias, targets = ctx.saved_tensors
        logit_map, chunk, dtype = ctx.options
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden) if needs_hidden else None
        # Sum over chunks in float32, as a single matrix product would.
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            head = weight.to(dtype)
            for tokens, d_logits in _chunks(hidden, head, bias, targets, logit_map, chunk):
                d_logits.mul_(gradient[tokens, None])
                if d_bias is not None:
                    d_bias += d_logits.sum(dim=0)
                scaled = d_logits.to(dtype)
                if d_hidden is not None:
                    d_hidden[tokens] = scaled @ head
                if d_weight is not None and dtype == torch.float32:
                    d_weight.addmm_(scaled.T, hidden[tokens].to(dtype))
                elif d_weight is not None:
                    d_weight += scaled.T @ hidden[tokens].to(dtype)
                del d_logits, scaled
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
            *no_gradients,
        )
