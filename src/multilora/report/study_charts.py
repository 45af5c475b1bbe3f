"""Charts of a study, made from its `results.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from multilora.analysis.intruders import TOP
from multilora.charts.chart import Chart, Row, Selector
from multilora.charts.styles import COLOURS, method_scales
from multilora.report.training_charts import ALL_TASKS
from multilora.study.relation import comparable_runs

Results = Mapping[str, Any]
MACRO = "macro"
QUANTITIES = {
    "score": ("score, percentage points", 100.0),
    "loss": ("loss, nats per token", 1.0),
    "forgetting": ("forgetting, nats per token", 1.0),
}


def final_scores_chart(results: Results, methods: Mapping[str, str]) -> Chart:
    """Scores and losses of every final run, by method."""
    rows: list[Row] = []
    for run in results["runs"]:
        if run["stage"] != "final" or "scores" not in run:
            continue
        for task, score in run["scores"].items():
            shared = {"method": run["method"], "seed": run["seed"], "task": task}
            if score["value"] is not None:
                rows.append({**shared, "measure": "score (percent)", "value": 100 * score["value"]})
            rows.append({**shared, "measure": "loss (nats per token)", "value": score["loss"]})
    measures = list(dict.fromkeys(str(row["measure"]) for row in rows))
    channels = method_scales(methods, shapes=True)
    for channel in channels.values():
        channel["legend"] = None  # the axis names the methods
    y = {"field": "method", "type": "nominal", "title": None, "sort": None}
    x = {"field": "value", "type": "quantitative", "title": None, "scale": {"zero": False}}
    view = {
        "encoding": {"y": y},
        "layer": [
            {
                "mark": {"type": "point", "filled": True, "size": 70, "opacity": 0.85, "tooltip": True},
                "encoding": {"x": {**x, "aggregate": "mean"}, "detail": {"field": "seed"}, **channels},
            },
            {
                "mark": {"type": "tick", "thickness": 3, "size": 26},
                "encoding": {"x": {**x, "aggregate": "mean"}, "color": channels["color"]},
            },
        ],
    }
    return Chart(
        "final_scores",
        "Final runs by method",
        "Score in percent, or loss in nats per response token, on the evaluation split: a point per seed, and a tick "
        "at the mean; of the selected task, or averaged over tasks.",
        rows,
        view,
        selectors=[
            Selector("measure", "measure", measures),
            Selector("task", "task", list(results["tasks"]), ALL_TASKS),
        ],
        height=max(120, 44 * len(methods)),
    )


def differences_chart(results: Results, methods: Mapping[str, str]) -> Chart:
    """Differences to the reference with intervals."""
    rows: list[Row] = []
    for item in results["differences"]:
        title, factor = QUANTITIES[item["quantity"]]
        if not math.isfinite(item["low"]):
            continue  # one seed: there is no interval
        low, middle, high = (factor * item[key] for key in ("low", "difference", "high"))
        task = {MACRO: "mean over tasks", "": "other text"}.get(item["task"], item["task"])
        rows.append(
            {
                "method": item["method"],
                "quantity": title,
                "task": task,
                "difference": middle,
                "low": low,
                "high": high,
                "adjusted_p": item["adjusted_p_value"],
                "seeds": item["seeds"],
            }
        )
    quantities = list(dict.fromkeys(str(row["quantity"]) for row in rows))
    channels = method_scales(methods, shapes=True)
    for channel in channels.values():
        channel["legend"] = None  # the axis names the methods
    x = {"type": "quantitative", "title": f"difference to {results['reference']}"}
    y = {"y": {"field": "task", "type": "nominal", "title": None, "sort": None}}
    view = {
        "layer": [
            {
                "mark": {"type": "rule", "strokeDash": [4, 3], "opacity": 0.6, "color": "#7a7f87"},
                "encoding": {"x": {"datum": 0, **x}},
            },
            {
                "mark": {"type": "rule", "strokeWidth": 2},
                "encoding": {**y, "x": {"field": "low", **x}, "x2": {"field": "high"}, "color": channels["color"]},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1, "tooltip": {"content": "data"}},
                "encoding": {**y, "x": {"field": "difference", **x}, **channels},
            },
        ],
    }
    compared = list(dict.fromkeys(str(row["method"]) for row in rows))
    tasks = len({row["task"] for row in rows})
    return Chart(
        "differences",
        f"Paired differences to {results['reference']}",
        f"Method minus {results['reference']} on the same seeds and examples, with 95 % confidence intervals; an "
        "interval that contains 0 shows no difference. Scores: right of 0 is better. Losses: left of 0 is better.",
        rows,
        view,
        selectors=[Selector("method", "method", compared), Selector("quantity", "quantity", quantities)]
        if rows
        else [],
        height=max(120, 34 * tasks),
    )


def search_chart(results: Results, methods: Mapping[str, str]) -> Chart:
    """What every trial of the search reached, against the searched value."""
    rows: list[Row] = []
    for run in results["runs"]:
        if run["stage"] == "trial" and run.get("macro_loss") is not None:
            rows += [
                {
                    "method": run["method"],
                    "seed": run["seed"],
                    "key": key.partition(".")[2],
                    "tried": value,
                    "loss": run["macro_loss"],
                }
                for key, value in run["setting"].items()
                if isinstance(value, int | float)
            ]
    keys = list(dict.fromkeys(str(row["key"]) for row in rows))
    scale = {"type": "log", "nice": False}
    ticks = {"format": "~g", "tickCount": 5, "labelSeparation": 8}
    view = {
        "mark": {"type": "line", "strokeWidth": 2, "point": {"size": 60}, "tooltip": True},
        "encoding": {
            "x": {
                "field": "tried",
                "type": "quantitative",
                "scale": scale,
                "title": "tried value",
                "axis": ticks,
            },
            "y": {
                "field": "loss",
                "aggregate": "mean",
                "type": "quantitative",
                "scale": {"zero": False},
                "title": "validation loss, nats per token",
            },
            **method_scales(methods),
        },
    }
    return Chart(
        "search",
        "Search of the settings",
        "Mean loss over tasks on the validation split, in nats per response token, against the tried value; mean over "
        "the seeds and the other keys of the grid. The lowest point of each line was chosen; where it is at the end of "
        "its line, a better value may lie outside.",
        rows,
        view,
        selectors=[Selector("key", "setting", keys)] if keys else [],
    )


_AGAINST = {
    "macro_loss": "mean loss over tasks, nats per token",
    "effective_rank": "effective rank",
    "top1_energy": "energy in the top 1",
}


def forgetting_chart(results: Results, methods: Mapping[str, str]) -> Chart:
    """Forgetting against task loss and rank, one point per run."""
    rows: list[Row] = []
    for run in results["runs"]:
        if run.get("forgetting") is None or run["method"] not in methods or run["stage"] not in ("trial", "final"):
            continue
        measures = {**(run.get("spectrum") or {}), "macro_loss": run["macro_loss"]}
        rows += [
            {**_run(run), "against": title, "value": measures[name], "forgetting": run["forgetting"]}
            for name, title in _AGAINST.items()
            if measures.get(name) is not None
        ]
    against = [title for title in _AGAINST.values() if any(row["against"] == title for row in rows)]
    return Chart(
        "forgetting",
        "Forgetting against task loss and rank",
        "Loss on text of the kind that the base was pretrained on, in nats per token, against the selected measure; a "
        f"point per run, trials included. Lower is less forgotten{_base_line(results)}.",
        rows,
        _forgetting_view(results, methods, "value", None),
        selectors=[Selector("against", "against", against)] if against else [],
    )


def forgetting_by_intruders_chart(results: Results, methods: Mapping[str, str]) -> Chart:
    """Forgetting against intruder dimensions, one point per run."""
    rows = [
        {
            **_run(run),
            "intruders": run["intruders"],
            "forgetting": run["forgetting"],
            "macro_loss": run["macro_loss"],
        }
        for run in comparable_runs(results["runs"])
        if run["method"] in methods
    ]
    return Chart(
        "forgetting_by_intruders",
        "Forgetting against intruder dimensions",
        "Loss on text of the kind that the base was pretrained on, in nats per token, against the mean number of "
        f"intruder dimensions per matrix: of the {TOP} largest singular vectors of the tuned weight, those that match "
        f"none of the base's. A point per run, trials included{_base_line(results)}.",
        rows,
        _forgetting_view(results, methods, "intruders", "intruder dimensions per matrix"),
    )


def _run(run: Mapping[str, Any]) -> dict[str, Any]:
    return {name: run[name] for name in ("method", "stage", "seed")}


def _base_loss(results: Results) -> float | None:
    """The loss of the base on other text."""
    loss: float | None = (results["base"] or {}).get("forgetting")
    return loss


def _base_line(results: Results) -> str:
    return "" if _base_loss(results) is None else "; the dashed line is the base"


def _forgetting_view(results: Results, methods: Mapping[str, str], field: str, title: str | None) -> dict[str, Any]:
    """Points of forgetting against a field, above a line at the loss of the base if it is known."""
    y = {"type": "quantitative", "scale": {"zero": False}, "title": "loss on other text, nats per token"}
    points = {
        "mark": {"type": "point", "filled": True, "size": 80, "opacity": 0.9, "tooltip": {"content": "data"}},
        "encoding": {
            "x": {"field": field, "type": "quantitative", "scale": {"zero": False}, "title": title},
            "y": {"field": "forgetting", **y},
            **method_scales(methods, shapes=True),
        },
    }
    base = _base_loss(results)
    if base is None:
        return points
    line = {"type": "rule", "strokeDash": [4, 3], "strokeWidth": 1.5, "color": COLOURS["base"][0]}
    return {"layer": [{"mark": line, "encoding": {"y": {"datum": base, **y}}}, points]}
