"""The measurements of a run, and their means and standard deviations over the seeds of a method."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from multilora.study.folder import CellResult
from multilora.study.means import mean_loss, mean_value
from multilora.study.measures import FORGETTING, INTRUDERS, SPECTRUM, scores_of

_COSTS = ("trainable_parameters", "seconds", "peak_memory")


def run_values(result: CellResult, split: str) -> dict[str, Any]:
    """The measurements of one run as JSON-compatible values, with its scores on a split."""
    scores = scores_of(result, split)
    spectrum = result.value(SPECTRUM)
    return {
        "scores": {task: asdict(score) for task, score in scores.items()},
        "macro_score": mean_value(scores),
        "macro_loss": mean_loss(scores),
        "forgetting": (result.value(FORGETTING) or {}).get("loss"),
        "intruders": (result.value(INTRUDERS) or {}).get("per_matrix"),
        "spectrum": None if spectrum is None else spectrum["mean"],
        "spectrum_missing": result.measures.get(SPECTRUM, {}).get("missing"),
        **{key: result.training.get(key) for key in (*_COSTS, "steps", "tokens")},
    }


def summary_of(seeds: Sequence[int], values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means and standard deviations over seeds.

    Args:
        seeds: of the runs
        values: from `run_values`, one per seed
    """
    tasks = list(values[0]["scores"]) if values else []
    spectra = [item["spectrum"] for item in values if item["spectrum"] is not None]
    return {
        "seeds": list(seeds),
        "scores": {task: mean_and_sd([item["scores"][task]["value"] for item in values]) for task in tasks},
        "losses": {task: mean_and_sd([item["scores"][task]["loss"] for item in values]) for task in tasks},
        **{
            key: mean_and_sd([item[key] for item in values])
            for key in ("macro_score", "macro_loss", "forgetting", "intruders", *_COSTS)
        },
        "spectrum": {key: mean_and_sd([item[key] for item in spectra]) for key in (spectra[0] if spectra else ())},
    }


def mean_and_sd(values: Sequence[float | None]) -> dict[str, float | None] | None:
    """Mean and standard deviation over seeds; None if a value is missing."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return {"mean": statistics.fmean(known), "sd": statistics.stdev(known) if len(known) > 1 else None}
