"""What the four task families share: the train/eval split and drawing examples."""

import hashlib
import random
from collections.abc import Callable

from multilora.example import Example, Split

AVAILABLE: dict[Split, int] = {"train": 20_000, "eval": 4_000}
"""How many different examples each family offers in each split."""


def split_of(content: str) -> Split:
    """The split a problem belongs to: one problem in five, picked by a hash of its content, is for eval."""
    return "eval" if hashlib.sha256(content.encode()).digest()[0] % 5 == 0 else "train"


def draw(
    family: str,
    split: Split,
    count: int,
    seed: int,
    propose: Callable[[random.Random, int], tuple[Split, Example]],
) -> list[Example]:
    """Draw `count` examples of `split` with different prompts, in a random order.

    `propose(rng, i)` makes a candidate for place `i` of the list, so that kinds and labels can be balanced by
    `i`; it is asked again while its candidate is of the other split or has been drawn before.
    """
    if split not in AVAILABLE:
        raise ValueError(f"split must be 'train' or 'eval', not {split!r}")
    available = AVAILABLE[split]
    if not 0 <= count <= available:
        raise ValueError(f"{family} {split}: {available} examples are available, {count} were asked for")
    rng = random.Random(f"{family} {split} {seed}")
    seen: set[str] = set()
    examples: list[Example] = []
    while len(examples) < count:
        side, example = propose(rng, len(examples))
        if side == split and example["prompt"] not in seen:
            seen.add(example["prompt"])
            examples.append(example)
    rng.shuffle(examples)
    return examples
