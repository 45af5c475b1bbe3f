"""Charts of one run that its report and the model card of its export share, and their parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from multilora.charts.chart import Chart, Row
from multilora.charts.styles import COLOURS, method_styles, series_colours

# task -> a `TaskScore` as JSON
Scores = Mapping[str, Mapping[str, Any]]
# Of `metrics.jsonl`.
Lines = Sequence[Mapping[str, Any]]
STEP = {"field": "step", "type": "quantitative", "title": "step"}


def before_after_chart(before: Scores, after: Scores, method: str) -> Chart:
    """Scores with intervals of one run, before and after training; without rows if no task has a metric.

    Args:
        before, after: with the same tasks
        method: of the adapter, or `full`
    """
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
        _interval_view({"color": channel, "shape": shape}),
        height=max(90, 56 * len(after)),
    )


def _percents(score: Mapping[str, Any]) -> dict[str, float]:
    """A score and its interval in percent."""
    low, high = score.get("interval") or (score["value"], score["value"])
    return {"value": 100 * score["value"], "low": 100 * low, "high": 100 * high}


def _interval_view(channels: Mapping[str, Any]) -> dict[str, Any]:
    """Points with intervals, one row per task; `channels` are the `color` and `shape` of the points."""
    x = {"field": "value", "type": "quantitative", "title": "score in percent", "scale": {"zero": False}}
    return {
        "encoding": {
            "y": {"field": "task", "type": "nominal", "title": None, "sort": None},
            "yOffset": {"field": "when", "sort": None},
        },
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 2},
                "encoding": {
                    "x": {**x, "field": "low"},
                    "x2": {"field": "high"},
                    "color": channels["color"],
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1, "tooltip": {"content": "data"}},
                "encoding": {"x": x, **channels},
            },
        ],
    }


def losses_chart(lines: Lines, tasks: Sequence[str]) -> Chart:
    """Training loss per task of one run, from its `metrics.jsonl`."""
    return Chart(
        "training_loss",
        "Training loss per task",
        "Mean loss in nats per trained token since the previous log, against the step; one line per task.",
        list(loss_rows(lines, tasks)),
        line_view("loss", "nats per trained token", series_colours("task", tasks)),
    )


def loss_rows(lines: Lines, tasks: Sequence[str]) -> Iterable[dict[str, Any]]:
    """The logged losses: step, task, loss."""
    for line in lines:
        for task in tasks:
            loss = line.get(f"loss/{task}")
            if loss is not None:
                yield {"step": line["step"], "task": task, "loss": loss}


def line_view(field: str, title: str, channels: Mapping[str, Any]) -> dict[str, Any]:
    """The view of a chart of the mean of a field against the step, one line per value of the channels."""
    y = {"field": field, "aggregate": "mean", "type": "quantitative", "title": title, "scale": {"zero": False}}
    mark = {"type": "line", "strokeWidth": 2, "tooltip": True}
    return {"mark": mark, "encoding": {"x": STEP, "y": y, **channels}}
