"""The report of a study, from the files in its folder; the data and the base need not be there any more."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from multilora.analysis.analyze import ANALYSIS_FOLDER, SPECTRUM_FILE
from multilora.analysis.figures import analysis_charts
from multilora.analysis.similarity_figure import similarity_chart
from multilora.report.page import Block, Facts, Figure, Page, Section, Table, Text, Unfold
from multilora.report.run_page import plan_table, read_json
from multilora.report.study_charts import (
    differences_chart,
    final_scores_chart,
    forgetting_by_intruders_chart,
    forgetting_chart,
    search_chart,
)
from multilora.report.task_charts import task_changes_chart, transfer_chart
from multilora.report.training_charts import method_losses_chart, shares_chart
from multilora.runs.directory import Run
from multilora.study.cells import CELLS
from multilora.study.single_task_tables import single_task_table, transfer_table
from multilora.study.stored import STUDY_FILE, adapter_methods, read_results, read_study
from multilora.study.subspaces import SIMILARITY_FILE
from multilora.study.tables import RELATION, difference_table, method_table, relation_table


def study_page(path: Path) -> Page:
    """Collect the results of a study.

    Raises:
        InputError: there are no results yet.
        RunDirectoryError: a file is damaged.
    """
    results, study = read_results(path), read_study(path)
    methods = adapter_methods(study)
    finals = _final_runs(path, results)
    sections = [
        Section("What was run", _facts(study, results)),
        Section("Results", _results(results, methods)),
        Section(f"Differences to {results['reference']}", _differences(results, methods)),
        Section("Tasks alone and together", _single_task(results)),
        Section("Search", _figures(search_chart(results, methods))),
        Section("Training", _training(finals, methods, list(results["tasks"]))),
        Section("Weight updates", _updates(path, finals)),
        Section("Forgetting", _forgetting(results, methods)),
        Section("Data", _data(finals)),
        Section("Study file and environment", _origin(path, finals)),
    ]
    count = len(study["seeds"])
    subtitle = f"{len(methods)} methods on {len(results['tasks'])} tasks, {count} seed{'s' if count > 1 else ''} each"
    return Page(f"Study {path.resolve().name}", subtitle, sections)


def _final_runs(path: Path, results: Mapping[str, Any]) -> dict[str, list[Run]]:
    """Method -> its finished final runs whose folders are there."""
    found: dict[str, list[Run]] = {}
    for run in results["runs"]:
        folder = path / CELLS / run["id"]
        if run["stage"] == "final" and "scores" in run and (folder / "recipe.yaml").is_file():
            found.setdefault(run["method"], []).append(Run(folder))
    return found


def _facts(study: Mapping[str, Any], results: Mapping[str, Any]) -> list[Block]:
    search = study.get("search")
    tried = (
        "none: the settings are given"
        if not search
        else f"{search['trials']} settings per method, by {search['metric']}"
    )
    cells = ", ".join(f"{count:,} {state}" for state, count in results["cells"].items() if count)
    items = [
        ("base", str(study["recipe"]["model"]["name_or_path"])),
        ("methods", ", ".join(study["methods"])),
        ("reference", str(results["reference"])),
        ("seeds", ", ".join(map(str, study["seeds"]))),
        ("search", tried),
        ("cells", cells),
    ]
    return [Facts(items), *(Text(f"Note: {note}.") for note in results["notes"])]


def _results(results: Mapping[str, Any], methods: Mapping[str, str]) -> list[Block]:
    columns, cells = method_table(results)
    rows = [dict(zip(columns, row, strict=True)) for row in cells]
    cut = columns.index("macro loss") + 1 if "macro loss" in columns else len(columns)
    # The setting is below the name of the method: a column of its own would make the table too wide.
    scored, others = [name for name in columns[1:cut] if name != "setting"], columns[cut:]
    blocks: list[Block] = [
        Table(
            "Mean ± standard deviation over seeds, on the evaluation split. Scores in percent, losses in nats per "
            "token; macro is the mean over tasks. Settings were chosen on the validation split",
            ["method", *scored],
            [[_with_setting(row), *(row[name] for name in scored)] for row in rows],
        )
    ]
    if others:
        blocks.append(
            Table(
                "The other measurements of these runs, mean ± standard deviation over seeds: loss on other text in "
                "nats per token (forgetting), intruder dimensions per matrix, cost, effective rank of the update",
                ["method", *others],
                [[row["method"], *(row[name] for name in others)] for row in rows],
            )
        )
    return [*blocks, *_figures(final_scores_chart(results, methods), task_changes_chart(results))]


def _with_setting(row: Mapping[str, str]) -> str:
    return f"{row['method']} ({row['setting']})" if row.get("setting") else row["method"]


def _differences(results: Mapping[str, Any], methods: Mapping[str, str]) -> list[Block]:
    if not results["differences"]:
        return []
    caption = (
        "Method minus reference with 95 % confidence intervals; p is adjusted for the number of methods compared in "
        "its column (Holm). Wins, ties and losses count tasks whose interval of the score excludes 0"
    )
    return [Table(caption, *difference_table(results)), *_figures(differences_chart(results, methods))]


def _single_task(results: Mapping[str, Any]) -> list[Block]:
    single = results.get("single_task")
    if single is None:
        return []
    blocks: list[Block] = []
    if single["differences"]:
        caption = (
            f"Trained on the mixture, minus {single['method']} trained on every task alone with as many examples of "
            "it; with 95 % intervals. Scores in percentage points, losses in nats per token"
        )
        blocks.append(Table(caption, *single_task_table(results)))
    if single["transfer"]:
        caption = (
            f"Score in percent / loss in nats per token of {single['method']}, mean ± standard deviation over seeds. "
            "Rows: what it was trained on. Columns: the task it is scored on"
        )
        blocks.append(Table(caption, *transfer_table(results)))
    return [*blocks, *_figures(transfer_chart(results))]


def _training(finals: Mapping[str, list[Run]], methods: Mapping[str, str], tasks: list[str]) -> list[Block]:
    lines = {name: [run.metrics for run in runs] for name, runs in finals.items()}
    return _figures(method_losses_chart(lines, {name: methods[name] for name in lines}, tasks))


def _updates(path: Path, finals: Mapping[str, list[Run]]) -> list[Block]:
    blocks = _spectra({name: runs[0] for name, runs in finals.items() if runs})
    similarities = read_json(path / SIMILARITY_FILE)
    if similarities is not None:
        return [*blocks, *_figures(similarity_chart(similarities))]
    if len(finals) > 1:
        blocks.append(Text(f"How similar the updates are is not computed yet: multilora analyze {path}."))
    return blocks


def _spectra(runs: Mapping[str, Run]) -> list[Block]:
    """The charts of the analyses of several runs; nothing without them."""
    stored = {label: read_json(run.path / ANALYSIS_FOLDER / SPECTRUM_FILE) for label, run in runs.items()}
    spectra = {label: spectrum for label, spectrum in stored.items() if spectrum is not None}
    if not spectra or any("kind" not in matrix for s in spectra.values() for matrix in s["matrices"]):
        return []
    return _figures(*analysis_charts(spectra))


def _forgetting(results: Mapping[str, Any], methods: Mapping[str, str]) -> list[Block]:
    blocks = _figures(forgetting_chart(results, methods), forgetting_by_intruders_chart(results, methods))
    if results.get("forgetting_by_intruders") is not None:
        caption = "Rank correlation of forgetting with the number of intruder dimensions"
        blocks += [Table(caption, *relation_table(results)), Text(RELATION)]
    return blocks


def _data(finals: Mapping[str, list[Run]]) -> list[Block]:
    for run in (run for runs in finals.values() for run in runs):
        plan = read_json(run.path / "plan" / "plan.json")
        if plan is not None:
            text = Text("The plan of the first seed; every method of a seed has the same plan.")
            return [text, Figure(shares_chart(plan["tasks"], plan["unit"])), plan_table(plan["tasks"])]
    return []


def _origin(path: Path, finals: Mapping[str, list[Run]]) -> list[Block]:
    blocks: list[Block] = [Unfold("Study file, as resolved", (path / STUDY_FILE).read_text(encoding="utf-8"))]
    for run in (run for runs in finals.values() for run in runs):
        environment = read_json(run.path / "environment.json")
        if environment is not None:
            text = yaml.safe_dump(environment, sort_keys=False, allow_unicode=True)
            return [*blocks, Unfold("Environment of the first final run", text)]
    return blocks


def _figures(*charts: Any) -> list[Block]:
    return [Figure(chart) for chart in charts if chart.rows]
