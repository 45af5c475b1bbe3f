"""Forgetting: the loss on text of the kind that the base was pretrained on, before and after training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from multilora.cache import content_digest
from multilora.errors import DataError
from multilora.loss.token_losses import token_losses
from multilora.modeling import max_positions
from multilora.nano.corpus import documents
from multilora.study.schema import ForgettingSection

ROW_TOKENS = 512
BATCH_ROWS = 2
# The embedded base was pretrained on the documents of seeds from 0 and from 1,000,003 on.
NANO_SEED = 500_000


def text_key(section: ForgettingSection) -> str:
    """What a text loss depends on besides the model."""
    source = f"nano {NANO_SEED}" if section.path is None else content_digest(Path(section.path))
    return f"{source} {section.max_tokens}"


@torch.no_grad()
def text_loss(model: Any, tokenizer: Any, section: ForgettingSection) -> dict[str, float]:
    """Compute the mean loss over the tokens of a text.

    Documents are concatenated, each between BOS and EOS (where the tokenizer has them), and cut into rows of at most
    `ROW_TOKENS` tokens. The first token of a row, and what is left after the last whole row, is not scored.

    Args:
        model: a causal language model; it is left in eval mode
        tokenizer: of the model
        section: names the text

    Returns:
        loss (nats per token) and tokens (how many were scored)

    Raises:
        DataError: the text cannot be read, or has fewer than two tokens.
    """
    model.eval()
    rows = _rows(tokenizer, section, min(ROW_TOKENS, max_positions(model.config) or ROW_TOKENS))
    device = next(model.parameters()).device
    nats, tokens = 0.0, 0
    for start in range(0, len(rows), BATCH_ROWS):
        ids = torch.tensor(rows[start : start + BATCH_ROWS], device=device)
        losses, _ = token_losses(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ids)
        nats, tokens = nats + float(losses.double().sum()), tokens + len(losses)
    return {"loss": nats / tokens, "tokens": tokens}


def _rows(tokenizer: Any, section: ForgettingSection, length: int) -> list[list[int]]:
    texts = documents(NANO_SEED) if section.path is None else _texts(Path(section.path))
    ids: list[int] = []
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for text in texts:
        ids += chain(begin, tokenizer(text, add_special_tokens=False)["input_ids"], end)
        if len(ids) >= section.max_tokens:
            break
    ids = ids[: section.max_tokens]
    if len(ids) < 2:
        raise DataError(f"{section.path}: {len(ids)} tokens, expected at least 2; give a longer text")
    length = min(length, len(ids))
    return [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]


def _texts(path: Path) -> Iterator[str]:
    """The documents of a file: those of a JSONL file, or the whole text.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        if path.suffix != ".jsonl":
            yield path.read_text(encoding="utf-8")
            return
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                text = json.loads(line).get("text") if line.strip() else ""
                if not isinstance(text, str):
                    raise DataError(f"{path} line {number}: field 'text' is {text!r}, expected text")
                yield text
    except (OSError, ValueError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read ({error}); give a text file, or JSONL with a field `text`") from None
