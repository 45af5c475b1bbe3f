"""Find out by trying what a model supports, once per model.

Some requests are scored with and without shared prefixes, with and without rows that are trees, and with and without a
complete last layer. What does not give the same result is not used, with a warning if that takes much longer.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from multilora.evaluation.requests import Request
from multilora.evaluation.scoring.engine import Engine, Scores, Sharing
from multilora.evaluation.scoring.last_layer import last_mlp
from multilora.loss.output_head import base_of

logger = logging.getLogger(__name__)

# Difference of a log-probability, in nats, that rounding always explains.
TOLERANCE = {torch.float32: 2e-3, torch.float64: 1e-6}
LOW_PRECISION_TOLERANCE = 0.1
SHORT_TREE = 16  # tokens of the requests with a short start
NOTHING = Sharing(prefixes=False, trees=False, last_mlp=False)
_NAMES = {"prefixes": "computed prefixes", "trees": "rows"}

_supported: WeakKeyDictionary[nn.Module, Sharing] = WeakKeyDictionary()


@torch.no_grad()
def supported_sharing(model: Any, requests: Sequence[Request]) -> Sharing:
    """Return what can be shared with a model; the first call for a model scores some requests in both ways."""
    base = base_of(model)
    if base not in _supported and requests:
        _supported[base] = _try_sharing(model, requests)
    return _supported.get(base, NOTHING)


def _try_sharing(model: Any, requests: Sequence[Request]) -> Sharing:
    """Score a few of the longest requests in every way."""
    longest = max(requests, key=lambda request: len(request.context) + len(request.continuation))
    context = longest.context + longest.continuation
    vocabulary = base_of(model).config.get_text_config().vocab_size
    # Requests with a common start, a fork in the middle and another at the end.
    half, fork = len(context) // 2, [(token + 1) % vocabulary for token in context[-3:]]
    if len(context) < 4:
        context, half = context * 4, 2 * len(context)
    sample = [
        Request(context[:-1], context[-1:]),
        Request(context[:-2], fork[:2]),
        Request(context[:half] + fork, context[half : half + 2]),
        Request(context[:half] + fork[::-1], fork),
        # A short start, since a few tokens that are seen by mistake change little behind a long one.
        Request(context[-4:] + fork, fork[::-1]),
        Request(context[-4:] + fork[::-1], fork),
    ]
    expected = _score_sample(model, sample, NOTHING)
    alone = [_score_sample(model, [request], NOTHING)[0] for request in sample]
    # How much padding changes the result is what rounding explains.
    noise = max(float((a - b).abs().max()) for a, b in zip(expected, alone, strict=True))
    largest = max(float(values.abs().max()) for values in expected)
    tolerance = _tolerance(next(model.parameters()).dtype, noise, largest)
    supported = NOTHING
    for name in ("prefixes", "trees", "last_mlp"):
        if name == "last_mlp" and last_mlp(model) is None:
            continue
        candidate = replace(supported, **{name: True})  # together with what has worked
        try:
            shared = _score_sample(model, sample, candidate)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # models refuse caches and masks in many ways
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        else:
            difference = max(float((a - b).abs().max()) for a, b in zip(shared, expected, strict=True))
            reason = "" if difference <= tolerance else f"log-probabilities differ by {difference:.2g} nats"
        supported = replace(supported, **{name: not reason})
        if reason and name in _NAMES:
            logger.warning(
                "%s: evaluation does not share %s between requests and takes longer (%s)",
                type(base_of(model)).__name__,
                _NAMES[name],
                reason,
            )
    return supported


def _tolerance(dtype: torch.dtype, noise: float, largest: float) -> float:
    """Return the largest difference of log-probabilities, in nats, that rounding explains.

    Args:
        dtype: of the model
        noise: largest difference that padding makes
        largest: absolute value of a log-probability; logits are of its size, and rounded in the dtype of the model
    """
    spacing = torch.finfo(dtype).eps * largest if dtype.is_floating_point else 0.0
    return max(4 * noise, 2 * spacing, TOLERANCE.get(dtype, LOW_PRECISION_TOLERANCE))


def _score_sample(model: Any, sample: Sequence[Request], sharing: Sharing) -> list[Tensor]:
    scores = Scores(sample)
    engine = Engine(model, sharing, 2**31, scores, lambda *_: None, may_retry=False)
    # Trees and prefixes together: the start of the longest becomes a prefix, and what is behind it a tree.
    longest = max(len(request.context) + len(request.continuation) for request in sample)
    row_tokens = max(3 * longest // 4, SHORT_TREE) if sharing.prefixes else 2**31
    for stage in sharing.plan(sample, row_tokens=row_tokens, min_prefix=1):
        engine.run(stage)
    return [result.tokens for result in scores.results()]
