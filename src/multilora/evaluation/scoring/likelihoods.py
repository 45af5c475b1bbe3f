"""The scoring engine: log-likelihoods of continuations, with everything that requests share computed once.

What a model supports is found out by trying: before the first batch, some requests are scored with and without shared
prefixes, and with and without rows that are trees. What does not give the same result is not used, with a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from multilora.errors import RunError
from multilora.evaluation.requests import Request, Scored
from multilora.evaluation.scoring.batches import Batch, batches_of, default_batch_tokens
from multilora.evaluation.scoring.prefix_tree import MIN_PREFIX, Prefix, Stage, plan_stages
from multilora.evaluation.scoring.shared_cache import KeysValues, cache_behind, growing_cache, keys_values, tree_mask
from multilora.evaluation.scoring.target_scores import target_scores
from multilora.evaluation.share_out import Share
from multilora.loss.output_head import base_of
from multilora.progress import Advance

logger = logging.getLogger(__name__)


# A subtree of at most this many tokens becomes one row; the attention of a longer row would cost too much.
ROW_TOKENS = 768
# Largest difference of a log-probability, in nats, that rounding explains.
TOLERANCE = {torch.float32: 2e-3, torch.float64: 1e-6}
LOW_PRECISION_TOLERANCE = 0.1


@dataclass(frozen=True)
class Sharing:
    """What is shared between requests: `prefixes` by a cache, `trees` by rows with a mask of their own."""

    prefixes: bool = True
    trees: bool = True

    def plan(self, requests: Sequence[Request], *, row_tokens: int, min_prefix: int) -> list[Stage]:
        """Plan the forward passes, see `plan_stages`."""
        return plan_stages(
            requests, row_tokens=row_tokens if self.trees else 0, min_prefix=min_prefix if self.prefixes else 2**31
        )


NOTHING = Sharing(prefixes=False, trees=False)
_supported: WeakKeyDictionary[nn.Module, Sharing] = WeakKeyDictionary()


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
    scores = _Scores(work.requests)
    engine = _Engine(model, batch_tokens or default_batch_tokens(model), scores, advance, may_retry=not work.lockstep)
    stages = sharing.plan(work.requests, row_tokens=ROW_TOKENS, min_prefix=MIN_PREFIX)
    work.announce(engine.count(stages))
    for stage in stages:
        engine.run(stage)
    work.finish(lambda: engine.idle_forward())
    return work.gather(scores.results())


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
    ]
    expected = _score_sample(model, sample, NOTHING)
    alone = [_score_sample(model, [request], NOTHING)[0] for request in sample]
    # How much padding changes the result is what rounding explains.
    noise = max(float((a - b).abs().max()) for a, b in zip(expected, alone, strict=True))
    dtype = next(model.parameters()).dtype
    tolerance = max(4 * noise, TOLERANCE.get(dtype, LOW_PRECISION_TOLERANCE))
    results = {}
    for name, candidate in (("prefixes", Sharing(trees=False)), ("trees", Sharing(prefixes=False))):
        try:
            shared = _score_sample(model, sample, candidate)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # models refuse caches and masks in many ways
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        else:
            difference = max(float((a - b).abs().max()) for a, b in zip(shared, expected, strict=True))
            reason = "" if difference <= tolerance else f"log-probabilities differ by {difference:.2g} nats"
        results[name] = not reason
        if reason:
            logger.warning(
                "%s: evaluation does not share %s between requests and takes longer (%s)",
                type(base_of(model)).__name__,
                "computed prefixes" if name == "prefixes" else "rows",
                reason,
            )
    return Sharing(**results)


def _score_sample(model: Any, sample: Sequence[Request], sharing: Sharing) -> list[Tensor]:
    scores = _Scores(sample)
    engine = _Engine(model, 2**31, scores, lambda *_: None, may_retry=False)
    for stage in sharing.plan(sample, row_tokens=2**31, min_prefix=1):
        engine.run(stage)
    return [result.tokens for result in scores.results()]


class _Scores:
    """Collects the scored tokens of every request."""

    def __init__(self, requests: Sequence[Request]) -> None:
        ends = np.cumsum([0, *(len(request.continuation) for request in requests)])
        self.starts, self.ends = ends[:-1], ends[1:]
        self.values = torch.full((int(ends[-1]),), torch.nan)
        self.greedy = torch.zeros(int(ends[-1]), dtype=torch.bool)
        self.left = np.diff(ends)

    def add(self, request: Sequence[int], index: Sequence[int], values: Tensor, greedy: Tensor) -> int:
        """Store scored tokens; returns how many requests are now finished."""
        places = torch.from_numpy(self.starts[request] + np.asarray(index))
        self.values[places], self.greedy[places] = values.float().cpu(), greedy.cpu()
        numbers, counts = np.unique(request, return_counts=True)
        self.left[numbers] -= counts
        return int((self.left[numbers] == 0).sum())

    def results(self) -> list[Scored]:
        return [
            Scored(self.values[start:end].clone(), bool(self.greedy[start:end].all()))
            for start, end in zip(self.starts.tolist(), self.ends.tolist(), strict=True)
        ]


class _Engine:
    """Runs stages on a model."""

    def __init__(self, model: Any, batch_tokens: int, scores: _Scores, advance: Advance, *, may_retry: bool) -> None:
        self.model, self.batch_tokens, self.scores, self.advance = model, batch_tokens, scores, advance
        self.may_retry = may_retry
        self.device = base_of(model).device
        self._chain: list[tuple[Prefix, KeysValues]] = []  # the prefixes above the current stage

    def count(self, stages: Sequence[Stage]) -> int:
        """Return the number of forward passes."""
        prefixes = sum(stage.prefix is not None for stage in stages)
        return prefixes + sum(len(list(batches_of(stage, self.batch_tokens))) for stage in stages)

    def run(self, stage: Stage) -> None:
        """Score the rows of a stage, and those of its prefix if it is new."""
        prefix = self._prefix(stage.prefix)
        pending = list(batches_of(stage, self.batch_tokens))[::-1]
        while pending:
            batch = pending.pop()
            try:
                self._forward(batch, None if prefix is None else cache_behind(prefix))
            except torch.OutOfMemoryError as error:
                if not self.may_retry or len(batch.rows) == 1:
                    raise RunError(
                        f"out of memory: a sequence of {batch.width} tokens behind {batch.prefix_length} others does "
                        "not fit; use a smaller max_length, or more memory"
                    ) from error
                self.batch_tokens = max(1, min(self.batch_tokens, batch.tokens) // 2)
                logger.warning("out of memory: continuing with %d tokens per batch", self.batch_tokens)
                rows = [row for later in [batch, *pending[::-1]] for row in later.rows]
                pending = list(batches_of(Stage(stage.prefix, rows), self.batch_tokens))[::-1]
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()

    def _prefix(self, prefix: Prefix | None) -> KeysValues | None:
        """Return the keys and values of a prefix; those of the last prefix and its parents are kept."""
        wanted: list[Prefix] = []
        while prefix is not None:
            wanted.append(prefix)
            prefix = prefix.parent
        wanted.reverse()
        while self._chain and (
            len(self._chain) > len(wanted) or self._chain[-1][0] is not wanted[len(self._chain) - 1]
        ):
            self._chain.pop()
        for item in wanted[len(self._chain) :]:
            cache = growing_cache(self._chain[-1][1] if self._chain else None)
            self._forward(Batch([item.row], item.parent.length if item.parent else 0), cache)
            self._chain.append((item, keys_values(cache)))
        return self._chain[-1][1] if self._chain else None

    def _forward(self, batch: Batch, cache: Any) -> None:
        inputs = {**self._inputs(batch), "use_cache": cache is not None}
        if cache is not None:
            inputs["past_key_values"] = cache
        scored = [
            (row_index * batch.width + column, target)
            for row_index, row in enumerate(batch.rows)
            for column, target in row.targets
        ]
        if not scored:
            self.model(**inputs, **({"logits_to_keep": 1} if batch.width > 1 else {}))
            return
        scored.sort(key=lambda item: item[0])
        places, position = np.unique([place for place, _ in scored], return_inverse=True)
        values, greedy = target_scores(
            self.model,
            inputs,
            self._tensor(places // batch.width),
            self._tensor(places % batch.width),
            self._tensor(position),
            self._tensor([target.token for _, target in scored]),
        )
        requests, indices = ([getattr(target, name) for _, target in scored] for name in ("request", "index"))
        self.advance(self.scores.add(requests, indices, values, greedy))

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        ids = np.zeros((len(batch.rows), batch.width), dtype=np.int64)
        positions = np.zeros_like(ids)
        for index, row in enumerate(batch.rows):
            size = len(row)
            ids[index, :size] = row.tokens
            positions[index, :size] = row.positions
            positions[index, size:] = row.positions[-1]
        inputs: dict[str, Any] = {"input_ids": self._tensor(ids)}
        trees = not all(row.is_linear for row in batch.rows)
        if trees or batch.prefix_length:  # else they count from 0, and not every model takes them
            inputs["position_ids"] = self._tensor(positions)
        if trees:
            inputs["attention_mask"] = tree_mask(self.model, batch.rows, batch.prefix_length, batch.width)
        else:
            # Padding is on the right, where no scored token sees it; a mask would only slow attention down.
            size = batch.prefix_length + batch.width
            inputs["attention_mask"] = torch.ones((len(batch.rows), size), dtype=torch.long, device=self.device)
        return inputs

    def _tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(np.asarray(values, dtype=np.int64), device=self.device)

    def idle_forward(self) -> None:
        """Take part in a forward pass of the other processes, without work of its own."""
        self.model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=self.device), use_cache=False)
