"""Evaluation prompts that are also training prompts: memory would pass for ability."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from multilora.recipe.schema import TaskSection
from multilora.tasks.make import make_task

Hashes = npt.NDArray[np.uint64]
_WORDS = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Overlap:
    """Evaluation examples of a task, and how many of their prompts are training prompts of any task of the recipe.

    exact: character by character; normalized: after lower-casing, with punctuation and white space as one space
    """

    evaluation: int
    exact: int
    normalized: int


def normalize(text: str) -> str:
    """Lower-case, with every run of punctuation and white space as one space."""
    return _WORDS.sub(" ", text.lower()).strip()


def overlap(sections: Sequence[TaskSection]) -> dict[str, Overlap]:
    """The overlap of each task; only hashes are held in memory.

    Raises:
        DataError: a task's data cannot be used.
    """
    tasks = [make_task(section) for section in sections]
    training = [_hashes(task.load("train")) for task in tasks]
    exact = np.unique(np.concatenate([hashes for hashes, _ in training]))
    normalized = np.unique(np.concatenate([hashes for _, hashes in training]))
    result = {}
    for task in tasks:
        hashes, normalized_hashes = _hashes(task.load("eval"))
        result[task.name] = Overlap(
            len(hashes), int(np.isin(hashes, exact).sum()), int(np.isin(normalized_hashes, normalized).sum())
        )
    return result


def _hashes(dataset: Any) -> tuple[Hashes, Hashes]:
    """64-bit hashes of the prompts (or chats), as they are and normalized, each [examples]."""
    pairs = [(_hash(text), _hash(normalize(text))) for text in _texts(dataset)]
    columns = np.array(pairs, dtype=np.uint64).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]


def _texts(dataset: Any) -> Iterator[str]:
    table = dataset.with_format("arrow")
    for batch in table.iter(batch_size=1000):
        for prompt, messages in zip(batch["prompt"].to_pylist(), batch["messages"].to_pylist(), strict=True):
            yield messages or prompt


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
