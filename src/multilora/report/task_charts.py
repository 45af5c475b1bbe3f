"""Heatmaps between tasks: gradients that agree or conflict, and transfer from one task to another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from multilora.charts.chart import Chart, Row, Selector
from multilora.training.callbacks.interference import BETWEEN, PREFIX

Lines = Sequence[Mapping[str, Any]]
ALL_STEPS = "all, averaged"


def interference_chart(lines: Lines, tasks: Sequence[str]) -> Chart:
    """Cosines between the gradients of the tasks of one run, from its `metrics.jsonl`."""
    rows = list(_cosines(lines))
    kinds = list(dict.fromkeys(str(row["kind"]) for row in rows))
    steps = list(dict.fromkeys(row["step"] for row in rows))
    aggregate = [{"op": "mean", "field": "cosine", "as": "mean"}]
    return Chart(
        "interference",
        "Interference of the tasks",
        "Cosine between the gradients of two tasks on the same batches, means over the selected steps: above 0 a step "
        "for one task also helps the other, below 0 it harms it.",
        rows,
        _heatmap("first", "second", "mean", "cosine", largest=1.0, form=".2f", order=list(tasks)),
        transform=[{"aggregate": aggregate, "groupby": ["first", "second"]}],
        selectors=[Selector("kind", "module type", kinds), Selector("step", "step", steps, ALL_STEPS)] if rows else [],
        height=max(170, 60 + 48 * len(tasks)),
    )


def _cosines(lines: Lines) -> Iterator[dict[str, Any]]:
    for line in lines:
        for key, value in line.items():
            if key.startswith(PREFIX) and BETWEEN in key and value is not None:
                kind, _, pair = key.removeprefix(PREFIX).partition("/")
                first, _, second = pair.partition(BETWEEN)
                for a, b in ((first, second), (second, first)):
                    yield {"step": line["step"], "kind": kind, "first": a, "second": b, "cosine": value}


def transfer_chart(results: Mapping[str, Any]) -> Chart:
    """What training on one task, or on the mixture, does to every task, against the base."""
    rows: list[Row] = []
    single = results.get("single_task") or {"transfer": []}
    for item in single["transfer"]:
        if item["base"] is None:
            continue
        rows += _improvements(f"{item['trained_on']} alone", item["scored_on"], item, item["base"])
    seen = set()
    for item in single["transfer"]:  # the mixture is the same in every row
        if item["base"] is not None and item["scored_on"] not in seen:
            seen.add(item["scored_on"])
            rows += _improvements("the mixture", item["scored_on"], item["mixture"], item["base"])
    quantities = list(dict.fromkeys(str(row["quantity"]) for row in rows))
    largest = max((abs(row["improvement"]) for row in rows if row["quantity"] == quantities[0]), default=1.0) or 1.0
    trained = list(dict.fromkeys(str(row["trained_on"]) for row in rows))
    return Chart(
        "transfer",
        "Transfer between tasks",
        "How much better than the base a task's score, in percentage points, or its loss, in nats per token, is after "
        "training on another task alone, or on the mixture; means over seeds. Below 0 it is worse.",
        rows,
        _heatmap("trained_on", "task", "improvement", "improvement", largest=largest, form="+.2f"),
        selectors=[Selector("quantity", "quantity", quantities)] if rows else [],
        height=max(170, 60 + 48 * len(trained)),
    )


def _improvements(
    trained_on: str, task: str, values: Mapping[str, Any], base: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    for quantity, title, factor in (
        ("loss", "loss, nats per token", -1.0),
        ("score", "score, percentage points", 100.0),
    ):
        value = values[quantity]
        if value is not None and value["mean"] is not None and base[quantity] is not None:
            improvement = factor * (value["mean"] - base[quantity])
            yield {"trained_on": trained_on, "task": task, "quantity": title, "improvement": improvement}


def task_changes_chart(results: Mapping[str, Any]) -> Chart:
    """How each method changes each task, against the base, as a heatmap."""
    base = results["base"]
    rows: list[Row] = []
    for method, values in results["methods"].items():
        for task, score in values["scores"].items():
            before = None if base is None else base["scores"].get(task, {}).get("value")
            if score is not None and before is not None:
                rows.append({"method": method, "task": task, "change": 100 * (score["mean"] - before)})
    largest = max((abs(row["change"]) for row in rows), default=1.0) or 1.0
    return Chart(
        "task_changes",
        "Change of each task against the base",
        "Mean score of the final runs minus the score of the base, in percentage points: positive where the mixture "
        "helps a task, negative where it harms it.",
        rows,
        _heatmap("method", "task", "change", "percentage points", largest=largest, form="+.1f"),
        height=max(170, 60 + 48 * len(results["methods"])),
    )


def _heatmap(
    y: str, x: str, value: str, title: str, *, largest: float, form: str, order: list[str] | None = None
) -> dict[str, Any]:
    """Cells around 0: orange below, blue above, and their numbers."""
    legend = {"orient": "top", "gradientLength": 180}
    scale = {"scheme": "blueorange", "reverse": True, "domain": [-largest, largest], "domainMid": 0, "clamp": True}
    colour = {"field": value, "type": "quantitative", "scale": scale, "title": title, "legend": legend}
    is_dark = {"test": f"abs(datum[{value!r}]) > {0.6 * largest}", "value": "white"}
    return {
        "encoding": {
            "x": {"field": x, "type": "nominal", "title": None, "sort": order, "axis": {"labelAngle": -30}},
            "y": {"field": y, "type": "nominal", "title": None, "sort": order},
        },
        "layer": [
            {"mark": {"type": "rect", "tooltip": True}, "encoding": {"color": colour}},
            {
                "mark": {"type": "text", "fontSize": 12},
                "encoding": {
                    "text": {"field": value, "type": "quantitative", "format": form},
                    "color": {"condition": is_dark, "value": "black"},
                },
            },
        ],
    }
