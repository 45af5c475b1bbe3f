"""A source whose update is changed before the export: truncated, pruned or combined."""

from __future__ import annotations

import math
from typing import Any

import torch

from multilora.export.edit.add_updates import add_updates, difference
from multilora.export.edit.truncate import Truncation, truncate
from multilora.export.factors import AdapterFactors
from multilora.export.proof.compare import compare
from multilora.export.proof.prompts import Prompt
from multilora.export.proof.prove import reference_outputs
from multilora.export.proof.result import Proof
from multilora.export.sources.source import Source


class EditedSource:
    """A source with another update. What is not an update (`saved`, `tokens`) must be that of the original."""

    def __init__(self, original: Source, new: AdapterFactors, old: AdapterFactors) -> None:
        self.original = original
        self.new, self.old = new, old
        self.label = original.label
        self.base, self.recipe, self.section = original.base, original.recipe, original.section
        self.auto_class, self.stock_base = original.auto_class, original.stock_base

    def tokenizer_folder(self) -> str | None:
        """See `Source`."""
        return self.original.tokenizer_folder()

    def load_base(self, dtype: torch.dtype | None = None) -> Any:
        """See `Source`."""
        return self.original.load_base(dtype)

    def load_model(self, dtype: torch.dtype | None = None) -> Any:
        """The original model, to which the difference of the updates is added as it computes: not the export itself,
        so that the export can be compared with it."""
        model = self.original.load_model(dtype)
        add_updates(model, difference(self.new, self.old), self.old.embeddings | self.new.embeddings)
        return model

    def factors(self) -> AdapterFactors:
        """See `Source`."""
        return self.new

    def prompts(self) -> list[Prompt]:
        """See `Source`."""
        return self.original.prompts()


def truncated(
    source: Source, *, rank: int | None = None, energy: float | None = None
) -> tuple[EditedSource, Truncation]:
    """Return a source with updates of a lower rank, and what this loses; see `multilora.export.edit.truncate`.

    Raises:
        InputError: not exactly one of `rank` and `energy`, or out of range.
    """
    factors = source.factors()
    shorter, truncation = truncate(factors, rank=rank, energy=energy)
    return EditedSource(source, shorter, factors), truncation


def measured_effect(source: EditedSource, prompts: list[Prompt]) -> Proof | None:
    """Compare what the edited model says to prompts with what the original says; None without prompts."""
    if not prompts:
        return None
    edited, original = (reference_outputs(item.load_model(), prompts).outputs for item in (source, source.original))
    return compare(edited, original, prompts, math.inf, "", "multilora")
