"""The loss of every trained token, with the logits of a chunk of them in memory at a time.

The loss is computed inside the model's own forward: for the call, the output head returns the losses of the trained
tokens in place of logits. So everything before the head is the model's own code, called through whatever wraps it (DDP,
PEFT, autocast), the head's weight is used where the model uses it, and the logits of a whole batch are never formed.
What the model does to the head's output afterwards (scaling, soft-capping) is found once per head by
`multilora.loss.output_head` and applied to each chunk. Where that is not possible, because the head is adapted,
quantised, hooked or compiled or the model does more to its output, the model's own logits are taken.
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
    """Cross-entropy of every trained token.

    The vocabulary projection is taken of the trained tokens alone, a chunk of them at a time, in the forward and again
    (for a trained head) in the backward pass. The first call for a model runs it forward once more, without gradients.

    Args:
        model: a causal language model, adapted or not, wrapped or not
        inputs: input_ids and attention_mask or position_ids, [batch, length]
        labels: [batch, length], -100 where not trained on; token t is predicted at position t - 1
        chunk: tokens whose logits exist at once; by default as many as make 2^25 logits

    Returns:
        (losses [trained tokens] in float32 nats, row after row; mask [batch, length - 1] of the trained positions)
    """
    targets = labels[:, 1:]
    trained = targets != -100
    chosen = targets[trained]
    head = plain_head(model) if len(chosen) else None
    logit_map = None if head is None else logit_map_of(model, head, inputs, trained)
    if head is None or logit_map is None:
        return _from_logits(model, inputs, targets, trained), trained

    results: list[Tensor] = []

    def losses_of(hidden: Tensor) -> Tensor:
        if hidden.shape[:2] != labels.shape:
            raise RunError(
                f"the output head sees states of shape {list(hidden.shape)} for labels of shape {list(labels.shape)}; "
                "the model must give one state per token (prompt learning adds some)"
            )
        results.append(
            linear_cross_entropy(hidden[:, :-1][trained], head.weight, head.bias, chosen, logit_map, chunk=chunk)
        )
        return results[-1][None, :, None].clone()  # wrappers hang hooks on what they get, which a view may lose

    with replaced(head, losses_of) as calls:
        output = model(**inputs, use_cache=False).logits
    if len(calls) != 1:
        raise RunError(f"the output head was called {len(calls)} times in a forward, expected 1")
    (losses,) = results
    if is_grad_enabled():
        # The output belongs to the graph: the hooks that wrappers put on it must fire in backward.
        losses = losses + 0.0 * output.reshape(-1)
    return losses, trained


def _from_logits(model: Any, inputs: dict[str, Tensor], targets: Tensor, trained: Tensor) -> Tensor:
    """The same from the model's own logits, at the positions that some row trains on (`logits_to_keep`)."""
    positions = trained.any(dim=0).nonzero().squeeze(-1)
    if _keeps_logits(model):
        logits = model(**inputs, logits_to_keep=positions, use_cache=False).logits
    else:
        logits = model(**inputs, use_cache=False).logits[:, positions]
    kept = trained[:, positions]
    return F.cross_entropy(logits[kept].float(), targets[:, positions][kept], reduction="none")


def _keeps_logits(model: Any) -> bool:
    return "logits_to_keep" in inspect.signature(base_of(model).forward).parameters
