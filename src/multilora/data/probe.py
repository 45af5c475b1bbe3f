"""Does this model keep packed segments apart? A forward of a few tokens tells, before a run trains on leaking rows."""

from __future__ import annotations

from typing import Any

import torch

from multilora.data.collate import Collator, Row
from multilora.errors import InputError
from multilora.modeling import max_positions


@torch.no_grad()
def check_packing(model: Any, collator: Collator) -> None:
    """Compare the logits of a segment behind others with those behind different others, and of the segment alone.

    Batches are collated as in training: two rows of different lengths that end with the same segment, so that leaks
    within a row, between rows and from the padding all show.

    Args:
        model: where it will be trained
        collator: of the training

    Raises:
        InputError: the segment sees what stands before it.
    """
    device = model.get_input_embeddings().weight.device
    size = min(8, (max_positions(model.config) or 16) // 2)
    vocabulary = model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(0)

    def segment(length: int) -> list[int]:
        ids: list[int] = torch.randint(vocabulary, (length,), generator=generator).tolist()
        return ids

    last = segment(size)
    before = [[[segment(size)], [segment(size), segment(size // 2)]] for _ in range(2)]

    def logits(rows: list[list[list[int]]]) -> list[torch.Tensor]:
        """The logits of every row's last segment, each [size, vocabulary]."""
        packed = [_row(row) for row in rows]
        batch = {key: value.to(device) for key, value in collator(packed).items() if key not in ("labels", "task_ids")}
        output = model(**batch, use_cache=False).logits.float()
        ends = [len(row["input_ids"]) for row in packed]
        if len(output) == len(rows):
            return [output[i, end - size : end] for i, end in enumerate(ends)]
        ends = torch.tensor(ends).cumsum(0).tolist()  # the rows in a single sequence
        return [output[0, end - size : end] for end in ends]

    was_training = model.training
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):  # these lengths are not worth compiling for
            (alone,) = logits([[last]])
            first, second = (logits([[*segments, last] for segments in rows]) for rows in before)
    finally:
        model.train(was_training)
    # What stands before must change nothing; rounding may differ with the width.
    leak = max(float((one - other).abs().max()) for one, other in zip(first, second, strict=True))
    difference = max(float((packed - alone).abs().max()) for packed in first)
    spread = float(alone.std())
    if leak > 1e-3 * spread or difference > 0.1 * spread:
        raise InputError(
            f"data.packing: {type(model).__name__} does not keep the segments of a packed row apart (logits change by "
            f"{max(leak, difference):.2g} with what stands before, at a standard deviation of {spread:.2g}); set "
            "data.packing to false, or choose another model.attn_implementation"
        )


def _row(segments: list[list[int]]) -> Row:
    ids = [token for segment in segments for token in segment]
    positions = [index for segment in segments for index in range(len(segment))]
    return {"input_ids": ids, "labels": [-100] * len(ids), "task_ids": [0] * len(ids), "position_ids": positions}
