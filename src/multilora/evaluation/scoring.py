"""Log-likelihoods of given tokens, and greedy generation.

Both are batched by length. Log-likelihoods need logits only for the scored tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from multilora.data.collate import pad_token_id
from multilora.loss.token_losses import token_losses

Advance = Callable[..., None]


def _by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Return batches of indices by length, longest first, so that running out of memory happens immediately."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


@torch.no_grad()
def log_likelihoods(
    model: Any,
    sequences: Sequence[tuple[list[int], list[int]]],
    *,
    pad: int,
    batch_size: int,
    advance: Advance,
) -> list[Tensor]:
    """Compute the log-probability in nats of every token of each continuation, given its prefix.

    Args:
        model: a causal language model, in eval mode
        sequences: (prefix, continuation) token ids; neither empty
        pad: token id for padding; any id will do
        batch_size: sequences per forward pass
        advance: called with the number of finished sequences

    Returns:
        one tensor [len(continuation)] per sequence, in order, float32 on the CPU
    """
    results: list[Tensor] = [torch.empty(0)] * len(sequences)
    for batch in _by_length([len(p) + len(c) for p, c in sequences], batch_size):
        width = max(len(sequences[i][0]) + len(sequences[i][1]) for i in batch)
        ids = torch.full((len(batch), width), pad)
        labels = torch.full((len(batch), width), -100)
        mask = torch.zeros((len(batch), width), dtype=torch.long)
        for row, i in enumerate(batch):
            prefix, continuation = sequences[i]
            end = len(prefix) + len(continuation)
            ids[row, :end] = torch.tensor(prefix + continuation)
            labels[row, len(prefix) : end] = ids[row, len(prefix) : end]
            mask[row, :end] = 1
        device = model.device
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        losses, trained = token_losses(model, inputs, labels.to(device))
        for i, row_losses in zip(batch, torch.split(losses.cpu(), trained.sum(dim=1).tolist()), strict=True):
            results[i] = -row_losses
        advance(len(batch))
    return results


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: Any,
    prefixes: Sequence[list[int]],
    *,
    stop_ids: list[int],
    max_new_tokens: int,
    batch_size: int,
    advance: Advance,
) -> list[str]:
    """Generate greedy responses to prefixes, as text without special tokens, in order.

    Args:
        model: a causal language model, in eval mode
        tokenizer: of the base
        prefixes: token ids
        stop_ids: tokens that end a response
        max_new_tokens: maximum tokens per response
        batch_size: prefixes per batch
        advance: called with the number of finished prefixes
    """
    pad = pad_token_id(tokenizer)
    # All processes take part in every forward pass of a sharded model, so none may stop before the others.
    sharded = any(isinstance(module, FSDPModule) for module in model.modules())
    texts = [""] * len(prefixes)
    for batch in _by_length([len(prefix) for prefix in prefixes], batch_size):
        width = max(len(prefixes[i]) for i in batch)
        ids = torch.tensor([[pad] * (width - len(prefixes[i])) + prefixes[i] for i in batch])
        mask = torch.tensor([[0] * (width - len(prefixes[i])) + [1] * len(prefixes[i]) for i in batch])
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=stop_ids,
            pad_token_id=pad,
            synced_gpus=sharded or None,
        )
        for i, row in zip(batch, output[:, width:].tolist(), strict=True):
            ends = [index for index, token in enumerate(row) if token in stop_ids]
            texts[i] = tokenizer.decode(row[: ends[0]] if ends else row, skip_special_tokens=True)
        advance(len(batch))
    return texts
