"""Charts and tables of scores: before and after training, and by method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from multilora.charts.chart import Chart, Row, Selector
from multilora.charts.styles import COLOURS, method_scales, method_styles
from multilora.report.page import Table
from multilora.report.texts import number, percent, percent_interval

# task -> a `TaskScore` as JSON
Scores = Mapping[str, Mapping[str, Any]]
PERCENT = "score in percent"


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


def before_after_chart(before: Scores, after: Scores, method: str) -> Chart:
    """Scores with intervals of one run, before and after training."""
    rows: list[Row] = []
    for task in after:
        for when, scores in (("before", before), ("after", after)):
            if scores[task]["value"] is not None:
                rows.append({"task": task, "when": when, **_percents(scores[task])})
    colour = {
        "domain": ["before", "after"],
        "range": [COLOURS["base"][0], method_styles({method: method})[method].colour],
    }
    channel = {"field": "when", "type": "nominal", "scale": colour, "legend": {"title": None, "orient": "top"}}
    shape = {"field": "when", "type": "nominal", "legend": {"title": None, "orient": "top"}}
    shape["scale"] = {"domain": ["before", "after"], "range": ["circle", "square"]}
    return Chart(
        "scores",
        "Scores before and after training",
        "Main metric of each task in percent with its 95 % confidence interval, before and after training.",
        rows,
        _interval_view({"color": channel, "shape": shape}, "task", "when"),
        height=max(90, 56 * len(after)),
    )


def _percents(score: Mapping[str, Any]) -> dict[str, float]:
    low, high = score.get("interval") or (score["value"], score["value"])
    return {"value": 100 * score["value"], "low": 100 * low, "high": 100 * high}


def _interval_view(channels: Mapping[str, Any], y: str, offset: str | None, title: str = PERCENT) -> dict[str, Any]:
    position: dict[str, Any] = {"y": {"field": y, "type": "nominal", "title": None, "sort": None}}
    if offset is not None:
        position["yOffset"] = {"field": offset, "sort": None}
    x = {"field": "value", "type": "quantitative", "title": title, "scale": {"zero": False}}
    colour = channels["color"]
    return {
        "encoding": position,
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 2},
                "encoding": {
                    "x": {**x, "field": "low"},
                    "x2": {"field": "high"},
                    "color": colour,
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1, "tooltip": {"content": "data"}},
                "encoding": {"x": x, **channels},
            },
        ],
    }


def method_scores_table(base: Scores, results: Mapping[str, Scores], extra: Mapping[str, Sequence[str]]) -> Table:
    """Scores of the base and of several methods, one run each.

    Args:
        base: scores of the base
        results: label -> scores
        extra: column -> texts: of the base, then of each label
    """
    tasks = {task: score["metric"] for task, score in base.items()}
    columns = ["method", *(f"{task} ({metric})" for task, metric in tasks.items()), "mean loss", *extra]
    rows = []
    for index, (label, scores) in enumerate([("base", base), *results.items()]):
        losses = [score["loss"] for score in scores.values()]
        row = [label, *(percent_interval(scores[task]) for task in tasks), number(sum(losses) / len(losses), 3)]
        rows.append([*row, *(values[index] for values in extra.values())])
    return Table(
        "Scores in percent with 95 % confidence intervals over the examples; loss in nats per response token, mean "
        "over tasks",
        columns,
        rows,
    )


def method_scores_chart(base: Scores, results: Mapping[str, Scores], methods: Mapping[str, str]) -> Chart:
    """Scores with intervals by method, one run each; one task at a time."""
    every = {"base": base, **results}
    rows = [
        {"method": label, "task": task, **_percents(score)}
        for task in base
        for label, scores in every.items()
        if (score := scores[task])["value"] is not None
    ]
    tasks = list(dict.fromkeys(str(row["task"]) for row in rows))
    channels = method_scales({"base": "base", **methods}, shapes=True)
    for channel in channels.values():
        channel["legend"] = None  # the axis names the methods
    return Chart(
        "scores",
        "Scores by method",
        "Main metric of the selected task in percent with its 95 % confidence interval over the examples, by method.",
        rows,
        _interval_view(channels, "method", None),
        selectors=[Selector("task", "task", tasks)] if tasks else [],
        height=max(120, 34 * len(every)),
    )


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
