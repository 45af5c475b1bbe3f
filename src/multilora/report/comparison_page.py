"""The report of a comparison: several methods on the same plan, one run each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from multilora.analysis.analyze import ANALYSIS_FOLDER, SPECTRUM_FILE
from multilora.analysis.figures import analysis_charts
from multilora.errors import RunDirectoryError
from multilora.report.page import Block, Figure, Page, Section, Table, Text, Unfold
from multilora.report.run_page import plan_table, read_json
from multilora.report.score_charts import method_scores_chart, method_scores_table
from multilora.report.texts import MISSING, number, percent, seconds
from multilora.report.training_charts import method_losses_chart, shares_chart
from multilora.runs.directory import Run

COMPARISON_FILE = "comparison.json"


def comparison_page(path: Path) -> Page:
    """Collect what the files of a comparison and of its runs hold.

    Raises:
        RunDirectoryError: a file is missing or damaged.
    """
    comparison = read_json(path / COMPARISON_FILE)
    if not isinstance(comparison, dict):
        raise RunDirectoryError(f"{path / COMPARISON_FILE}: is no comparison; make it again")
    runs = {item["label"]: Run(path / item["run"]) for item in comparison["methods"]}
    methods = {label: run.recipe.adapter.method for label, run in runs.items()}
    plan, first = comparison["plan"], next(iter(runs.values()))
    sections = [
        Section("Results", _results(comparison, methods)),
        Section("Training", _training(runs, methods)),
        Section("Weight updates", _updates(comparison, runs)),
        Section("Data", [Figure(shares_chart(plan["tasks"], plan["unit"])), plan_table(plan["tasks"])]),
        Section("Recipe and environment", _origin(first)),
    ]
    subtitle = (
        f"{plan['steps']:,} steps of {plan['rows_per_step']:,} rows; all methods are trained on the same examples in "
        "the same order, one run each"
    )
    return Page("Comparison of methods", subtitle, sections)


def _results(comparison: dict[str, Any], methods: dict[str, str]) -> list[Block]:
    scores = {item["label"]: item["scores"] for item in comparison["methods"]}
    extra = {
        "trained parameters": [MISSING, *(f"{item['trainable_parameters']:,}" for item in comparison["methods"])],
        "training time": [MISSING, *(seconds(item["train_seconds"]) for item in comparison["methods"])],
    }
    blocks: list[Block] = [method_scores_table(comparison["base"], scores, extra)]
    chart = method_scores_chart(comparison["base"], scores, methods)
    if chart.rows:
        blocks.append(Figure(chart))
    blocks.append(Text("With one run per method, these intervals do not contain the differences between seeds."))
    return blocks


def _training(runs: dict[str, Run], methods: dict[str, str]) -> list[Block]:
    tasks = [section.name for section in next(iter(runs.values())).recipe.tasks]
    return [Figure(method_losses_chart({label: [run.metrics] for label, run in runs.items()}, methods, tasks))]


def _updates(comparison: dict[str, Any], runs: dict[str, Run]) -> list[Block]:
    rows = [
        [
            item["label"],
            number(item["spectrum"]["norm"], 3),
            percent(item["spectrum"]["top1_energy"]),
            percent(item["spectrum"]["top4_energy"]),
            number(item["spectrum"]["effective_rank"], 1),
            number(item["spectrum"]["stable_rank"], 1),
            number(item["spectrum"]["participation_ratio"], 1),
        ]
        for item in comparison["methods"]
    ]
    columns = ["method", "norm", "energy in top 1", "energy in top 4", "effective rank", "stable rank"]
    table = Table(
        "Means over all adapted matrices: Frobenius norm; share of the energy in the largest singular values, in "
        "percent; ranks",
        [*columns, "participation ratio"],
        rows,
    )
    return [table, *spectra_figures(runs)]


def spectra_figures(runs: dict[str, Run]) -> list[Block]:
    """The charts of the analyses of several runs; nothing without them."""
    stored = {label: read_json(run.path / ANALYSIS_FOLDER / SPECTRUM_FILE) for label, run in runs.items()}
    spectra = {label: spectrum for label, spectrum in stored.items() if spectrum is not None}
    if not spectra or any("kind" not in matrix for s in spectra.values() for matrix in s["matrices"]):
        return []
    return [Figure(chart) for chart in analysis_charts(spectra) if chart.rows]


def _origin(run: Run) -> list[Block]:
    blocks: list[Block] = [Unfold("Recipe of the first method", run.recipe.dump_yaml())]
    environment = read_json(run.path / "environment.json")
    if environment is not None:
        blocks.append(Unfold("Environment", yaml.safe_dump(environment, sort_keys=False, allow_unicode=True)))
    return blocks
