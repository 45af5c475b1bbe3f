"""Compare what an export says to prompts with what the original says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from multilora.errors import RunError
from multilora.export.proof.outputs import Output, is_quantized, positions_of
from multilora.export.proof.prompts import Prompt
from multilora.export.proof.result import Proof, ProofRow

# The largest accepted difference of a logit, in standard deviations of the logits, by the precision of the numbers
# that were rounded. Honest differences are at least ten times smaller.
TOLERANCES = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.25}
LOOSEST = max(TOLERANCES.values())


def tolerance_of(model: Any) -> float:
    """Return the tolerance for a model's lowest precision, in standard deviations of its logits."""
    if is_quantized(model):
        return LOOSEST
    return max(TOLERANCES.get(parameter.dtype, TOLERANCES[torch.float32]) for parameter in model.parameters())


def compare(
    outputs: Sequence[Output],
    reference: Sequence[Output],
    prompts: Sequence[Prompt],
    tolerance: float,
    problem: str,
    reader: str,
) -> Proof:
    """Compare the outputs of an export with those of the original.

    If no logit differs by more than a limit, then a greedy text may differ only from a token on whose lead over the
    second best token is at most twice the limit (a near tie), and a loss per token by at most twice the limit.

    Args:
        outputs: of the export, from `outputs_of`
        reference: of the original
        prompts: what they were computed from
        tolerance: the largest accepted difference, in standard deviations of the reference's logits, or relative to the
            only logit of a reward model
        problem: what a larger difference means, and what to do: the end of the error message
        reader: what loaded the files, for the proof

    Raises:
        RunError: a logit, a greedy text or a loss differs by more, or is not finite.
    """
    limit = tolerance * max(_scale(item.logits) for item in reference)
    pairs = [_Pair(*item) for item in zip(prompts, outputs, reference, strict=True)]
    for pair in sorted(pairs, key=lambda pair: -pair.difference):
        difference = pair.excess(limit)
        if difference is not None:
            raise RunError(f"the export differs from the original: {difference}. {problem}; nothing was written")
    tasks = list(dict.fromkeys(pair.prompt.task for pair in pairs))
    return Proof(
        reader,
        "logits",
        len(pairs),
        max(pair.difference for pair in pairs),
        limit,
        [_row(task, [pair for pair in pairs if pair.prompt.task == task], limit) for task in tasks],
        _row("total", pairs, limit),
        any(pair.prompt.random for pair in pairs),
    )


@dataclass(frozen=True)
class _Pair:
    """The outputs of the export and of the original for one prompt."""

    prompt: Prompt
    output: Output
    reference: Output

    @cached_property
    def differences(self) -> torch.Tensor:
        """Differences of the logits, [positions, vocabulary]; infinite where one is NaN."""
        values = (self.output.logits.double() - self.reference.logits.double()).abs()
        return values.nan_to_num(nan=math.inf, posinf=math.inf)

    @property
    def difference(self) -> float:
        """The largest difference of a logit."""
        return float(self.differences.max())

    @property
    def parts_at(self) -> int | None:
        """The first token at which the greedy texts differ; None if they are equal."""
        texts = self.output.tokens, self.reference.tokens
        if texts[0] == texts[1]:
            return None
        equal = [first == second for first, second in zip(*texts, strict=False)]
        return equal.index(False) if False in equal else len(equal)

    @property
    def margin(self) -> float:
        """The lead of the original's token where the texts part; infinite if one of them ends there."""
        index = self.parts_at
        if index is None or index >= min(len(self.output.tokens), len(self.reference.tokens)):
            return math.inf
        return self.reference.margins[index]

    def excess(self, limit: float) -> str | None:
        """Return what differs by more than the limit allows, and by how much; None if nothing does."""
        if not self.difference <= limit:
            row, token = divmod(int(self.differences.argmax()), self.differences.shape[1])
            place = f"{self.prompt.source}, position {positions_of(len(self.prompt.ids))[row]}, output {token}"
            return f"by {self.difference:.3g} in a logit ({place}), expected at most {limit:.2g}"
        if self.parts_at is not None and not self.margin <= 2 * limit:
            return (
                f"their greedy texts part at token {self.parts_at} ({self.prompt.source}), where the original's token "
                f"leads by {self.margin:.3g}, expected at most {2 * limit:.2g}"
            )
        change = abs(self.output.loss - self.reference.loss) / max(1, self.reference.trained_tokens)
        if not change <= 2 * limit:
            return f"by {change:.3g} in the loss per token ({self.prompt.source}), expected at most {2 * limit:.2g}"
        return None


def _scale(logits: torch.Tensor) -> float:
    """The standard deviation of logits, or the size of the only one, as of a reward model."""
    return float(logits.std() if logits.numel() > 1 else logits.abs().max())


def _row(task: str, pairs: Sequence[_Pair], limit: float) -> ProofRow:
    texts = [pair for pair in pairs if pair.reference.tokens]
    tokens = sum(pair.reference.trained_tokens for pair in pairs)
    return ProofRow(
        task,
        len(pairs),
        max(pair.difference for pair in pairs),
        len(texts),
        sum(pair.parts_at is None for pair in texts),
        sum(pair.margin <= 2 * limit < math.inf for pair in texts),
        sum(pair.reference.loss for pair in pairs) / tokens if tokens else None,
        sum(pair.output.loss for pair in pairs) / tokens if tokens else None,
    )
