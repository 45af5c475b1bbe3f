"""A model's output head: is it a plain linear map, and what does the model do to its output?

Some models scale the head's output (Cohere, Granite) or cap it softly (Gemma 2). Nothing is read from their configs:
known values are sent through the model in the head's place and what comes out is fitted by a `LogitMap`, then compared
with the model's own logits.
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
# Sent through the model in place of logits. The last shows a cap, the second the slope at zero.
_PROBE = (0.0, 1e-4, 1.0, -1.0, 3.0, -10.0, 30.0, 100.0, -100.0, 1e30)
_SAMPLE = 8
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

# What was found, per head; the text says why a head is not used.
_found: WeakKeyDictionary[nn.Module, LogitMap | str] = WeakKeyDictionary()
_warned: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def base_of(model: Any) -> Any:
    """The transformers model inside DDP's, PEFT's, torch.compile's and similar wrappers."""
    return _unwrapped(model)[-1]


def _unwrapped(model: Any) -> list[Any]:
    """The model and what it wraps, down to the transformers model."""
    found = [model]
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(getattr(model, "module", None), nn.Module):
            model = model.module
        elif hasattr(model, "get_base_model"):
            model = model.get_base_model()
        else:
            return found
        found.append(model)


def plain_head(model: Any) -> nn.Linear | None:
    """The output head if nothing but its weight and bias decides what it does, else None (and a warning, once).

    It must be an `nn.Linear` itself, in floating point, with no hook, no adapter around it and no forward of its own,
    and the model must not be compiled as a whole. FSDP2 and ZeRO-3 may spread it: in its forward its weight is whole.
    """
    wrappers = _unwrapped(model)
    base = wrappers[-1]
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    reason = _not_plain(wrappers, head)
    if reason is not None:
        warn_once(base, reason)
        return None
    return cast(nn.Linear, head)


def _not_plain(wrappers: list[Any], head: Any) -> str | None:
    for wrapper in wrappers:
        if hasattr(wrapper, "_orig_mod") or getattr(wrapper, "_compiled_call_impl", None) is not None:
            return "the model is compiled"
    # FSDP2 gives a module a class made of its own and FSDPModule.
    if type(head) is not nn.Linear and type(head).__bases__ != (FSDPModule, nn.Linear):
        return f"it is a {type(head).__name__}, not an nn.Linear"
    sharded = any(isinstance(module, FSDPModule) for module in (*wrappers, head))
    for part in (head.weight, head.bias):
        plain = part is None or type(part.data) is Tensor or (sharded and isinstance(part, DTensor))
        if not (plain and (part is None or part.is_floating_point())):
            return f"its parameters are {type(part.data).__name__}, not plain tensors"
    if "forward" in vars(head) or any(_foreign(hook) for name in _HOOKS for hook in getattr(head, name).values()):
        return "it has hooks or a forward of its own"
    return None


def _foreign(hook: Any) -> bool:
    """Whether a hook is not one of FSDP2's or DeepSpeed's, which gather the weight and let it go."""
    return not str(getattr(hook, "__module__", "")).startswith(("torch.distributed.fsdp.", "deepspeed."))


def warn_once(base: nn.Module, reason: str) -> None:
    """Say why a model's own logits are taken; once per model and reason."""
    if _warned.get(base) != reason:
        _warned[base] = reason
        logger.warning(
            "the output head of %s is not used as a plain linear map (%s): the loss takes the model's own logits, "
            "which needs more memory",
            type(base).__name__,
            reason,
        )


@contextmanager
def replaced(head: nn.Linear, forward: HeadForward) -> Iterator[list[int]]:
    """Let a head do something else for a while; the module itself stays in its place. Not thread-safe.

    Yields:
        a list with one entry per call of the head
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
    """What the model makes of its head's output; None (and a warning, once) if that is no `LogitMap`.

    The first call for a head runs the model forward once more, without gradients; the state of the random number
    generators is kept.

    Args:
        model: the model, wrapped or not
        head: from `plain_head`
        inputs: of the model
        trained: [batch, length - 1], at least one true
    """
    if head not in _found:
        with torch.no_grad(), _kept_random_state(trained.device):
            try:
                _found[head] = _look(model, head, inputs, trained)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, IndexError, ValueError, TypeError, AttributeError) as error:
                _found[head] = f"{type(error).__name__}: {error}"
    found = _found[head]
    if isinstance(found, LogitMap):
        return found
    warn_once(base_of(model), found)
    return None


def _look(model: Any, head: nn.Linear, inputs: dict[str, Any], trained: Tensor) -> LogitMap | str:
    sent: list[Tensor] = []

    def look(hidden: Tensor) -> Tensor:
        if hidden.shape[:2] != (trained.shape[0], trained.shape[1] + 1):
            raise ValueError(f"it sees {list(hidden.shape)}, not a state for every token")
        if isinstance(head.weight, DTensor):
            raise ValueError("its weight is spread over processes even in its forward")
        sample = hidden[:, :-1][trained][:_SAMPLE]
        own = F.linear(sample, head.weight, head.bias).float()
        known = torch.tensor(_PROBE, device=own.device)[:, None].expand(-1, own.shape[-1])
        sent.append(torch.cat([own, known])[None])
        return sent[-1]

    with replaced(head, look) as calls:
        logits = model(**inputs, use_cache=False).logits
    if len(calls) != 1:
        return f"it is called {len(calls)} times in a forward"
    if logits.shape != sent[0].shape:
        return f"the model makes {list(logits.shape)} of its output {list(sent[0].shape)}"
    seen = logits[0, -len(_PROBE) :, 0].tolist()
    fitted = _fit(seen)
    # Equal up to rounding in float32, in which the values were sent; NaN in the model's own logits is no difference.
    close = torch.allclose(logits[0], fitted(sent[0][0].clone()), rtol=1e-5, atol=1e-5, equal_nan=True)
    if close and not any(map(math.isnan, seen)):
        return fitted
    return "the model does more to its output than scaling and capping"


def _fit(values: list[float]) -> LogitMap:
    """The map that gives `values` for `_PROBE`, if any does."""
    seen = dict(zip(_PROBE, values, strict=True))
    far = seen[_PROBE[-1]]
    if abs(far) > 1e20:
        return LogitMap(scale=seen[1.0])
    scale = seen[1e-4] / 1e-4
    return LogitMap(scale=1.0 if abs(scale - 1) < 1e-5 else scale, cap=far)


@contextmanager
def _kept_random_state(device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
