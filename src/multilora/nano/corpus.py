"""The pretraining text: a seeded stream of documents, and fixed-length rows of token ids cut from it."""

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

from multilora.nano import arithmetic, glossary, instructions, knowledge, sense, stories

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

MIXTURE = (
    (instructions.pretraining_text, 0.24),
    (stories.pretraining_text, 0.18),
    (sense.pretraining_text, 0.10),
    (knowledge.pretraining_text, 0.29),
    (arithmetic.pretraining_text, 0.15),
    (glossary.pretraining_text, 0.04),
)
"""Functions that write a document, each with its share of all documents."""

_BATCH = 256


def documents(seed: int) -> Iterator[str]:
    """Generate an endless stream of documents, determined by the seed."""
    rng = random.Random(f"corpus {seed}")
    writers = [writer for writer, _ in MIXTURE]
    weights = [weight for _, weight in MIXTURE]
    while True:
        yield rng.choices(writers, weights)[0](rng)


def rows(tokenizer: "PreTrainedTokenizerFast", seed: int, count: int, length: int) -> "torch.Tensor":
    """Return `count` rows of `length` token ids, [count, length], int64.

    Documents are concatenated as BOS, text, EOS; a row may start or end inside a document.
    """
    import torch

    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    size = count * length
    ids: list[int] = []
    stream = documents(seed)
    while len(ids) < size:
        batch = [next(stream) for _ in range(_BATCH)]
        for encoded in tokenizer(batch, add_special_tokens=False)["input_ids"]:
            ids.append(bos)
            ids.extend(encoded)
            ids.append(eos)
    return torch.tensor(ids[:size], dtype=torch.int64).reshape(count, length)
