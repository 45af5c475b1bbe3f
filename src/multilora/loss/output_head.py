"""Check whether a model's output head is a plain linear map, and detect what the model does to its output.

Some models scale the head's output (Cohere, Granite) or soft-cap it (Gemma 2). This is measured instead of read from
their configs: the head temporarily returns known values, a `LogitMap` is fitted to the logits that the model makes of
them, and its result is compared with those logits.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from multilora.loss.linear_cross_entropy import LogitMap

logger = logging.getLogger(__name__)

HeadForward = Callable[[Tensor], Tensor]
# Values that the head returns for the measurement. The last one reveals a cap, the second the slope at zero.
_PROBE = (0.0, 1e-4, 1.0, -1.0, 3.0, -10.0, 30.0, 100.0, -100.0, 1e30)
_SAMPLE = 8
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

# The map detected for each head, or the reason why there is none.
_detected: WeakKeyDictionary[nn.Module, LogitMap | str] = WeakKeyDictionary()
_warned: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def base_of(model: Any) -> Any:
    """Return the transformers model inside the wrappers of DDP, PEFT, torch.compile and the like."""
    return _wrapper_chain(model)[-1]


def _wrapper_chain(model: Any) -> list[Any]:
    """Return the model and everything it wraps, down to the transformers model."""
    chain = [model]
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(getattr(model, "module", None), nn.Module):
            model = model.module
        elif hasattr(model, "get_base_model"):
            model = model.get_base_model()
        else:
            return chain
        chain.append(model)


def plain_head(model: Any) -> nn.Linear | None:
    """Return the output head if its output depends only on its weight and bias; otherwise warn once and return None.

    The head must be exactly an `nn.Linear` in floating point, without hooks, adapters or a replaced `forward`, and the
    model must not be compiled as a whole. FSDP2 and ZeRO-3 may shard it, since they gather its weight in the forward.
    """
    wrappers = _wrapper_chain(model)
    base = wrappers[-1]
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    reason = _why_not_plain(wrappers, head)
    if reason is not None:
        warn_once(base, reason)
        return None
    return cast(nn.Linear, head)


def _why_not_plain(wrappers: list[Any], head: Any) -> str | None:
    for wrapper in wrappers:
        if hasattr(wrapper, "_orig_mod") or getattr(wrapper, "_compiled_call_impl", None) is not None:
            return "the model is compiled"
    # FSDP2 replaces a module's class by a subclass of it and FSDPModule.
    if type(head) is not nn.Linear and type(head).__bases__ != (FSDPModule, nn.Linear):
        return f"it is a {type(head).__name__}, not an nn.Linear"
    sharded = any(isinstance(module, FSDPModule) for module in (*wrappers, head))
    for parameter in (head.weight, head.bias):
        if parameter is None:
            continue
        plain = type(parameter.data) is Tensor or (sharded and isinstance(parameter, DTensor))
        if not (plain and parameter.is_floating_point()):
            return f"its parameters are {type(parameter.data).__name__}, not plain floating-point tensors"
    if "forward" in vars(head) or any(_foreign(hook) for name in _HOOKS for hook in getattr(head, name).values()):
        return "it has hooks or a replaced forward"
    return None


def _foreign(hook: Any) -> bool:
    """Return whether a hook does not belong to FSDP2 or DeepSpeed, whose hooks only gather and release the weight."""
    return not str(getattr(hook, "__module__", "")).startswith(("torch.distributed.fsdp.", "deepspeed."))


def warn_once(base: nn.Module, reason: str) -> None:
    """Warn that the loss falls back to the model's own logits; once per model and reason."""
    if _warned.get(base) != reason:
        _warned[base] = reason
        logger.warning(
            "the output head of %s is not used as a plain linear map (%s): the loss is computed from the model's own "
            "logits, which needs more memory",
            type(base).__name__,
            reason,
        )


@contextmanager
def replaced(head: nn.Linear, forward: HeadForward) -> Iterator[list[int]]:
    """Temporarily replace the `forward` of a head. Not thread-safe.

    Yields:
        a list that grows by one entry per call of the head
    """
    calls: list[int] = []

    def counted(hidden: Tensor) -> Tensor:
        calls.append(1)
        return forward(hidden)

    vars(head)["forward"] = counted
    try:
        yield calls
    finally:
        del vars(head)["forward"]


def logit_map_of(model: Any, head: nn.Linear, inputs: dict[str, Any], trained: Tensor) -> LogitMap | None:
    """Detect the map from the head's output to the logits; if it is not a `LogitMap`, warn once and return None.

    The first call for a head runs one extra forward pass without gradients; the state of the random number generators
    is restored afterwards.

    Args:
        model: the model, with or without wrappers
        head: from `plain_head`
        inputs: of the model
        trained: mask of the trained positions, [batch, length - 1], at least one true
    """
    if head not in _detected:
        with torch.no_grad(), _preserved_random_state(trained.device):
            try:
                _detected[head] = _measure(model, head, inputs, trained)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, IndexError, ValueError, TypeError, AttributeError) as error:
                _detected[head] = f"{type(error).__name__}: {error}"
    result = _detected[head]
    if isinstance(result, LogitMap):
        return result
    warn_once(base_of(model), result)
    return None


def _measure(model: Any, head: nn.Linear, inputs: dict[str, Any], trained: Tensor) -> LogitMap | str:
    """Return the fitted map, or the reason why the model's logits are not a `LogitMap` of the head's output."""
    head_outputs: list[Tensor] = []

    def probe(hidden: Tensor) -> Tensor:
        if hidden.shape[:2] != (trained.shape[0], trained.shape[1] + 1):
            raise ValueError(f"its input has shape {list(hidden.shape)}, not one hidden state per token")
        if isinstance(head.weight, DTensor):
            raise ValueError("its weight is still sharded in its forward")
        sample = hidden[:, :-1][trained][:_SAMPLE]
        actual = F.linear(sample, head.weight, head.bias).float()
        known = torch.tensor(_PROBE, device=actual.device)[:, None].expand(-1, actual.shape[-1])
        head_outputs.append(torch.cat([actual, known])[None])
        return head_outputs[-1]

    with replaced(head, probe) as calls:
        logits = model(**inputs, use_cache=False).logits
    if len(calls) != 1:
        return f"it is called {len(calls)} times in a forward pass"
    (head_output,) = head_outputs
    if logits.shape != head_output.shape:
        return f"the model turns its output of shape {list(head_output.shape)} into logits of {list(logits.shape)}"
    responses = logits[0, -len(_PROBE) :, 0].tolist()
    fitted = _fit(responses)
    # Equal up to float32 rounding. NaN may come from the hidden states themselves, so it counts as equal.
    close = torch.allclose(logits[0], fitted(head_output[0].clone()), rtol=1e-5, atol=1e-5, equal_nan=True)
    if close and not any(map(math.isnan, responses)):
        return fitted
    return "the model does more to its output than scale and cap it"


def _fit(values: list[float]) -> LogitMap:
    """Return the only `LogitMap` that can map `_PROBE` to `values`."""
    response = dict(zip(_PROBE, values, strict=True))
    limit = response[_PROBE[-1]]
    if abs(limit) > 1e20:
        return LogitMap(scale=response[1.0])
    scale = response[1e-4] / 1e-4
    return LogitMap(scale=1.0 if abs(scale - 1) < 1e-5 else scale, cap=limit)


@contextmanager
def _preserved_random_state(device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
