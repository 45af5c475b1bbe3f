"""Charts of training: losses of several methods, learning rate, scores while training, shares of the mixture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from multilora.charts.chart import Chart, Row, Selector
from multilora.charts.run_charts import STEP, Lines, line_view, loss_rows
from multilora.charts.styles import method_scales, series_colours

ALL_TASKS = "all, averaged"


def method_losses_chart(runs: Mapping[str, Sequence[Lines]], methods: Mapping[str, str], tasks: Sequence[str]) -> Chart:
    """Training loss of several methods.

    Args:
        runs: label -> the lines of `metrics.jsonl` of each of its runs, over which the chart averages
        methods: label -> method of the adapter
        tasks: names
    """
    rows = [
        {"method": label, "run": number, **row}
        for label, found in runs.items()
        for number, lines in enumerate(found)
        for row in loss_rows(lines, tasks)
    ]
    return Chart(
        "training_loss",
        "Training loss",
        "Mean loss in nats per trained token since the previous log, against the step; one line per method, mean over "
        "its runs.",
        rows,
        line_view("loss", "nats per trained token", method_scales(methods)),
        selectors=[Selector("task", "task", list(tasks), ALL_TASKS)],
        facet="task",
    )


def learning_rate_chart(lines: Lines) -> Chart:
    """The learning rate of one run over the steps."""
    found = [(line["step"], line.get("learning_rate")) for line in lines]
    rows = [{"step": step, "learning_rate": rate} for step, rate in found if rate is not None]
    encoding = {
        "x": STEP,
        "y": {"field": "learning_rate", "type": "quantitative", "title": "learning rate"},
    }
    return Chart(
        "learning_rate",
        "Learning rate",
        "Learning rate of the last step before each log, against the step.",
        rows,
        {"mark": {"type": "line", "strokeWidth": 2, "tooltip": True, "color": "#0072b2"}, "encoding": encoding},
        height=180,
    )


def evaluations_chart(evaluations: Lines) -> Chart:
    """Scores, losses and forgetting per task while training, from `evaluations.jsonl`."""
    rows: list[Row] = []
    tasks = list(dict.fromkeys(task for line in evaluations for task in line["tasks"]))
    for line in evaluations:
        for task, score in line["tasks"].items():
            values = {
                "score (percent)": None if score["value"] is None else 100 * score["value"],
                "loss (nats per token)": score["loss"],
                "forgotten since the best evaluation": line["forgotten"].get(task),
            }
            rows += [
                {"step": line["step"], "task": task, "measure": measure, "value": value}
                for measure, value in values.items()
                if value is not None
            ]
    measures = list(dict.fromkeys(str(row["measure"]) for row in rows))
    y = {"field": "value", "type": "quantitative", "title": None, "scale": {"zero": False}}
    view = {
        "mark": {"type": "line", "strokeWidth": 2, "point": True, "tooltip": True},
        "encoding": {"x": STEP, "y": y, **series_colours("task", tasks)},
    }
    return Chart(
        "evaluations",
        "Evaluation while training",
        "Score in percent, loss in nats per response token, or what was forgotten, against the step; one line per "
        "task. Forgotten is how far the task's score in [0, 1] (without a score: its loss) is below its best "
        "evaluation so far.",
        rows,
        view,
        selectors=[Selector("measure", "measure", measures)] if measures else [],
    )


def shares_chart(tasks: Sequence[Mapping[str, Any]], unit: str) -> Chart:
    """Shares of the mixture that were asked for and that the plan has."""
    rows = [
        {"task": task["name"], "which": which, "share": 100 * task[key]}
        for task in tasks
        for which, key in (("asked", "asked"), ("realised", "share"))
    ]
    colour = {"domain": ["asked", "realised"], "range": ["#9aa1aa", "#0072b2"]}
    encoding = {
        "y": {"field": "task", "type": "nominal", "title": None, "sort": None},
        "x": {"field": "share", "type": "quantitative", "title": f"percent of the {unit.replace('_', ' ')}"},
        "yOffset": {"field": "which"},
        "color": {
            "field": "which",
            "type": "nominal",
            "scale": colour,
            "legend": {"title": None, "orient": "top"},
        },
    }
    return Chart(
        "shares",
        "Shares of the mixture",
        f"Share of each task in percent of the {unit.replace('_', ' ')}: asked for in the recipe, and realised in the "
        "plan.",
        rows,
        {"mark": {"type": "bar", "tooltip": True}, "encoding": encoding},
        height=max(80, 44 * len(tasks)),
    )
