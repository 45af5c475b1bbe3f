"""The pretraining text: a seeded stream of documents, and rows of token ids of one length cut from it."""

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
"""Writers of documents, each with its share of the documents."""

_BATCH = 256


def documents(seed: int) -> Iterator[str]:
    """Documents without end; the same ones for the same seed."""
    rng = random.Random(f"corpus {seed}")
    writers = [writer for writer, _ in MIXTURE]
    weights = [weight for _, weight in MIXTURE]
    while True:
        yield rng.choices(writers, weights)[0](rng)


def rows(tokenizer: "PreTrainedTokenizerFast", seed: int, count: int, length: int) -> "torch.Tensor":
    """`count` rows of `length` token ids, shape (count, length), int64.

    The documents follow each other as BOS, text, EOS; a row may begin or end within a document.
    """
    import torch

    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    need = count * length
    ids: list[int] = []
    stream = documents(seed)
    while len(ids) < need:
        batch = [next(stream) for _ in range(_BATCH)]
        for encoded in tokenizer(batch, add_special_tokens=False)["input_ids"]:
            ids.append(bos)
            ids.extend(encoded)
            ids.append(eos)
    return torch.tensor(ids[:need], dtype=torch.int64).reshape(count, length)
