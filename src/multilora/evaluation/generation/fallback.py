"""Models whose cache the decoder cannot manage: find them, and generate with transformers' own `generate`."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import cycle, groupby, islice
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from multilora.errors import RunError
from multilora.evaluation.generation.decoding import Choose, Forward, prefill
from multilora.evaluation.generation.slot_cache import gathered
from multilora.evaluation.generation.stops import Row, Stops

logger = logging.getLogger(__name__)

# Largest relative error of logits with the cache: rounding of full and of lower precision.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_LOW_PRECISION_TOLERANCE = 0.1

# Model -> bytes per token of its cache (None if the decoder cannot manage it), and whether its last layer must be
# complete.
_CHECKED: WeakKeyDictionary[Any, tuple[int | None, bool]] = WeakKeyDictionary()


def cache_bytes_per_token(model: Any, forward: Forward, tokens: Sequence[int]) -> int | None:
    """Return the size of the keys and values of a token, or None if the decoder cannot manage the model's cache.

    The first call for a model compares logits with and without the cache on short sequences; failing this is logged.

    Args:
        model: a causal language model
        forward: of the model; its `mlp` is set to None if the model needs its last layer complete
        tokens: some token ids, at least one
    """
    if model not in _CHECKED:
        _CHECKED[model] = _try(model, forward, list(islice(cycle(tokens), 12)))
    size, complete = _CHECKED[model]
    if complete:
        forward.mlp = None
    return size


def _try(model: Any, forward: Forward, tokens: list[int]) -> tuple[int | None, bool]:
    if forward.mlp is not None:
        with suppress(Exception):  # tried again with a complete last layer
            return _check(model, forward, tokens), False
    forward.mlp = None
    try:
        return _check(model, forward, tokens), True
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # models raise anything when they meet a cache that they do not know
        logger.warning(
            "%s: cannot manage its cache (%s: %s); generating with the slower model.generate",
            type(model).__name__,
            type(error).__name__,
            " ".join(str(error).split())[:200],
        )
        return None, True


def _check(model: Any, forward: Forward, tokens: list[int]) -> int:
    long, short = tokens[:9], tokens[:2] + tokens[9:11]
    # Rows of different lengths with a common start, then one more token for each: all that the decoder does.
    _, prefix = prefill(forward, [tokens[:2]])
    _, first = prefill(forward, [long, short], prefix)
    _, second = prefill(forward, [short, short[:1]])
    if not (first.holds(2, len(long)) and second.holds(2, len(short))):
        raise ValueError("it does not store keys and values for all tokens")
    cache = gathered([first, second], [[0, 1], [1]], len(long))
    sequences = [[*long, tokens[-1]], [*short, tokens[-1]], [short[0], tokens[-1]]]
    starts = [len(long) + 1 - len(sequence) for sequence in sequences]
    mask = torch.tensor([[0] * start + [1] * (len(long) + 1 - start) for start in starts])
    ids = torch.full((len(sequences), 1), tokens[-1])
    positions = torch.tensor([[len(sequence) - 1] for sequence in sequences])
    device = forward.device
    logits = forward(ids.to(device), positions.to(device), mask.to(device), cache)
    for sequence, actual in zip(sequences, logits, strict=True):
        expected = model(input_ids=torch.tensor([sequence], device=device), use_cache=False).logits[0, -1].float()
        error = float((actual.float() - expected).std() / expected.std())
        if not error <= _TOLERANCE.get(logits.dtype, _LOW_PRECISION_TOLERANCE):
            raise ValueError(f"logits with it differ from those without it by {error:.1g}")
    return cache.bytes_per_token


class _ChooseTokens(LogitsProcessor):  # type: ignore[misc]
    """Choose tokens, add them to the rows, and leave them as the only possible ones."""

    def __init__(self, rows: Sequence[Row], choose: Choose, stops: Stops) -> None:
        self._rows, self._choose, self._stops = rows, choose, stops

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        active = [index for index, row in enumerate(self._rows) if row.result is None]
        only = torch.full_like(scores, float("-inf"))
        only[:, 0] = 0.0
        if active:
            tokens = self._choose(scores[active], [self._rows[index] for index in active])
            only[active, 0] = float("-inf")
            only[active, tokens] = 0.0
            for index, token in zip(active, tokens, strict=True):
                self._stops.add(self._rows[index], token)
        return only


class _AllFinished(StoppingCriteria):  # type: ignore[misc]
    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        return torch.tensor([row.result is not None for row in self._rows], device=input_ids.device)


def plain_generate(
    model: Any,
    rows: Sequence[Row],
    choose: Choose,
    stops: Stops,
    *,
    pad: int,
    batch_tokens: int,
    finished: Callable[[int], None],
    sharded: bool,
) -> None:
    """Set the result of every row with `model.generate`, in batches of prompts of the same length.

    Args:
        model: a causal language model
        rows: without generated tokens
        choose: picks the next tokens from logits
        stops: decide when rows end
        pad: token id for the rows that have finished before their batch
        batch_tokens: prompts x (tokens + tokens to generate) of a batch
        finished: called with the number of rows that have finished
        sharded: over several processes

    Raises:
        RunError: the device has too little memory for a single row.
    """
    batches: list[list[Row]] = []
    for length, same in groupby(sorted(rows, key=lambda row: (-row.prompt, row.index)), key=lambda row: row.prompt):
        group = list(same)
        size = max(1, batch_tokens // (length + max(row.limit for row in group)))
        batches += [group[start : start + size] for start in range(0, len(group), size)]
    batches.reverse()
    while batches:
        batch = batches.pop()
        problem = None
        try:
            _generate_batch(model, batch, choose, stops, pad, sharded)
        except torch.OutOfMemoryError as error:
            problem = str(error)  # not the error itself: its traceback refers to tensors
        if problem is None:
            finished(len(batch))
            continue
        if len(batch) == 1 or sharded:
            raise RunError(
                f"out of memory while generating for {len(batch)} prompts of {batch[0].prompt} tokens "
                f"({' '.join(problem.split())[:200]}); use shorter prompts, a lower max_new_tokens or a larger device"
            )
        for row in batch:
            row.restart()
        half = len(batch) // 2
        batches += [batch[half:], batch[:half]]
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _generate_batch(model: Any, rows: Sequence[Row], choose: Choose, stops: Stops, pad: int, sharded: bool) -> None:
    ids = torch.tensor([row.ids for row in rows], device=model.device)
    config = GenerationConfig(max_new_tokens=max(row.limit for row in rows), do_sample=False, pad_token_id=pad)
    with _generation_config(model, config):
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            logits_processor=LogitsProcessorList([_ChooseTokens(rows, choose, stops)]),
            stopping_criteria=StoppingCriteriaList([_AllFinished(rows)]),
            synced_gpus=sharded or None,
        )


@contextmanager
def _generation_config(model: Any, config: GenerationConfig) -> Iterator[None]:
    """Hide the model's own generation config, whose penalties and limits would apply too."""
    owners = {
        id(owner): owner for owner in (model, model.get_base_model() if hasattr(model, "get_base_model") else model)
    }
    saved = [(owner, owner.generation_config) for owner in owners.values()]
    try:
        for owner, _ in saved:
            owner.generation_config = config
        yield
    finally:
        for owner, original in saved:
            owner.generation_config = original
