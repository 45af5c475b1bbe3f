"""Cross-entropy of a linear output head, a chunk of tokens at a time: the logits of all tokens never exist at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Logits of a chunk: 128 MiB in float32; smaller chunks read a wide head's weight too often.
CHUNK_LOGITS = 2**25


@dataclass(frozen=True)
class LogitMap:
    """What a model does to its head's output z, element by element: scale * z, or cap * tanh(scale * z / cap)."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """The model's logits, of the same shape; in place."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        return logits if self.cap is None else logits.div_(self.cap).tanh_().mul_(self.cap)

    def slope(self, logits: Tensor) -> Tensor | float:
        """The derivative by the head's output, from the model's logits."""
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
    """The cross-entropy of every token, with gradients to the hidden states and to a trained head.

    Logits are computed in the head's dtype (under autocast in autocast's), their softmax in float32. With a frozen head
    the gradient of every token's loss by its hidden state is computed beside the loss, while its logits exist, and
    scaled in backward; with a trained one (or in float16, whose range needs the loss scale first) the logits are
    computed a second time in backward. Either way memory holds the logits of one chunk.

    Args:
        hidden: [tokens, d]
        weight, bias: the head's, [vocabulary, d] and [vocabulary] or None
        targets: token ids, [tokens]
        logit_map: applied to the head's output
        chunk: tokens whose logits exist at once; by default as many as make 2^25 logits

    Returns:
        [tokens], float32, in nats
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    chunk = chunk or max(1, CHUNK_LOGITS // weight.shape[0])
    given = (hidden, weight, bias, targets, logit_map or LogitMap(), chunk, dtype)
    if torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in given[:3]):
        apply: Any = _LinearCrossEntropy.apply
        losses: Tensor = apply(*given)
        return losses
    return _losses(*given, gradient=False)[0]


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
    """Losses [tokens] and, if asked for, their gradients by the hidden states [tokens, d]."""
    losses = hidden.new_empty(len(targets), dtype=torch.float32)
    d_hidden = torch.empty_like(hidden) if gradient else None
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        head = weight.to(dtype)
        for part, d_logits in _chunks(hidden, head, bias, targets, logit_map, chunk, losses=losses, gradient=gradient):
            if d_hidden is not None:
                d_hidden[part] = d_logits.to(dtype) @ head
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
    """Each chunk's place and the gradients of its losses by the head's output, [chunk, vocabulary] in float32.

    One buffer becomes the logits, their exponentials, the softmax and the gradient in turn. The losses are written to
    `losses`; without `gradient` the buffer holds nothing of use.
    """
    offset = None if bias is None else bias.to(head.dtype)
    for start in range(0, len(targets), chunk):
        part = slice(start, start + chunk)
        buffer = logit_map(F.linear(hidden[part].to(head.dtype), head, offset).float())
        slope = logit_map.slope(buffer) if gradient else 1.0
        target = targets[part, None]
        chosen = buffer.gather(1, target)
        largest = buffer.amax(dim=1, keepdim=True)
        total = buffer.sub_(largest).exp_().sum(dim=1, keepdim=True)
        if losses is not None:
            losses[part] = (total.log() + largest - chosen).squeeze(1)
        if gradient:
            buffer.div_(total).scatter_add_(1, target, torch.full_like(chosen, -1.0)).mul_(slope)
        yield part, buffer
        del buffer, slope  # before the next chunk's are made; the caller drops its own


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
        ctx.again = any(ctx.needs_input_grad[1:3]) or dtype == torch.float16
        ctx.options = logit_map, chunk, dtype
        losses, d_hidden = _losses(
            hidden, weight, bias, targets, logit_map, chunk, dtype, gradient=not ctx.again and ctx.needs_input_grad[0]
        )
        if ctx.again:
            ctx.save_for_backward(hidden, weight, bias, targets)
        else:
            ctx.save_for_backward(d_hidden)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rest = (None,) * 4
        if not ctx.again:
            (d_hidden,) = ctx.saved_tensors
            return d_hidden * gradient[:, None].to(d_hidden.dtype), None, None, *rest
        hidden, weight, bias, targets = ctx.saved_tensors
        logit_map, chunk, dtype = ctx.options
        wants = ctx.needs_input_grad
        d_hidden = torch.empty_like(hidden) if wants[0] else None
        # Sums over chunks: in float32, as a single product would add them up.
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if wants[1] else None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if wants[2] else None
        with torch.autocast(hidden.device.type, enabled=False):
            head = weight.to(dtype)
            for part, d_logits in _chunks(hidden, head, bias, targets, logit_map, chunk):
                d_logits.mul_(gradient[part, None])
                if d_bias is not None:
                    d_bias += d_logits.sum(dim=0)
                scaled = d_logits.to(dtype)
                if d_hidden is not None:
                    d_hidden[part] = scaled @ head
                if d_weight is not None and dtype == torch.float32:
                    d_weight.addmm_(scaled.T, hidden[part].to(dtype))
                elif d_weight is not None:
                    d_weight += scaled.T @ hidden[part].to(dtype)
                del d_logits, scaled
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
            *rest,
        )
