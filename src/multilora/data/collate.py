"""From lines of a plan to padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset as TorchDataset


class PlanDataset(TorchDataset[dict[str, Any]]):
    """Line k of a plan as token ids, labels (-100 where not trained on) and per-token task ids."""

    def __init__(self, task: npt.NDArray[np.int64], example: npt.NDArray[np.int64], sources: Sequence[Any]) -> None:
        self._task, self._example, self._sources = task, example, sources

    def __len__(self) -> int:
        return len(self._task)

    def __getitem__(self, line: int) -> dict[str, list[int]]:
        task = int(self._task[line])
        row = self._sources[task][int(self._example[line])]
        return labelled(row, task)


def labelled(row: dict[str, Any], task: int) -> dict[str, list[int]]:
    """A tokenised example with its labels and task ids."""
    ids: list[int] = row["input_ids"]
    cut: int = row["prefix_length"]
    return {"input_ids": ids, "labels": [-100] * cut + ids[cut:], "task_ids": [task] * len(ids)}


class Collator:
    """Pads a batch on the right: ids with the pad token, labels with -100, task ids with 0."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, items: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """input_ids, labels, task_ids and attention_mask, each [batch, longest]."""
        width = max(len(item["input_ids"]) for item in items)
        fill = {"input_ids": self.pad_token_id, "labels": -100, "task_ids": 0}
        batch = {
            key: torch.tensor([item[key] + [value] * (width - len(item[key])) for item in items])
            for key, value in fill.items()
        }
        lengths = torch.tensor([len(item["input_ids"]) for item in items])
        batch["attention_mask"] = (torch.arange(width) < lengths[:, None]).long()
        return batch


def pad_token_id(tokenizer: Any) -> int:
    """The id to pad with: the tokenizer's, else its end token (padding is masked, so any id serves)."""
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
