"""The scoring engine: log-likelihoods of continuations, with everything that requests share computed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from multilora.evaluation.requests import Request, Scored
from multilora.evaluation.scoring.batches import default_batch_tokens
from multilora.evaluation.scoring.engine import Engine, Scores
from multilora.evaluation.scoring.prefix_tree import MIN_PREFIX
from multilora.evaluation.scoring.supported import supported_sharing
from multilora.evaluation.share_out import Share
from multilora.progress import Advance

# A subtree of at most this many tokens becomes one row; the attention of a longer row would cost too much.
ROW_TOKENS = 768


@torch.no_grad()
def score_requests(
    model: Any,
    requests: Sequence[Request],
    *,
    batch_tokens: int | None = None,
    advance: Advance = lambda *_: None,
    share: bool = True,
) -> list[Scored]:
    """Score continuations.

    Results do not depend on batch size, order or sharing, up to rounding.

    Args:
        model: a causal language model, in eval mode, with or without adapters
        requests: any number; contexts and continuations must fit into the model's positions
        batch_tokens: tokens per forward pass, padding included; by default, chosen for the device. If memory runs out,
            it is halved
        advance: called with the number of finished requests
        share: with several processes, share the requests out among them; all must call this with the same requests

    Returns:
        one entry per request, in order

    Raises:
        RunError: a single row does not fit into memory.
    """
    sharing = supported_sharing(model, requests)
    work = Share(model, requests, active=share)
    scores = Scores(work.requests)
    tokens = batch_tokens or default_batch_tokens(model)
    engine = Engine(model, sharing, tokens, scores, advance, may_retry=not work.lockstep)
    stages = sharing.plan(work.requests, row_tokens=ROW_TOKENS, min_prefix=MIN_PREFIX)
    work.announce(engine.count(stages))
    for stage in stages:
        engine.run(stage)
    work.finish(lambda: engine.idle_forward())
    return work.gather(scores.results())
