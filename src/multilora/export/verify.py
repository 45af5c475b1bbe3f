"""Compare an export with its original before it is put in place: file contents, and logits on a few prompts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from multilora.errors import AdapterError, RunError
from multilora.export.prompts import Prompt
from multilora.modeling import uses_flash_attention

# The largest accepted difference of a logit, in standard deviations of the logits, by the precision of the numbers
# that were rounded. Honest differences are at least ten times smaller.
TOLERANCES = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.25}
LOOSEST = max(TOLERANCES.values())
POSITIONS = 16  # of each prompt; the logits of all positions of all prompts would need gigabytes


@dataclass(frozen=True)
class Verification:
    """How far the logits of a verified export are from those of the original.

    difference, tolerance: the largest difference of a logit, and the largest that would have been accepted
    prompts: number of compared prompts; `random` if they are random tokens because there were no data
    """

    difference: float
    tolerance: float
    prompts: int
    random: bool

    def __str__(self) -> str:
        kind = "sequences of random tokens" if self.random else "prompts of the run's tasks"
        return (
            f"verified: the reloaded export differs by at most {self.difference:.2g} in any logit on {self.prompts} "
            f"{kind} (tolerance {self.tolerance:.2g})"
        )


def tolerance_of(model: Any) -> float:
    """Return the tolerance for a model's lowest precision, in standard deviations of its logits."""
    if getattr(model, "is_quantized", False):
        return LOOSEST
    return max(TOLERANCES.get(parameter.dtype, TOLERANCES[torch.float32]) for parameter in model.parameters())


@contextmanager
def float32(model: Any) -> Iterator[None]:
    """Compute in float32 within the block: cast weights and buffers in place, and back at the end.

    Nothing is lost, because every value of a 16-bit type is one of float32.
    """
    tensors = [*model.parameters(), *model.buffers()]
    dtypes = [tensor.dtype for tensor in tensors]
    for tensor in tensors:
        if tensor.dtype in (torch.float16, torch.bfloat16):
            tensor.data = tensor.data.float()
    try:
        yield
    finally:
        for tensor, dtype in zip(tensors, dtypes, strict=True):
            if tensor.dtype != dtype:
                tensor.data = tensor.data.to(dtype)


@torch.no_grad()
def prompt_logits(model: Any, prompts: Sequence[Prompt]) -> list[Tensor]:
    """Return the logits of up to `POSITIONS` positions of every prompt, each [positions, vocabulary] on the CPU.

    For models without a vocabulary head, the first output is used instead.
    """
    if uses_flash_attention(model):
        model.set_attn_implementation("eager")  # flash attention supports neither float32 nor the CPU
    was_training = model.training
    model.eval()
    logits = []
    try:
        for prompt in prompts:
            ids = torch.tensor([prompt.ids], device=model.device)
            decoder = {"decoder_input_ids": ids} if getattr(model.config, "is_encoder_decoder", False) else {}
            output = model(input_ids=ids, return_dict=True, **decoder)
            values = output.logits if "logits" in output else output[0]
            if values.shape[1] == len(prompt.ids):  # else one vector of scores per sequence
                values = values[:, positions_of(prompt)]
            logits.append(values.reshape(-1, values.shape[-1]).float().cpu())
    finally:
        model.train(was_training)
    return logits


def positions_of(prompt: Prompt) -> list[int]:
    """Return the compared positions of a prompt: evenly spaced, with the first and the last."""
    count = min(POSITIONS, len(prompt.ids))
    return [round(i * (len(prompt.ids) - 1) / max(1, count - 1)) for i in range(count)]


def compare(
    logits: Sequence[Tensor], reference: Sequence[Tensor], prompts: Sequence[Prompt], tolerance: float, problem: str
) -> Verification:
    """Compare logits with a reference.

    Args:
        logits, reference: from `prompt_logits`
        prompts: what they were computed from
        tolerance: the largest accepted difference, in standard deviations of the reference
        problem: what a larger difference means, and what to do: the end of the error message

    Raises:
        RunError: a difference is too large, or a logit is not finite.
    """
    limit = tolerance * max(float(item.std()) for item in reference)
    largest, where = 0.0, ""
    for item, reference_item, prompt in zip(logits, reference, prompts, strict=True):
        difference = (item.double() - reference_item.double()).abs()
        difference[difference.isnan()] = math.inf
        row, token = divmod(int(difference.argmax()), difference.shape[1])
        value = float(difference[row, token])
        if value > largest or not where:
            largest, where = value, f"{prompt.source}, position {positions_of(prompt)[row]}, output {token}"
    if not largest <= limit:
        raise RunError(
            f"the export differs from the original: by {largest:.3g} in a logit ({where}), expected at most "
            f"{limit:.2g}. {problem}; nothing was written"
        )
    return Verification(largest, limit, len(prompts), any(prompt.random for prompt in prompts))


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights with NaN or infinity.

    Raises:
        AdapterError: names the first such parameter.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        finite = torch.isfinite(tensor)
        if not finite.all():
            raise AdapterError(
                f"{name}: {int((~finite).sum()):,} of {tensor.numel():,} values are NaN or infinite, so its training "
                "diverged; train again with a lower learning rate, or export an earlier checkpoint"
            )


def check_files(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Compare the tensors in the safetensors files of a folder with those that were saved, exactly.

    Names that occur on one side only are skipped: some architectures are saved under other names, and the comparison
    of the logits covers them.

    Raises:
        RunError: a tensor in a file has other values.
    """
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118  (not a dict)
                tensor = tensors.get(name)
                if tensor is None:
                    continue
                written = stored.get_tensor(name)
                expected = tensor.detach().cpu()
                if written.shape != expected.shape or not torch.equal(written, expected.to(written.dtype)):
                    raise RunError(
                        f"{file.name}: {name} differs from what was saved ({_difference(written, expected)}); check "
                        "the disk and its free space, then export again; nothing was written"
                    )


def _difference(written: Tensor, expected: Tensor) -> str:
    if written.shape != expected.shape:
        return f"shape {list(written.shape)}, expected {list(expected.shape)}"
    return f"by up to {float((written.double() - expected.double()).abs().max()):.3g}"
