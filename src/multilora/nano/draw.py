"""Shared by the four task families: the train/eval split, and drawing examples."""

import hashlib
import random
from collections.abc import Callable

from multilora.example import Example, Split

AVAILABLE: dict[Split, int] = {"train": 20_000, "eval": 4_000}
"""Number of different examples that each family offers in each split."""


def split_of(content: str) -> Split:
    """Return the split of a problem: a hash of its content puts one problem in five into eval."""
    return "eval" if hashlib.sha256(content.encode()).digest()[0] % 5 == 0 else "train"


def draw(
    family: str,
    split: Split,
    count: int,
    seed: int,
    propose: Callable[[random.Random, int], tuple[Split, Example]],
) -> list[Example]:
    """Draw `count` examples of `split` with distinct prompts, in random order.

    `propose(rng, index)` returns the split and example of a candidate. `index` counts the examples drawn so far, which
    allows balanced kinds and answers. Candidates of the other split and repeated prompts are rejected.
    """
    if split not in AVAILABLE:
        raise ValueError(f"split must be 'train' or 'eval', not {split!r}")
    available = AVAILABLE[split]
    if not 0 <= count <= available:
        raise ValueError(f"{family} {split}: count is {count}, expected 0 to {available} examples")
    rng = random.Random(f"{family} {split} {seed}")
    seen: set[str] = set()
    examples: list[Example] = []
    while len(examples) < count:
        candidate_split, example = propose(rng, len(examples))
        if candidate_split == split and example["prompt"] not in seen:
            seen.add(example["prompt"])
            examples.append(example)
    rng.shuffle(examples)
    return examples
