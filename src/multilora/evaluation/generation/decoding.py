"""Continuous batching: finished rows leave the batch at once, and waiting prompts take their places."""

from __future__ import annotations

import gc
import inspect
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from multilora.errors import RunError
from multilora.evaluation.generation.slot_cache import ROOM, SlotCache, gathered, shifted
from multilora.evaluation.generation.stops import Row, Stops
from multilora.evaluation.scoring.last_layer import computed_only_at, last_mlp, last_position

# A common start of prompts is computed once if it has this many tokens and is half of the shortest prompt.
SHARED_TOKENS = 32

# (logits [rows, vocabulary], rows) -> the next token of each row
Choose = Callable[[Tensor, Sequence[Row]], list[int]]


class Forward:
    """Call a model with a cache; compute the logits of the last position only.

    Attributes:
        mlp: the feed-forward module of the last layer, to be computed at the last position only; None to compute all
    """

    def __init__(self, model: Any, pad: int) -> None:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._model, self.pad, self.device = model, pad, model.device
        self.mlp = last_mlp(model)
        accepted = inspect.signature(base.forward).parameters
        self._positions = "position_ids" in accepted
        self._options = {"logits_to_keep": last_position()} if "logits_to_keep" in accepted else {}

    def __call__(self, ids: Tensor, positions: Tensor, mask: Tensor | None, cache: SlotCache) -> Tensor:
        """Return logits [rows, vocabulary] after the last token.

        Args:
            ids: [rows, new tokens]
            positions: of the new tokens in their sequences, [rows, new tokens]
            mask: 0 for padding, [rows, slots in the cache + new tokens]; None if there is no padding
            cache: gets the new tokens
        """
        options = {**self._options, "position_ids": positions} if self._positions else self._options
        count, width = ids.shape
        rows = torch.arange(count, device=ids.device)
        last = nullcontext() if self.mlp is None or width == 1 else computed_only_at(self.mlp, rows, width - 1, width)
        with last:
            output = self._model(
                input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, return_dict=True, **options
            )
        logits: Tensor = output.logits[:, -1]
        return logits


def prefill(
    forward: Forward, sequences: Sequence[list[int]], prefix: SlotCache | None = None
) -> tuple[Tensor, SlotCache]:
    """Compute the keys and values of sequences, and the logits [rows, vocabulary] after their last tokens.

    Args:
        forward: of the model
        sequences: token ids
        prefix: keys and values of the common first tokens, shorter than the shortest sequence
    """
    width = max(map(len, sequences))
    offsets = [width - len(ids) for ids in sequences]
    start = 0 if prefix is None else prefix.get_seq_length()
    # With a prefix all rows run the same number of last tokens: shorter rows recompute the end of the prefix.
    cache = SlotCache() if prefix is None else shifted(prefix, start, offsets)
    padded = [[forward.pad] * offset + ids for offset, ids in zip(offsets, sequences, strict=True)]
    slots = torch.arange(width)
    mask = (slots >= torch.tensor(offsets)[:, None]).long()
    positions = (slots - torch.tensor(offsets)[:, None]).clamp(min=0)
    device = forward.device
    logits = forward(
        torch.tensor(padded)[:, start:].to(device),
        positions[:, start:].to(device),
        mask.to(device) if any(offsets) else None,
        cache,
    )
    return logits, cache


class Decoder:
    """Generate for rows in a batch whose members change.

    The batch has at most `batch_tokens` slots: rows x (tokens of the longest + tokens it may still generate).
    Running out of memory halves it.

    Args:
        forward: of the model
        choose: picks the next tokens from logits
        stops: decide when rows end
        batch_tokens: slots at first; a single row may need more
        prefill_tokens: tokens per forward pass over prompts
        finished: called with the number of rows that have finished
        halve: recover from running out of memory; else it is an error
    """

    def __init__(
        self,
        forward: Forward,
        choose: Choose,
        stops: Stops,
        *,
        batch_tokens: int,
        prefill_tokens: int,
        finished: Callable[[int], None],
        halve: bool = True,
    ) -> None:
        self._forward, self._choose, self._stops, self._finished = forward, choose, stops, finished
        self._batch_tokens, self._prefill_tokens, self._halve = batch_tokens, prefill_tokens, halve
        self._rows: list[Row] = []  # in the cache, except for their last tokens
        self._entering: list[Row] = []
        self._clear()

    def _clear(self) -> None:
        self._cache: SlotCache | None = None
        self._prefix: tuple[list[int], SlotCache] | None = None
        self._mask: Tensor | None = None

    def run(self, rows: Sequence[Row]) -> None:
        """Set the result of every row.

        Raises:
            RunError: the device has too little memory for a single row.
        """
        waiting = deque(sorted(rows, key=_longest_first))
        while waiting or self._rows:
            problem = None
            try:
                self._enter(waiting)
                if self._rows:
                    self._step()
            except torch.OutOfMemoryError as error:
                problem = str(error)  # not the error itself: its traceback refers to tensors
            if problem is not None:
                self._recover(waiting, problem)

    def _recover(self, waiting: deque[Row], problem: str) -> None:
        """Halve the batch; its rows wait again, with the tokens that they have."""
        rows = [row for row in [*self._rows, *self._entering] if row.result is None]
        tokens, room = max(len(row.ids) for row in rows), max(row.room for row in rows)
        if (len(rows) == 1 and self._prefix is None) or not self._halve:
            advice = (
                "a shorter prompt, a lower max_new_tokens, a quantized model or a larger device"
                if len(rows) == 1
                else "a lower batch_tokens (a sharded model cannot retry with a smaller batch)"
            )
            raise RunError(
                f"out of memory while generating for {len(rows)} prompts of up to {tokens} tokens, up to {room} new "
                f"tokens each ({' '.join(problem.split())[:200]}); use {advice}"
            )
        self._batch_tokens = min(self._batch_tokens, len(rows) * (tokens + room)) // 2
        self._prefill_tokens = min(self._prefill_tokens, self._batch_tokens)
        self._rows, self._entering = [], []
        self._clear()
        rows = sorted([*rows, *waiting], key=_longest_first)
        waiting.clear()
        waiting.extend(rows)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _enter(self, waiting: deque[Row]) -> None:
        """Let waiting rows into the batch if at least a quarter of it is free."""
        count = self._free(waiting)
        if not count:
            return
        self._entering = [waiting.popleft() for _ in range(count)]
        prefix = self._shared_prefix([row.ids for row in self._entering])
        caches, kept = [], []
        for part in self._parts(self._entering, prefix.get_seq_length() if prefix else 0):
            logits, cache = prefill(self._forward, [row.ids for row in part], prefix)
            kept.append(self._append(part, self._choose(logits, part)))
            caches.append(cache)
        if self._cache is not None:
            caches.insert(0, self._cache)
            kept.insert(0, list(range(len(self._rows))))
        self._rows = [row for row in [*self._rows, *self._entering] if row.result is None]
        self._entering = []
        self._join(caches, kept)

    def _free(self, waiting: deque[Row]) -> int:
        """Number of waiting rows to let in now."""
        if not waiting:
            return 0
        width = max((len(row.ids) for row in self._rows), default=0)
        room = max((row.room for row in self._rows), default=0)
        count = 0
        for row in waiting:
            width, room = max(width, len(row.ids)), max(room, row.room)
            if (len(self._rows) + count + 1) * (width + room) > self._batch_tokens:
                break
            count += 1
        if not self._rows:
            return max(count, 1)
        enough = count == len(waiting) or 4 * count >= len(self._rows) + count
        return count if enough else 0

    def _parts(self, rows: list[Row], shared: int) -> list[list[Row]]:
        """Split rows, longest first, into forward passes."""
        parts: list[list[Row]] = []
        for row in rows:
            if not parts or (len(parts[-1]) + 1) * (len(parts[-1][0].ids) - shared) > self._prefill_tokens:
                parts.append([])
            parts[-1].append(row)
        return parts

    def _shared_prefix(self, sequences: Sequence[list[int]]) -> SlotCache | None:
        """The cache of the sequences' common start, if it is worth it; kept for the sequences that follow."""
        limit = min(map(len, sequences)) - 1  # every row needs logits, so at least one token remains
        common = common_start(min(sequences), max(sequences))[:limit]
        known, cache = self._prefix or (list[int](), None)
        reusable = len(common_start(known, common))
        needed = max(SHARED_TOKENS, (limit + 1) // 2)
        if cache is not None and reusable >= needed and 4 * reusable >= 3 * len(common):
            return cache if reusable == len(known) else shifted(cache, reusable, [0])
        if len(sequences) == 1 or len(common) < needed:
            return None
        _, cache = prefill(self._forward, [common])
        self._prefix = (common, cache)
        return cache

    def _step(self) -> None:
        """Generate one token for every row."""
        assert self._cache is not None
        slots = self._cache.get_seq_length() + 1
        if self._mask is not None and self._mask.shape[1] < slots:
            self._mask = torch.nn.functional.pad(self._mask, (0, ROOM), value=1)
        ids = torch.tensor([row.ids[-1:] for row in self._rows], device=self._forward.device)
        mask = None if self._mask is None else self._mask[:, :slots]
        logits = self._forward(ids, self._positions, mask, self._cache)
        self._positions += 1
        kept = self._append(self._rows, self._choose(logits, self._rows))
        if len(kept) < len(self._rows):
            if not kept:
                self._rows, self._cache = [], None
                return
            width = max(len(self._rows[index].ids) for index in kept) - 1
            order = self._cache.keep(kept, width)
            self._rows = [self._rows[index] for index in order]
            self._align(width)

    def _append(self, rows: Sequence[Row], tokens: Sequence[int]) -> list[int]:
        """Add a token to each row; return the indices of the rows that go on."""
        kept = [index for index, row in enumerate(rows) if not self._stops.add(row, tokens[index])]
        if len(kept) < len(rows):
            self._finished(len(rows) - len(kept))
        return kept

    def _join(self, caches: list[SlotCache], kept: list[list[int]]) -> None:
        """Form the batch of the rows that go on, from several caches, as narrow as its longest row."""
        if not self._rows:
            self._cache = None
            return
        width = max(len(row.ids) for row in self._rows) - 1
        self._cache = gathered(caches, kept, width)
        self._align(width)

    def _align(self, width: int) -> None:
        """Set the mask and the next positions after the rows have changed."""
        device = self._forward.device
        lengths = torch.tensor([[len(row.ids) - 1] for row in self._rows])
        self._positions = lengths.to(device)
        starts = width - lengths
        self._mask = (torch.arange(width + ROOM) >= starts).long().to(device) if starts.any() else None


def _longest_first(row: Row) -> tuple[int, int]:
    """Sort key: the longest rows first, so that running out of memory happens immediately."""
    return -len(row.ids), row.index


def common_start(first: list[int], second: list[int]) -> list[int]:
    """Return the longest common start of two lists; that of the least and the greatest of many is common to all."""
    if first == second[: len(first)]:
        return first
    return first[: next(i for i, (a, b) in enumerate(zip([*first, None], [*second, None], strict=False)) if a != b)]
