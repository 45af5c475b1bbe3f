"""Tables of the scores before and after training, and of the spectrum."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from multilora.charts.run_charts import Scores
from multilora.report.page import Table
from multilora.report.texts import number, percent, percent_interval


def before_after_table(before: Scores, after: Scores) -> Table:
    """Scores and losses of one run, before and after training."""
    rows = []
    for task, score in after.items():
        old = before[task]
        change = None if score["value"] is None or old["value"] is None else 100 * (score["value"] - old["value"])
        rows.append(
            [
                task,
                score["metric"],
                f"{score['n']:,}",
                percent_interval(old),
                percent_interval(score),
                "–" if change is None else f"{change:+.1f}",
                number(old["loss"], 3),
                number(score["loss"], 3),
            ]
        )
    return Table(
        "Scores in percent with 95 % confidence intervals over the examples, the change in percentage points, and the "
        f"loss in nats per response token. {_protocols(after)}",
        ["task", "metric", "examples", "before", "after", "change", "loss before", "loss after"],
        rows,
    )


def _protocols(scores: Scores) -> str:
    """Whose prompts and metrics were used, in a sentence."""
    found: dict[str, list[str]] = {}
    for task, score in scores.items():
        found.setdefault(score.get("protocol", "not recorded"), []).append(task)
    if len(found) == 1:
        return f"Protocol: {next(iter(found))}"
    return "Protocols: " + "; ".join(f"{protocol} ({', '.join(tasks)})" for protocol, tasks in found.items())


def spectrum_table(spectrum: Mapping[str, Any]) -> Table:
    """Means of the measures per module type."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for matrix in spectrum["matrices"]:
        groups.setdefault(matrix["kind"], []).append(matrix["measures"])
    everything = [measures for found in groups.values() for measures in found]
    rows = [[kind, str(len(found)), *_means(found)] for kind, found in [*groups.items(), ("all", everything)]]
    return Table(
        "Means over matrices whose update is not zero: Frobenius norm, absolute and relative to the base weight; share "
        "of the energy in the largest singular values, in percent; ranks",
        ["module type", "matrices", *(name for name, _ in _SPECTRUM.values())],
        rows,
    )


_SPECTRUM: dict[str, tuple[str, Callable[[float | None], str]]] = {
    "norm": ("norm", lambda value: number(value, 3)),
    "relative_norm": ("norm / base", lambda value: number(value, 4)),
    "top1_energy": ("energy in top 1", percent),
    "top4_energy": ("energy in top 4", percent),
    "effective_rank": ("effective rank", lambda value: number(value, 1)),
    "stable_rank": ("stable rank", lambda value: number(value, 1)),
    "participation_ratio": ("participation ratio", lambda value: number(value, 1)),
}


def _means(found: Sequence[Mapping[str, Any]]) -> list[str]:
    changed = [measures for measures in found if measures["norm"]]
    texts = []
    for name, (_, form) in _SPECTRUM.items():
        values = [measures.get(name) for measures in changed]
        known = [value for value in values if value is not None]
        texts.append(form(sum(known) / len(known) if known and len(known) == len(values) else None))
    return texts
