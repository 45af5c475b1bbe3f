"""Choose the next tokens from logits: the most likely ones, or samples from random numbers of the rows' own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from multilora.evaluation.generation.decoding import Choose
from multilora.evaluation.generation.stops import Row


def chooser(temperature: float, top_p: float, top_k: int, repetition_penalty: float, *, agree: bool) -> Choose:
    """Return a function from logits and rows to their next tokens.

    Args:
        temperature, top_p, top_k, repetition_penalty: see `generate`
        agree: let the first process choose for all
    """
    choose = _sampler(temperature, top_p, top_k) if temperature > 0 else _most_likely
    if repetition_penalty != 1:
        choose = _penalised(choose, repetition_penalty)
    return _as_first_process(choose) if agree else choose


def _most_likely(logits: Tensor, rows: Sequence[Row]) -> list[int]:
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    return tokens


def draws(seed: int, index: int, count: int) -> list[float]:
    """The random numbers for a prompt."""
    digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big", signed=True))
    numbers: list[float] = torch.rand(count, generator=generator).tolist()
    return numbers


def _sampler(temperature: float, top_p: float, top_k: int) -> Choose:
    """Return a function that samples by the rows' own random numbers."""

    def choose(logits: Tensor, rows: Sequence[Row]) -> list[int]:
        scores = logits.float() / temperature
        size = min(top_k or scores.shape[-1], scores.shape[-1])
        scores, order = scores.topk(size) if size < scores.shape[-1] else scores.sort(dim=-1, descending=True)
        probabilities = scores.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        kept = before < top_p if top_p < 1 else torch.ones_like(before, dtype=torch.bool)
        kept[:, 0] = True
        cumulative = (probabilities * kept).cumsum(dim=-1)
        drawn = torch.tensor([[row.draw()] for row in rows], device=logits.device)
        ranks = torch.searchsorted(cumulative, drawn * cumulative[:, -1:], right=True)
        ranks = torch.minimum(ranks, kept.sum(dim=-1, keepdim=True) - 1)
        tokens: list[int] = order.gather(1, ranks)[:, 0].tolist()
        return tokens

    return choose


def _penalised(choose: Choose, penalty: float) -> Choose:
    """Return a function that makes the tokens that a row already has less likely, as transformers does."""

    def chosen(logits: Tensor, rows: Sequence[Row]) -> list[int]:
        logits = logits.float().clone()
        for scores, row in zip(logits, rows, strict=True):
            seen = torch.tensor(sorted(set(row.ids)), device=logits.device)
            values = scores[seen]
            scores[seen] = torch.where(values < 0, values * penalty, values / penalty)
        return choose(logits, rows)

    return chosen


def _as_first_process(choose: Choose) -> Choose:
    """Return a function that chooses the first process's tokens, since rounding may differ between processes."""

    def agreed(logits: Tensor, rows: Sequence[Row]) -> list[int]:
        tokens = torch.tensor(choose(logits, rows), device=logits.device)
        dist.broadcast(tokens, 0)
        chosen: list[int] = tokens.tolist()
        return chosen

    return agreed
