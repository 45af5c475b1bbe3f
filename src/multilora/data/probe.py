"""Does this model keep packed segments apart? A forward of a few tokens tells, before a run trains on leaking rows."""

from __future__ import annotations

from typing import Any

import torch

from multilora.errors import InputError


@torch.no_grad()
def check_packing(model: Any) -> None:
    """Compare the logits of two short segments in one row with those of the second one alone.

    Raises:
        InputError: the second segment sees the first: the model takes no notice of restarting positions.
    """
    device = model.get_input_embeddings().weight.device
    size = min(8, (getattr(model.config, "max_position_embeddings", None) or 16) // 2)
    vocabulary = model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(0)
    first, other, second = (torch.randint(vocabulary, (1, size), generator=generator) for _ in range(3))
    positions = torch.arange(size)[None]

    def logits(ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        output = model(input_ids=ids.to(device), position_ids=places.to(device), use_cache=False).logits
        found: torch.Tensor = output[0, -size:].float()
        return found

    was_training = model.training
    model.eval()
    twice = torch.cat([positions, positions], dim=1)
    try:
        with torch.compiler.set_stance("force_eager"):  # these lengths are not worth compiling for
            alone = logits(second, positions)
            packed = [logits(torch.cat([before, second], dim=1), twice) for before in (first, other)]
    finally:
        model.train(was_training)
    # What stands before must change nothing; rounding may differ with the width.
    leak = float((packed[0] - packed[1]).abs().max())
    difference = float((packed[0] - alone).abs().max())
    spread = float(alone.std())
    if leak > 1e-3 * spread or difference > 0.1 * spread:
        raise InputError(
            f"data.packing: {type(model).__name__} does not keep the segments of a packed row apart (logits change by "
            f"{max(leak, difference):.2g} with what stands before, of a spread of {spread:.2g}); set data.packing to "
            "false, or another model.attn_implementation"
        )
