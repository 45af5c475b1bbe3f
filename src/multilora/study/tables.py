"""Write the results of a study: results.json, summary.md, CSV files and LaTeX tables, in `results/`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from multilora.files import write_json, write_text
from multilora.study.cells import StudyCells, setting_texts
from multilora.study.differences import MACRO
from multilora.study.folder import exclusive
from multilora.study.results import study_results
from multilora.study.single_task_tables import single_task_parts, transfer_rows
from multilora.study.table_text import (
    Rows,
    correlation_text,
    csv_text,
    interval_text,
    latex_row,
    markdown_table,
    mean_of,
    number_text,
    percent,
    spread_text,
)

RESULTS = "results"
RELATION = (
    "The correlations, with 95 % intervals, are over all trials and final runs: above 0, runs with more intruder "
    "dimensions per matrix forget more. The second row compares runs at equal mean loss over tasks (partial "
    "correlation). Runs of one method are alike, so the intervals are too narrow, and a correlation shows no cause."
)


def write_tables(cells: StudyCells) -> Path:
    """Write all tables of what is finished; returns their folder. Existing tables are replaced."""
    folder = cells.study.path / RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(cells.study.path, RESULTS):
        results = study_results(cells)
        write_json(folder / "results.json", results)
        write_text(folder / "summary.md", markdown(results))
        write_text(folder / "methods.tex", latex(results))
        for name, rows in (("methods", method_rows), ("runs", run_rows), ("differences", difference_rows)):
            write_text(folder / f"{name}.csv", csv_text(rows(results)))
        if results["single_task"] is not None:
            write_text(folder / "transfer.csv", csv_text(transfer_rows(results)))
    return folder


def markdown(results: Mapping[str, Any]) -> str:
    """The tables for people."""
    reference = results["reference"]
    parts = ["# Results", markdown_table(*method_table(results))]
    parts.append(
        "Mean ± standard deviation over seeds, on the evaluation split. Scores are in percent, losses in nats per "
        "token. Settings were chosen on the validation split."
    )
    if results["differences"]:
        parts += [f"## Differences to {reference}", markdown_table(*difference_table(results))]
        parts.append(
            "With 95 % intervals. p is adjusted for the number of methods compared in this column (Holm). Wins, ties "
            f"and losses count tasks in which the interval of the score excludes 0; with {len(results['tasks'])} tasks "
            "and several methods some do so by chance."
        )
    parts += single_task_parts(results)
    if results["forgetting_by_intruders"] is not None:
        parts += ["## Forgetting and intruder dimensions", markdown_table(*relation_table(results)), RELATION]
    curves = curve_table(results)
    if curves[1]:
        parts += ["## Trials", markdown_table(*curves), "On the validation split; mean over the seeds of the search."]
    notes = [*results["notes"], *_spectra_missing(results), *_other_cells(results)]
    if notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def method_table(results: Mapping[str, Any]) -> tuple[list[str], Rows]:
    """One row per method: scores, macro averages, cost and spectrum."""
    tasks = results["tasks"]
    columns = ["method", "setting", "seeds", *(f"{task} ({metric})" for task, metric in tasks.items())]
    columns += ["macro score", "macro loss", "forgetting", "intruders"]
    columns += ["parameters", "seconds", "GiB", "effective rank"]
    rows = []
    base = results["base"]
    if base is not None:
        scores = [percent(base["scores"][task]["value"]) for task in tasks]
        rows.append(["base", "", "", *scores, percent(base["macro_score"]), number_text(base["macro_loss"], 3)])
        rows[-1] += [number_text(base["forgetting"], 3), "", "", "", "", ""]
    for method, values in _methods(results).items():
        cells = [spread_text(values["scores"].get(task), percent) for task in tasks]
        cells += [
            spread_text(values["macro_score"], percent),
            spread_text(values["macro_loss"], lambda number: number_text(number, 3)),
            spread_text(values["forgetting"], lambda number: number_text(number, 3)),
            spread_text(values["intruders"], lambda number: number_text(number, 2)),
            number_text(mean_of(values["trainable_parameters"]), 0),
            number_text(mean_of(values["seconds"]), 0),
            number_text(None if (peak := mean_of(values["peak_memory"])) is None else peak / 2**30, 2),
            spread_text(values["spectrum"].get("effective_rank"), lambda number: number_text(number, 1)),
        ]
        setting = ", ".join(setting_texts(values["setting"] or {}))
        rows.append([method, setting, str(len(values["seeds"])), *cells])
    return _without_empty(columns, rows)


def _without_empty(columns: list[str], rows: Rows) -> tuple[list[str], Rows]:
    """Leave out the columns without any value, such as those of measures that the study does not have."""
    kept = [index for index in range(len(columns)) if any(row[index] not in ("", "–") for row in rows)]
    return [columns[index] for index in kept], [[row[index] for index in kept] for row in rows]


def _methods(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The methods, and the single-task runs as another one."""
    single = results.get("single_task")
    if single is None:
        return dict(results["methods"])
    setting = results["methods"][single["method"]]["setting"]
    return {**results["methods"], single["label"]: {**single["summary"], "setting": setting}}


def difference_table(results: Mapping[str, Any]) -> tuple[list[str], Rows]:
    """One row per method: macro differences with intervals, and wins, ties and losses."""
    quantities = [("score", MACRO), ("loss", MACRO), ("forgetting", "")]
    found = {(item["method"], item["quantity"], item["task"]): item for item in results["differences"]}
    quantities = [key for key in quantities if any(item[1:] == key for item in found)]
    names = {"score": "macro score", "loss": "macro loss", "forgetting": "forgetting"}
    columns = ["method"]
    for quantity, _ in quantities:
        columns += [names[quantity], "p"]
    columns.append("win/tie/loss")
    rows = []
    for method in dict.fromkeys(item["method"] for item in results["differences"]):
        row = [method]
        for quantity, task in quantities:
            item = found.get((method, quantity, task))
            row += ["–", "–"] if item is None else [interval_text(item), f"{item['adjusted_p_value']:.3f}"]
        rows.append([*row, "/".join(map(str, results["methods"][method]["wins_ties_losses"]))])
    return columns, rows


def relation_table(results: Mapping[str, Any]) -> tuple[list[str], Rows]:
    """The correlation of forgetting and intruder dimensions: over all runs, and at equal task loss."""
    relation = results["forgetting_by_intruders"]
    names = {"spearman": "as measured (Spearman)", "at_equal_loss": "at equal task loss (partial)"}
    rows = [[name, str(relation["runs"]), correlation_text(relation[key])] for key, name in names.items()]
    return ["forgetting and intruder dimensions", "runs", "rank correlation"], rows


def curve_table(results: Mapping[str, Any]) -> tuple[list[str], Rows]:
    """One row per trial setting, with means over the seeds of the search."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in results["runs"]:
        if run["stage"] == "trial":
            groups.setdefault((run["method"], ", ".join(setting_texts(run["setting"]))), []).append(run)
    rows = []
    for (method, setting), runs in groups.items():
        chosen = results["methods"][method]["setting"] == runs[0]["setting"]
        row = [method, f"{setting} (chosen)" if chosen else setting]
        if any("macro_loss" not in run for run in runs):
            failed = any(run["error"] for run in runs)
            rows.append([*row, "failed" if failed else "not finished", "", "", ""])
            continue
        loss, score = _average(runs, "macro_loss"), _average(runs, "macro_score")
        ranks = [run["spectrum"]["effective_rank"] for run in runs if run["spectrum"] is not None]
        rank = sum(ranks) / len(ranks) if ranks else None
        rows.append([*row, number_text(loss, 3), percent(score), number_text(_average(runs, "forgetting"), 3)])
        rows[-1].append(number_text(rank, 1))
    return ["method", "setting", "macro loss", "macro score", "forgetting", "effective rank"], rows


def latex(results: Mapping[str, Any]) -> str:
    """The table of methods for a paper, with booktabs."""
    columns, rows = method_table(results)
    lines = [r"\begin{tabular}{ll" + "r" * (len(columns) - 2) + "}", r"\toprule", latex_row(columns), r"\midrule"]
    return "\n".join([*lines, *map(latex_row, rows), r"\bottomrule", r"\end{tabular}"]) + "\n"


def method_rows(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The results of the methods in long form: one row per method, quantity and task."""
    for method, values in _methods(results).items():
        quantities = [("score", task, values["scores"].get(task)) for task in results["tasks"]]
        quantities += [("loss", task, values["losses"].get(task)) for task in results["tasks"]]
        quantities += [("score", MACRO, values["macro_score"]), ("loss", MACRO, values["macro_loss"])]
        quantities += [
            (key, "", values[key])
            for key in ("forgetting", "intruders", "trainable_parameters", "seconds", "peak_memory")
        ]
        quantities += [(f"spectrum {key}", "", value) for key, value in values["spectrum"].items()]
        for quantity, task, value in quantities:
            known = value or {"mean": None, "sd": None}
            yield {"method": method, "quantity": quantity, "task": task, **known, "seeds": len(values["seeds"])}


def run_rows(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every run, the base and trials too: the curves over the grid, and task loss against forgetting."""
    keys = list(dict.fromkeys(key for run in results["runs"] for key in run["setting"]))
    base = {"stage": "base", "split": "eval", "setting": {}, "error": None, **(results["base"] or {})}
    for run in [*([] if results["base"] is None else [base]), *results["runs"]]:
        row = {name: run.get(name) for name in ("id", "stage", "method", "seed", "trained_on", "split")}
        row |= {key: run["setting"].get(key) for key in keys}
        row |= {name: run.get(name) for name in ("macro_score", "macro_loss", "forgetting", "intruders")}
        row |= {name: run.get(name) for name in ("steps", "tokens", "seconds", "trainable_parameters", "peak_memory")}
        spectrum = run.get("spectrum") or {}
        row |= {name: spectrum.get(name) for name in ("effective_rank", "stable_rank", "top1_energy", "norm")}
        for task in results["tasks"]:
            score = run.get("scores", {}).get(task, {})
            row |= {f"score {task}": score.get("value"), f"loss {task}": score.get("loss")}
        yield {**row, "error": run["error"]}


def difference_rows(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All differences to the reference, and of the methods to their single-task runs."""
    for item in results["differences"]:
        yield {"reference": results["reference"], **item}
    single = results["single_task"]
    for item in [] if single is None else single["differences"]:
        yield {"reference": single["label"], **item}


def _average(runs: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [run[key] for run in runs]
    return None if None in values else sum(values) / len(values)


def _spectra_missing(results: Mapping[str, Any]) -> Iterator[str]:
    reasons = {(run["method"], run.get("spectrum_missing")) for run in results["runs"]}
    for method, reason in sorted((method, reason) for method, reason in reasons if reason):
        yield f"{method}: no spectrum: {reason}"


def _other_cells(results: Mapping[str, Any]) -> Iterator[str]:
    if results["other_cells"]:
        yield (
            f"cells/ has {len(results['other_cells'])} cells that are not part of this study file, such as those of an "
            f"earlier version; they are kept and not used: {', '.join(results['other_cells'])}"
        )
