"""`combine_adapters`: the weighted sum of several adapters of one base, as one LoRA.

    sum_j w_j Delta W_j = [w_1 up_1 | w_2 up_2 | ...] [down_1; down_2; ...]

This is exact, and its rank is the sum of the ranks; it can be truncated afterwards.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from multilora.errors import AdapterError, InputError
from multilora.export.edit.add_updates import weighted_sum
from multilora.export.edit.edited import EditedSource
from multilora.export.edit.truncate import check_size
from multilora.export.factors import AdapterFactors, Factors
from multilora.export.lora.export_lora import write_lora
from multilora.export.sources.source import open_source
from multilora.foreign_errors import own_errors

logger = logging.getLogger(__name__)

AnyFactors = TypeVar("AnyFactors", bound=Factors)


@own_errors
def combine_adapters(
    weights: Mapping[Any, float],
    out: str | Path,
    *,
    base: str | None = None,
    rank: int | None = None,
    energy: float | None = None,
) -> Path:
    """Write the weighted sum of MultiLoRA and LoRA adapters of one base as a plain LoRA.

    Args:
        weights: run, run directory, or folder of a PEFT adapter -> its weight
        out: a new folder
        base: see `multilora.export.sources.source.open_source`
        rank: approximate the sum by this rank, as in `export_lora`
        energy: or by the smallest rank that keeps this share of it, as in `export_lora`

    Returns:
        the folder

    Raises:
        InputError: no adapter, or a weight that is not a finite number.
        AdapterError: the adapters do not fit each other, have trained weights that are no LoRA, or as for
            `export_lora`.
        RunDirectoryError, RunError: as for `export_lora`.
    """
    if not weights:
        raise InputError("weights is empty, expected adapter -> weight")
    for path, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise InputError(f"the weight of {path} is {weight!r}, expected a finite number")
    if rank is not None or energy is not None:
        check_size(rank, energy)
    sources = [open_source(path, base=base) for path in weights]
    parts = [source.factors() for source in sources]
    for source, part in zip(sources, parts, strict=True):
        if part.saved or part.tokens:
            raise AdapterError(
                f"{source.label}: has trained weights that are no LoRA ({', '.join([*part.saved, *part.tokens][:3])}), "
                "so a sum of adapters is not defined; combine adapters without modules_to_save, biases and tokens"
            )
        if source.base != sources[0].base:
            logger.warning(
                "%s is an adapter of %s, and %s of %s; their sum means something only if these are the same weights",
                source.label,
                source.base,
                sources[0].label,
                sources[0].base,
            )
    combined = combine(parts, list(weights.values()))
    source = EditedSource(sources[0], combined, parts[0])
    source.label = " + ".join(item.label for item in sources)
    write_lora(source, out, rank=rank, energy=energy)
    return Path(out)


def combine(parts: list[AdapterFactors], weights: list[float]) -> AdapterFactors:
    """Return the weighted sum of adapters, exactly; a matrix that some do not adapt gets the others' sum.

    Raises:
        AdapterError: two updates of one matrix have different shapes.
    """
    first = parts[0]
    return replace(
        first,
        modules=_sum([part.modules for part in parts], weights),
        parameters=_sum([part.parameters for part in parts], weights),
        experts=_sum([part.experts for part in parts], weights),
        conv1d=set().union(*(part.conv1d for part in parts)),
        embeddings=set().union(*(part.embeddings for part in parts)),
        tied=set().union(*(part.tied for part in parts)),
        branches=1,
    )


def _sum(items: list[dict[str, AnyFactors]], weights: list[float]) -> dict[str, AnyFactors]:
    result = {}
    for name in dict.fromkeys(name for part in items for name in part):
        here = [(weight, part[name]) for weight, part in zip(weights, items, strict=True) if name in part]
        shapes = {(*item.up.shape[:-1], item.down.shape[-1]) for _, item in here}
        if len(shapes) > 1:
            raise AdapterError(f"{name}: the updates are {sorted(shapes)}, so the adapters are of different bases")
        result[name] = weighted_sum(here)
    return result
