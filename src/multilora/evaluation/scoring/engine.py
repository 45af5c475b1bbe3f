"""Run the planned forward passes on a model and collect the scores."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multilora.errors import RunError
from multilora.evaluation.requests import Request, Scored
from multilora.evaluation.scoring.batches import Batch, batches_of
from multilora.evaluation.scoring.last_layer import computed_only_at, last_mlp, last_position
from multilora.evaluation.scoring.prefix_tree import Prefix, Stage, plan_stages
from multilora.evaluation.scoring.shared_cache import (
    KeysValues,
    attention_masks,
    cache_behind,
    growing_cache,
    keys_values,
)
from multilora.evaluation.scoring.target_scores import target_scores
from multilora.loss.output_head import base_of
from multilora.progress import Advance

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sharing:
    """What is computed once or not at all.

    prefixes: tokens shared by a cache
    trees: tokens shared by rows with a mask of their own
    last_mlp: the last feed-forward module computes scored tokens only
    """

    prefixes: bool = True
    trees: bool = True
    last_mlp: bool = True

    def plan(self, requests: Sequence[Request], *, row_tokens: int, min_prefix: int) -> list[Stage]:
        """Plan the forward passes, see `plan_stages`."""
        return plan_stages(
            requests, row_tokens=row_tokens if self.trees else 0, min_prefix=min_prefix if self.prefixes else 2**31
        )


class Scores:
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
        """Return the answers, in the order of the requests."""
        return [
            Scored(self.values[start:end].clone(), bool(self.greedy[start:end].all()))
            for start, end in zip(self.starts.tolist(), self.ends.tolist(), strict=True)
        ]


class Engine:
    """Runs stages on a model.

    Args:
        model: a causal language model
        sharing: what the model supports
        batch_tokens: tokens per forward pass
        scores: gets the results
        advance: called with the number of finished requests
        may_retry: halve the batches if memory runs out; else it is an error
    """

    def __init__(
        self,
        model: Any,
        sharing: Sharing,
        batch_tokens: int,
        scores: Scores,
        advance: Advance,
        *,
        may_retry: bool,
    ) -> None:
        self.model, self.batch_tokens, self.scores, self.advance = model, batch_tokens, scores, advance
        self.own_masks, self.may_retry = sharing.trees, may_retry
        self.mlp = last_mlp(model) if sharing.last_mlp else None
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
        scored.sort(key=lambda item: item[0])
        # At least one place, so that no module gets an empty batch.
        places, position = np.unique([place for place, _ in scored] or [0], return_inverse=True)
        row, column = self._tensor(places // batch.width), self._tensor(places % batch.width)
        with nullcontext() if self.mlp is None else computed_only_at(self.mlp, row, column, batch.width):
            if not scored:
                self.model(**inputs, **({"logits_to_keep": last_position()} if batch.width > 1 else {}))
                return
            token = self._tensor([target.token for _, target in scored])
            values, greedy = target_scores(self.model, inputs, row, column, self._tensor(position), token)
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
        if trees or (batch.prefix_length and self.own_masks):
            inputs["attention_mask"] = attention_masks(self.model, batch.rows, batch.prefix_length, batch.width)
        else:
            # Padding is on the right, where no scored token sees it. Most models then attend without a mask.
            size = batch.prefix_length + batch.width
            inputs["attention_mask"] = torch.ones((len(batch.rows), size), dtype=torch.long, device=self.device)
        return inputs

    def _tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(np.asarray(values, dtype=np.int64), device=self.device)

    def idle_forward(self) -> None:
        """Take part in a forward pass of the other processes, without work of its own."""
        self.model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=self.device), use_cache=False)
