"""The report of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from multilora.analysis.analyze import ANALYSIS_FOLDER, SPECTRUM_FILE
from multilora.analysis.figures import analysis_charts
from multilora.charts.run_charts import before_after_chart, losses_chart
from multilora.errors import DataError, RunDirectoryError
from multilora.report.page import Block, Facts, Figure, Heading, Page, Section, Table, Text, Unfold
from multilora.report.samples import examples, read_pairs, shown_pairs
from multilora.report.score_charts import before_after_table, spectrum_table
from multilora.report.task_charts import interference_chart
from multilora.report.texts import number, percent, seconds
from multilora.report.training_charts import evaluations_chart, learning_rate_chart, shares_chart
from multilora.runs.directory import Run

TokenLosses = Mapping[tuple[str, int], Mapping[str, list[tuple[str, float]]]]


def run_page(run: Run, token_losses: TokenLosses | None = None) -> Page:
    """Collect what the files of a run hold. What is missing is named, with the command that makes it.

    Args:
        run: a finished run
        token_losses: of the shown examples, see `multilora.report.token_losses`

    Raises:
        RunDirectoryError: a file is damaged.
    """
    path = run.path
    sections = [
        Section("What was run", _facts(run)),
        Section("Results", _results(run)),
        Section("Training", _training(run)),
        Section("Data", _data(path)),
        Section("Weight update", _update(path)),
        Section("Examples", _examples(path, token_losses or {})),
        Section("Recipe and environment", _origin(path)),
    ]
    options = run.recipe.adapter.options
    branches = f", {options['num_branches']} branches" if "num_branches" in options else ""
    rank = f", rank {options['r']}" if "r" in options else ""
    method = f"{run.recipe.adapter.method}{branches}{rank}"
    count = len(run.recipe.tasks)
    subtitle = f"{method}, on {run.recipe.model.name_or_path}; {count} task{'s' if count > 1 else ''}"
    return Page(f"Run {path.resolve().name}", subtitle, sections)


def _facts(run: Run) -> list[Block]:
    facts, environment = run.training, read_json(run.path / "environment.json") or {}
    trainable, total = facts["trainable_parameters"], facts["total_parameters"]
    items = [
        ("method", run.recipe.adapter.method),
        ("base", run.recipe.model.name_or_path),
        ("steps", f"{facts['steps']:,}"),
        ("weights of step", f"{facts['weights_of_step']:,}"),
        ("trained parameters", f"{trainable:,} ({100 * trainable / total:.2f} % of {total:,})"),
        ("tokens", f"{facts['tokens']:,}" if "tokens" in facts else "not recorded"),
        ("training time", seconds(facts["seconds"])),
        ("device", str(environment.get("device", "not recorded"))),
    ]
    blocks: list[Block] = [Facts(items)]
    if facts.get("resumed_from_step"):
        blocks.append(Text(f"Resumed from step {facts['resumed_from_step']:,}; the time is that of the last part."))
    return blocks


def _results(run: Run) -> list[Block]:
    evaluation = read_json(run.path / "eval.json")
    if evaluation is None:
        return [_missing("It was not evaluated yet", f"multilora eval {run.path}")]
    before, after = evaluation["before"], evaluation["after"]
    blocks: list[Block] = [before_after_table(before, after)]
    if any(score["value"] is not None for score in after.values()):
        blocks.append(Figure(before_after_chart(before, after, run.recipe.adapter.method)))
    return blocks


def _training(run: Run) -> list[Block]:
    tasks = [section.name for section in run.recipe.tasks]
    blocks: list[Block] = []
    for chart in (losses_chart(run.metrics, tasks), learning_rate_chart(run.metrics)):
        if chart.rows:
            blocks.append(Figure(chart))
    interference = interference_chart(run.metrics, tasks)
    if interference.rows:
        blocks.append(Figure(interference))
    evaluations = read_lines(run.path / "evaluations.jsonl")
    if evaluations:
        blocks.insert(1, Figure(evaluations_chart(evaluations)))
    return blocks


def _data(path: Path) -> list[Block]:
    plan = read_json(path / "plan" / "plan.json")
    if plan is None:
        return []
    filled = f"{plan['steps']:,} steps of {plan['rows_per_step']:,} rows of at most {plan['max_length']:,} tokens, "
    filled += (
        f"{'packed' if plan['packed'] else 'padded'}; {percent(plan['fill_rate'])} % of the token slots are in use."
    )
    return [Text(filled), Figure(shares_chart(plan["tasks"], plan["unit"])), plan_table(plan["tasks"])]


def plan_table(tasks: list[dict[str, Any]]) -> Table:
    """What a plan takes from each task."""
    rows = [
        [
            task["name"],
            f"{task['available']:,}",
            f"{task['examples']:,}",
            percent(task["asked"]),
            percent(task["share"]),
            number(task["epochs"], 2),
            f"{task['tokens']:,}",
            f"{task['trained_tokens']:,}",
            f"{task['truncated']:,}",
            f"{task['dropped'] + sum(task['dropped_in_source'].values()):,}",
        ]
        for task in tasks
    ]
    columns = ["task", "available", "examples", "asked %", "realised %", "epochs", "tokens", "trained tokens"]
    return Table(
        "Examples per task, repeats included; truncated and dropped are counted over the available examples",
        [*columns, "truncated", "dropped"],
        rows,
    )


def _update(path: Path) -> list[Block]:
    spectrum = read_json(path / ANALYSIS_FOLDER / SPECTRUM_FILE)
    if spectrum is None:
        return [_missing("Its weight update was not analysed yet", f"multilora analyze {path}")]
    if any("kind" not in matrix for matrix in spectrum["matrices"]):
        return [_missing("Its analysis is of an earlier version", f"multilora analyze {path}")]
    charts = analysis_charts({spectrum["method"]: spectrum})
    return [spectrum_table(spectrum), *(Figure(chart) for chart in charts if chart.rows)]


def _examples(path: Path, token_losses: TokenLosses) -> list[Block]:
    files = path / "samples" / "base.parquet", path / "samples" / "run.parquet"
    if not all(file.is_file() for file in files):
        return []
    blocks: list[Block] = [
        Text(
            "Up to two examples per task that the training made right, that it made wrong, and that it left as they "
            "were: the first ones, not selected by hand."
        )
    ]
    try:
        tasks = read_pairs(*files)
    except DataError as error:  # such as samples of an earlier version
        return [Text(f"No examples: {error}.")]
    for task, pairs in tasks.items():
        blocks.append(Heading(f"{task}, {len(pairs):,} examples"))
        blocks += examples(shown_pairs(pairs), token_losses)
    return blocks


def _origin(path: Path) -> list[Block]:
    blocks: list[Block] = [Unfold("Recipe, as resolved", (path / "recipe.yaml").read_text(encoding="utf-8"))]
    environment = read_json(path / "environment.json")
    if environment is not None:
        blocks.append(Unfold("Environment", yaml.safe_dump(environment, sort_keys=False, allow_unicode=True)))
    return blocks


def _missing(what: str, command: str) -> Text:
    return Text(f"{what}: {command}, then make the report again.")


def read_json(path: Path) -> Any:
    """The content of a JSON file; None if there is none.

    Raises:
        RunDirectoryError: it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"{path}: cannot be read ({error}); remove it, and make it again") from None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON Lines file; none if there is no file.

    Raises:
        RunDirectoryError: it is damaged.
    """
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"{path}: cannot be read ({error}); remove the damaged lines") from None
