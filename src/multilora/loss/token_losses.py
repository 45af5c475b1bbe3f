"""Loss of every trained token, with only one chunk of logits in memory at a time.

The loss is computed inside the model's own forward pass: during the call, the output head returns the losses of the
trained tokens instead of logits. Everything before the head therefore runs as usual, through all wrappers (DDP, PEFT,
autocast), the weight is read where the model reads it, and the logits of a full batch are never materialized. What the
model does to the head's output (scaling, soft-capping) is detected once per head by `multilora.loss.output_head` and
applied to each chunk. If the head is adapted, quantized, hooked or compiled, or the model does more to its output, the
loss is computed from the model's own logits.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, is_grad_enabled
from torch.nn import functional as F

from multilora.errors import RunError
from multilora.loss.linear_cross_entropy import linear_cross_entropy
from multilora.loss.output_head import base_of, logit_map_of, plain_head, replaced


def token_losses(
    model: Any, inputs: dict[str, Tensor], labels: Tensor, *, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the cross-entropy of every trained token.

    Logits are computed for the trained tokens only, one chunk at a time: in the forward pass and, for a trained head,
    again in the backward pass. The first call for a model runs one extra forward pass without gradients.

    Args:
        model: a causal language model, with or without adapters and wrappers
        inputs: input_ids and attention_mask or position_ids, [batch, length]
        labels: [batch, length], -100 where not trained on; token t is predicted at position t - 1
        chunk: tokens per chunk; by default, chosen so that a chunk has at most 2^25 logits

    Returns:
        (losses [trained tokens] in float32 nats, row by row; mask [batch, length - 1] of the trained positions)

    Raises:
        RunError: the model does not call its output head exactly once, with one hidden state per token.
    """
    targets = labels[:, 1:]
    trained = targets != -100
    trained_targets = targets[trained]
    head = plain_head(model) if len(trained_targets) else None
    logit_map = None if head is None else logit_map_of(model, head, inputs, trained)
    if head is None or logit_map is None:
        return _from_logits(model, inputs, targets, trained), trained

    results: list[Tensor] = []

    def losses_of(hidden: Tensor) -> Tensor:
        if hidden.shape[:2] != labels.shape:
            raise RunError(
                f"the output head received hidden states of shape {list(hidden.shape)} for labels of shape "
                f"{list(labels.shape)}; expected one state per token (prompt learning adds virtual tokens, which are "
                "not supported)"
            )
        results.append(
            linear_cross_entropy(
                hidden[:, :-1][trained], head.weight, head.bias, trained_targets, logit_map, chunk=chunk
            )
        )
        return results[-1][None, :, None].clone()  # wrappers register hooks on the output, which a view could lose

    with replaced(head, losses_of) as calls:
        output = model(**inputs, use_cache=False).logits
    if len(calls) != 1:
        raise RunError(f"the output head was called {len(calls)} times in a forward pass, expected 1")
    (losses,) = results
    if is_grad_enabled():
        # Keep the output in the graph, so that the hooks that wrappers registered on it run in backward.
        losses = losses + 0.0 * output.reshape(-1)
    return losses, trained


def _from_logits(model: Any, inputs: dict[str, Tensor], targets: Tensor, trained: Tensor) -> Tensor:
    """Compute the losses from the model's own logits, at the positions that any row trains on (`logits_to_keep`)."""
    positions = trained.any(dim=0).nonzero().squeeze(-1)
    if _accepts_logits_to_keep(model):
        logits = model(**inputs, logits_to_keep=positions, use_cache=False).logits
    else:
        logits = model(**inputs, use_cache=False).logits[:, positions]
    trained = trained[:, positions]
    return F.cross_entropy(logits[trained].float(), targets[:, positions][trained], reduction="none")


def _accepts_logits_to_keep(model: Any) -> bool:
    return "logits_to_keep" in inspect.signature(base_of(model).forward).parameters
