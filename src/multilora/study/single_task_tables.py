"""Tables of the single-task runs: the mixture against one adapter per task, and the transfer between tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from multilora.study.differences import MACRO
from multilora.study.table_text import Rows, interval_text, markdown_table, number_text, percent, spread_text


def single_task_parts(results: Mapping[str, Any]) -> list[str]:
    """The sections of the summary about the single-task runs; none if the study has none yet."""
    single = results["single_task"]
    parts = []
    if single is not None and single["differences"]:
        parts += ["## The mixture against one adapter per task", markdown_table(*single_task_table(results))]
        parts.append(
            f"Method, trained on the mixture, minus {single['method']}, trained on every task alone with as many "
            "examples of it; with 95 % intervals. Scores in percentage points: above 0 the mixture helps. Losses in "
            "nats per token: below 0 it helps."
        )
    if single is not None and single["transfer"]:
        parts += ["## Transfer between tasks", markdown_table(*transfer_table(results))]
        parts.append(
            f"Score in percent (or –) / loss in nats per token of {single['method']}, mean ± standard deviation over "
            "seeds. Rows: what it was trained on. Columns: the task it is scored on."
        )
    return parts


def single_task_table(results: Mapping[str, Any]) -> tuple[list[str], Rows]:
    """One row per quantity and task, one column per method: mixture minus one adapter per task."""
    found = {(item["method"], item["quantity"], item["task"]): item for item in results["single_task"]["differences"]}
    methods = list(dict.fromkeys(method for method, _, _ in found))
    rows = []
    for quantity in ("score", "loss"):
        for task in (*results["tasks"], MACRO):
            items = [found.get((method, quantity, task)) for method in methods]
            if any(item is not None for item in items):
                name = f"{task} {quantity}"
                rows.append([name, *("–" if item is None else interval_text(item) for item in items)])
    return ["", *methods], rows


def transfer_table(results: Mapping[str, Any]) -> tuple[list[str], Rows]:
    """One row per training: on nothing, on each task alone, on the mixture; one column per task that is scored."""
    tasks = list(results["tasks"])
    found = {(item["trained_on"], item["scored_on"]): item for item in results["single_task"]["transfer"]}
    trained = list(dict.fromkeys(trained_on for trained_on, _ in found))
    first = trained[0]  # what it is compared with is the same in every row
    rows = [[f"{task} alone", *(_cell(found[task, other]) for other in tasks)] for task in trained]
    if found[first, tasks[0]]["base"] is not None:
        bases = [found[first, task]["base"] for task in tasks]
        before = [f"{percent(base['score'])} / {number_text(base['loss'], 3)}" for base in bases]
        rows.insert(0, ["nothing (base)", *before])
    rows.append(["the mixture", *(_cell(found[first, task]["mixture"]) for task in tasks)])
    return ["trained on", *tasks], rows


def transfer_rows(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The transfer matrix in long form: one row per pair of tasks."""
    single = results["single_task"]
    for item in single["transfer"]:
        row = {"method": single["method"], **{key: item[key] for key in ("trained_on", "scored_on", "seeds")}}
        for quantity in ("score", "loss"):
            value = item[quantity] or {"mean": None, "sd": None}
            row |= {quantity: value["mean"], f"{quantity}_sd": value["sd"]}
        for quantity in ("score", "loss"):
            row[f"base_{quantity}"] = None if item["base"] is None else item["base"][quantity]
            row[f"mixture_{quantity}"] = (item["mixture"][quantity] or {}).get("mean")
        yield row


def _cell(item: Mapping[str, Any]) -> str:
    loss = spread_text(item["loss"], lambda number: number_text(number, 3))
    return f"{spread_text(item['score'], percent)} / {loss}"
