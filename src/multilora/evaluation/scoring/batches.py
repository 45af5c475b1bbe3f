"""Batches of rows: by tokens, with rows of similar length together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from multilora.evaluation.scoring.prefix_tree import Row, Stage
from multilora.loss.output_head import base_of

# On a CPU, larger batches only take more memory: on a base of 6.7 M parameters, 512 to 4,096 took the same time.
CPU_BATCH_TOKENS = 1024
# Behind a long prefix, the keys and values of all rows take memory too.
PREFIX_SHARE = 8
# Largest part of a full batch that may be padding. On a CPU, this is what a forward pass costs beside its tokens.
PADDING_SHARE = 32


@dataclass(frozen=True)
class Batch:
    """Rows of one forward pass, behind a prefix of `prefix_length` tokens."""

    rows: list[Row]
    prefix_length: int

    @property
    def width(self) -> int:
        """Tokens of the longest row."""
        return max(map(len, self.rows))

    @property
    def tokens(self) -> int:
        """Tokens of the batch, padding included."""
        return self.width * len(self.rows)


def batches_of(stage: Stage, batch_tokens: int) -> Iterator[Batch]:
    """Yield batches of at most `batch_tokens` tokens, the longest rows first; a longer row is a batch of its own.

    A batch ends where its padding would exceed a part of `batch_tokens`.

    Rows that are trees and rows that are not are kept apart: only the former need a mask.
    """
    prefix_length = stage.prefix.length if stage.prefix else 0
    for linear in (False, True):
        batch: list[Row] = []
        padding = 0
        for row in sorted((row for row in stage.rows if row.is_linear == linear), key=len, reverse=True):
            width = len(batch[0]) if batch else len(row)
            cost = (len(batch) + 1) * (width + prefix_length // PREFIX_SHARE)
            padding += width - len(row)
            if batch and (cost > batch_tokens or padding > batch_tokens // PADDING_SHARE):
                yield Batch(batch, prefix_length)
                batch, padding = [], 0
            batch.append(row)
        if batch:
            yield Batch(batch, prefix_length)


def default_batch_tokens(model: Any) -> int:
    """Return the tokens per batch for the model's device: on a GPU, as many as fit into half of the free memory."""
    base = base_of(model)
    if base.device.type != "cuda":
        return CPU_BATCH_TOKENS
    config = base.config.get_text_config()
    free, _ = torch.cuda.mem_get_info(base.device)
    # Per token, without gradients: some tens of hidden states, and keys and values of all layers.
    size = base.dtype.itemsize
    layers, hidden = getattr(config, "num_hidden_layers", 32), getattr(config, "hidden_size", 4096)
    per_token = size * hidden * (48 + 2 * layers)
    return int(min(2**18, max(2**12, free // 2 // per_token)))
