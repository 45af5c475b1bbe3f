"""Check with a few tokens, before training, that a model does not attend across packed segments."""

from __future__ import annotations

from typing import Any

import torch

from multilora.data.collate import Collator, Row
from multilora.errors import InputError
from multilora.modeling import max_positions


@torch.no_grad()
def check_packing(model: Any, collator: Collator) -> None:
    """Compare the logits of a segment after two sets of preceding segments, and without any.

    Batches are collated as in training. Each has two rows of different lengths that end with the same segment, which
    exposes leaks within a row, between rows and from padding.

    Args:
        model: on the device it will be trained on
        collator: the one used in training

    Raises:
        InputError: the logits of the segment depend on the preceding segments.
    """
    device = model.device
    size = min(8, (max_positions(model.config) or 16) // 2)
    vocab_size = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)

    def segment(length: int) -> list[int]:
        ids: list[int] = torch.randint(vocab_size, (length,), generator=generator).tolist()
        return ids

    last = segment(size)
    preceding = [[[segment(size)], [segment(size), segment(size // 2)]] for _ in range(2)]

    def logits(rows: list[list[list[int]]]) -> list[torch.Tensor]:
        """Return the logits of the last segment of each row, each [size, vocab]."""
        packed = [_row(row) for row in rows]
        batch = {key: value.to(device) for key, value in collator(packed).items() if key not in ("labels", "task_ids")}
        output = model(**batch, use_cache=False).logits.float()
        ends = [len(row["input_ids"]) for row in packed]
        if len(output) == len(rows):
            return [output[i, end - size : end] for i, end in enumerate(ends)]
        ends = torch.tensor(ends).cumsum(0).tolist()  # the rows are one sequence
        return [output[0, end - size : end] for end in ends]

    was_training = model.training
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):  # these lengths are not worth compiling for
            (alone,) = logits([[last]])
            first, second = (logits([[*segments, last] for segments in rows]) for rows in preceding)
    finally:
        model.train(was_training)
    # Preceding segments must not change anything. Against the segment alone, rounding may differ with the width: in
    # bfloat16 single logits of Gemma 3 by a fifth of their standard deviation, so the root mean square is compared.
    leak = max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True))
    difference = max(float((packed - alone).pow(2).mean().sqrt()) for packed in first)
    spread = float(alone.std())
    if leak > 1e-3 * spread or difference > 0.2 * spread:
        raise InputError(
            f"data.packing: {type(model).__name__} does not keep the segments of a packed row apart (logits change by "
            f"{max(leak, difference):.2g} with the preceding segments, at a standard deviation of {spread:.2g}); set "
            "data.packing to false, or choose another model.attn_implementation"
        )


def _row(segments: list[list[int]]) -> Row:
    ids = [token for segment in segments for token in segment]
    positions = [index for segment in segments for index in range(len(segment))]
    return {"input_ids": ids, "labels": [-100] * len(ids), "task_ids": [0] * len(ids), "position_ids": positions}
