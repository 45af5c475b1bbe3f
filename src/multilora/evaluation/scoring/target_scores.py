"""Log-probabilities of given tokens in one forward pass; the output head sees only the positions that are scored."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from multilora.errors import RunError
from multilora.loss.output_head import base_of, logit_map_of, plain_head, replaced

# Logits in memory at a time, in float32: 128 MiB.
CHUNK = 2**25


def target_scores(
    model: Any, inputs: dict[str, Any], row: Tensor, column: Tensor, position: Tensor, token: Tensor
) -> tuple[Tensor, Tensor]:
    """Run the model and score tokens.

    Args:
        model: a causal language model, with or without adapters
        inputs: of the model, with input_ids [batch, length]
        row, column: where logits are needed, [positions] each, ordered by row, then column
        position: index into `row` and `column` of each token's logits, [tokens]
        token: ids of the tokens to score, [tokens]

    Returns:
        (log-probability in nats of every token, in float32; whether it is the most likely one), [tokens] each

    Raises:
        RunError: the model does not call its output head exactly once.
    """
    width = inputs["input_ids"].shape[1]
    head = plain_head(model)
    logit_map = None
    if head is not None:
        sample = {"input_ids": inputs["input_ids"][:1, :2].expand(-1, 2).contiguous()}
        logit_map = logit_map_of(model, head, sample, torch.ones(1, 1, dtype=torch.bool, device=row.device))
    if head is None or logit_map is None:
        return _from_logits(model, inputs, row, column, position, token)
    results: list[tuple[Tensor, Tensor]] = []

    def score(hidden: Tensor) -> Tensor:
        states = hidden[:, -width:][row, column]  # prompt learning adds states at the start

        def logits(start: int, end: int) -> Tensor:
            return logit_map(F.linear(states[start:end], head.weight, head.bias).float())

        results.append(_in_chunks(logits, len(states), head.out_features, position, token))
        return hidden[:, :1, :1]

    with replaced(head, score) as calls:
        model(**inputs)
    if len(calls) != 1:
        raise RunError(f"the output head was called {len(calls)} times in a forward pass, expected 1")
    return results[0]


def _from_logits(
    model: Any, inputs: dict[str, Any], row: Tensor, column: Tensor, position: Tensor, token: Tensor
) -> tuple[Tensor, Tensor]:
    """Score with the model's own logits, at the columns that any row needs."""
    columns, index = torch.unique(column, return_inverse=True)
    if "logits_to_keep" in inspect.signature(base_of(model).forward).parameters:
        logits = model(**inputs, logits_to_keep=columns).logits
    else:
        width = inputs["input_ids"].shape[1]
        logits = model(**inputs).logits[:, -width:][:, columns]
    needed = logits[row, index]
    return _in_chunks(lambda start, end: needed[start:end].float(), len(needed), needed.shape[-1], position, token)


def _in_chunks(logits: Any, count: int, vocabulary: int, position: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    """Score tokens from the logits of positions `start` to `end` at a time; tokens are ordered by position."""
    size = max(1, CHUNK // vocabulary)
    values, greedy = [], []
    for start in range(0, count, size):
        chunk = logits(start, min(start + size, count))
        inside = (position >= start) & (position < start + size)
        local = position[inside] - start
        normaliser = chunk.logsumexp(dim=-1)
        values.append(chunk[local, token[inside]] - normaliser[local])
        greedy.append(chunk.argmax(dim=-1)[local] == token[inside])
    return torch.cat(values), torch.cat(greedy)
