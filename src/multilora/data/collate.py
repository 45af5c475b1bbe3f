"""From rows of a plan to batches: padded, or packed with positions that restart at every segment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset

from multilora.data.mixture import Int64
from multilora.modeling import uses_flash_attention

Row = dict[str, list[int]]


class PlanDataset(TorchDataset[Row]):
    """Row k of a plan: token ids, labels (-100 where not trained on), per-token task ids and positions.

    Args:
        row, task, example: columns of the plan's table, sorted by row
        sources: tokenised dataset of each task
    """

    def __init__(self, row: Int64, task: Int64, example: Int64, sources: Sequence[Any]) -> None:
        self._starts = np.searchsorted(row, np.arange(int(row[-1]) + 2 if len(row) else 1))
        self._task, self._example, self._sources = task, example, sources

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, row: int) -> Row:
        joined: Row = {"input_ids": [], "labels": [], "task_ids": [], "position_ids": []}
        for line in range(self._starts[row], self._starts[row + 1]):
            task = int(self._task[line])
            segment = labelled(self._sources[task][int(self._example[line])], task)
            for key, values in segment.items():
                joined[key] += values
        return joined


def labelled(example: dict[str, Any], task: int) -> Row:
    """A tokenised example with its labels, task ids and positions."""
    ids: list[int] = example["input_ids"]
    labels = [-100] * len(ids)
    spans: list[int] = example["spans"]
    for start, end in zip(spans[::2], spans[1::2], strict=True):
        labels[start:end] = ids[start:end]
    return {
        "input_ids": ids,
        "labels": labels,
        "task_ids": [task] * len(ids),
        "position_ids": list(range(len(ids))),
    }


class Collator:
    """Pads rows on the right: ids with the pad token, labels with -100, task ids with 0.

    Unpacked batches get an attention_mask. Packed ones get position_ids instead, from which transformers tells the
    segments apart; the padding is a segment of its own.

    Args:
        pad_token_id: any id serves, nothing attends to it
        packed: rows may hold several segments
        flatten: put the rows behind one another in a single sequence, as flash attention wants packed batches
    """

    def __init__(self, pad_token_id: int, *, packed: bool = False, flatten: bool = False) -> None:
        self.pad_token_id, self.packed, self.flatten = pad_token_id, packed, flatten

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """input_ids, labels, task_ids and attention_mask or position_ids, each [batch, longest]."""
        if self.flatten:
            rows = [{key: [value for row in rows for value in row[key]] for key in rows[0]}]
        width = max(len(row["input_ids"]) for row in rows)
        fill = {"input_ids": self.pad_token_id, "labels": -100, "task_ids": 0}
        batch = {
            key: torch.tensor([row[key] + [value] * (width - len(row[key])) for row in rows])
            for key, value in fill.items()
        }
        lengths = [len(row["input_ids"]) for row in rows]
        if self.packed:
            padded = [row["position_ids"] + list(range(width - size)) for row, size in zip(rows, lengths, strict=True)]
            batch["position_ids"] = torch.tensor(padded)
        else:
            batch["attention_mask"] = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
        return batch


def collator_for(model: Any, tokenizer: Any, *, packed: bool) -> Collator:
    """The collator for batches of a plan.

    Args:
        model: decides the form of packed batches: flash attention takes them as a single sequence
        tokenizer: gives the token to pad with
        packed: the plan's rows hold several segments
    """
    flatten = packed and uses_flash_attention(model)
    return Collator(pad_token_id(tokenizer), packed=packed, flatten=flatten)


def pad_token_id(tokenizer: Any) -> int:
    """The id to pad with: the tokenizer's, else its end token (padding is masked, so any id serves)."""
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
