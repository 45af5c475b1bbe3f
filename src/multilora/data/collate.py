"""Turn the rows of a plan into batches: padded, or packed with positions that restart at every segment."""

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
    """The rows of a plan. Item k is row k: token ids, labels (-100 where not trained on), task and position ids.

    Args:
        row, task, example: columns of the plan's table, sorted by row
        datasets: tokenized dataset of each task
    """

    def __init__(self, row: Int64, task: Int64, example: Int64, datasets: Sequence[Any]) -> None:
        self._starts = np.searchsorted(row, np.arange(int(row[-1]) + 2 if len(row) else 1))
        self._task, self._example, self._datasets = task, example, datasets

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, row: int) -> Row:
        joined: Row = {"input_ids": [], "labels": [], "task_ids": [], "position_ids": []}
        for line in range(self._starts[row], self._starts[row + 1]):
            task = int(self._task[line])
            segment = labelled(self._datasets[task][int(self._example[line])], task)
            for key, values in segment.items():
                joined[key] += values
        return joined


def labelled(example: dict[str, Any], task: int) -> Row:
    """Add labels, task ids and position ids to a tokenized example."""
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
    """Pad rows on the right: ids with the pad token, labels with -100, task ids with 0.

    Unpacked batches get an attention_mask. Packed batches get position_ids instead; transformers derives the segment
    boundaries from them. The padding is a separate segment.

    Args:
        pad_token_id: any id works, since no token attends to padding
        packed: rows may hold several segments
        flatten: concatenate the rows into a single sequence, as flash attention requires for packed batches
    """

    def __init__(self, pad_token_id: int, *, packed: bool = False, flatten: bool = False) -> None:
        self.pad_token_id, self.packed, self.flatten = pad_token_id, packed, flatten

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Return input_ids, labels, task_ids and attention_mask or position_ids, each [batch, longest]."""
        if self.flatten:
            rows = [{key: [value for row in rows for value in row[key]] for key in rows[0]}]
        width = max(len(row["input_ids"]) for row in rows)
        padding = {"input_ids": self.pad_token_id, "labels": -100, "task_ids": 0}
        batch = {
            key: torch.tensor([row[key] + [value] * (width - len(row[key])) for row in rows])
            for key, value in padding.items()
        }
        lengths = [len(row["input_ids"]) for row in rows]
        if self.packed:
            positions = [
                row["position_ids"] + list(range(width - length)) for row, length in zip(rows, lengths, strict=True)
            ]
            batch["position_ids"] = torch.tensor(positions)
        else:
            batch["attention_mask"] = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
        return batch


def collator_for(model: Any, tokenizer: Any, *, packed: bool) -> Collator:
    """Return the collator for batches of a plan.

    Args:
        model: with flash attention, packed batches become a single sequence
        tokenizer: provides the padding token
        packed: the plan's rows hold several segments
    """
    flatten = packed and uses_flash_attention(model)
    return Collator(pad_token_id(tokenizer), packed=packed, flatten=flatten)


def pad_token_id(tokenizer: Any) -> int:
    """Return the pad token id, or the EOS id if there is none (padding is masked, so any id works)."""
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
