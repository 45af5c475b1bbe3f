"""`multilora eval`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multilora.cli.options import AsJson
from multilora.processes import is_main_process

if TYPE_CHECKING:
    from multilora.evaluation.task_score import TaskScore

# What is worth knowing about a score besides its value -> what it counts.
COUNTS = {
    "truncated": "prompts were truncated on the left",
    "dropped": "examples were dropped, because a response does not fit",
    "near_ties": "questions were decided by less than rounding",
    "end_scored": "questions have a choice that begins another, so their end tokens were scored too",
    "unfinished": "responses reached evaluation.max_new_tokens",
}


def evaluate(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="A run; or several runs, adapters, models, hub names.")
    ],
    tasks: Annotated[
        str | None, typer.Option("--tasks", metavar="FILE", help="YAML file with `tasks:`; by default, the run's.")
    ] = None,
    max_examples: Annotated[
        int | None, typer.Option("--max-examples", min=1, help="Per task; overrides the recipe.")
    ] = None,
    samples: Annotated[
        str | None,
        typer.Option("--samples", metavar="FOLDER", help="Keep all questions and answers; a run alone keeps them."),
    ] = None,
    diff: Annotated[
        bool, typer.Option("--diff", help="Compare two evaluated runs, or files of samples, item by item.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Score a run on every task, before and after training; or score and compare several models."""
    if diff:
        _show_difference(models, json)
        return
    if len(models) == 1 and tasks is None and samples is None and _is_run(Path(models[0])):
        _show_run(models[0], max_examples, json)
        return
    from multilora.cli.show import show_json
    from multilora.runs.evaluate import evaluate_models

    scores = evaluate_models(models, tasks, max_examples=max_examples, samples=samples)
    if not is_main_process():
        return
    if json:
        show_json({label: {name: asdict(score) for name, score in found.items()} for label, found in scores.items()})
        return
    _show_models(scores)


def _is_run(path: Path) -> bool:
    """Return whether a path is a run; what does not exist is reported as a missing run."""
    from multilora.runs.directory import RECIPE_FILE

    return not path.exists() or (path / RECIPE_FILE).exists()


def _show_run(path: str, max_examples: int | None, json: bool) -> None:
    from multilora.cli.show import show_json, table
    from multilora.runs.evaluate import evaluate as evaluate_run

    evaluation = evaluate_run(path, max_examples=max_examples)
    if not is_main_process():
        return
    if json:
        show_json(evaluation.as_dict())
        return
    rows = []
    for name, after in evaluation.after.items():
        before = evaluation.before[name]
        rows.append([name, after.metric, f"{after.n:,}", *_cells(before, after)])
        for metric in list(after.metrics)[1:]:
            values = [f"{100 * score.metrics[metric]:.1f}" for score in (before, after)]
            rows.append(["", metric, "", *values, "", ""])
    columns = ["task", "metric", "n", "before", "after", "loss before", "loss after"]
    table("scores in percent with 95 % intervals; loss in nats per response token", columns, rows)
    _show_counts({"": evaluation.after})
    print(f"weights of step {evaluation.weights_of_step:,}")


def _cells(before: TaskScore, after: TaskScore) -> list[str]:
    from multilora.cli.show import percent

    return [percent(before), percent(after), f"{before.loss:.3f}", f"{after.loss:.3f}"]


def _show_models(scores: Mapping[str, Mapping[str, TaskScore]]) -> None:
    from multilora.cli.show import percent, table

    rows = []
    for name, first in next(iter(scores.values())).items():
        rows.append([name, first.metric, f"{first.n:,}", *(percent(found[name]) for found in scores.values())])
        rows.append(["", "loss", "", *(f"{found[name].loss:.3f}" for found in scores.values())])
        for metric in list(first.metrics)[1:]:
            rows.append(["", metric, "", *(f"{100 * found[name].metrics[metric]:.1f}" for found in scores.values())])
    table(
        "scores in percent with 95 % intervals; loss in nats per response token",
        ["task", "metric", "n", *scores],
        rows,
    )
    _show_counts(scores)


def _show_counts(scores: Mapping[str, Mapping[str, TaskScore]]) -> None:
    """Print every count that is not zero."""
    for label, found in scores.items():
        for name, score in found.items():
            for attribute, meaning in COUNTS.items():
                count = getattr(score, attribute)
                if count:
                    print(f"{label + ', ' if label else ''}{name}: {count:,} of {score.n + score.dropped:,} {meaning}")


def _show_difference(models: Sequence[str], json: bool) -> None:
    from multilora.cli.show import show_json, table
    from multilora.errors import InputError
    from multilora.evaluation.samples import find_samples
    from multilora.evaluation.statistics.paired import compare_samples

    if len(models) != 2:
        raise InputError(f"--diff compares two runs or files of samples, got {len(models)}: {', '.join(models)}")
    compared = compare_samples(find_samples(models[0]), find_samples(models[1]))
    if json:
        show_json(asdict(compared))
        return
    rows: list[list[str]] = []
    for name, item in compared.tasks.items():
        low, high = 100 * item.low, 100 * item.high
        rows.append(
            [
                name if item.higher_is_better else f"{name} (lower is better)",
                f"{item.n:,}",
                f"{100 * item.difference:+.1f}",
                f"{low:+.1f} to {high:+.1f}",
                f"{item.p_value:.3g} ({item.test})",
                f"{item.flipped_up:,}",
                f"{item.flipped_down:,}",
            ]
        )
    columns = ["task", "n", "difference", "95 % interval", "p", "better", "worse"]
    table(f"{models[1]} minus {models[0]}, in percent, on the items of both", columns, rows)
    for notes in (_missing(models[0], compared.only_first), _missing(models[1], compared.only_second)):
        print(notes, end="")
    if compared.unscored:
        print(f"not compared, since their metric has no value per item: {', '.join(compared.unscored)}")
    print(f"the items that changed: multilora samples {models[0]} --flipped {models[1]}")


def _missing(model: str, indices: Mapping[str, Sequence[Any]]) -> str:
    return "".join(f"{name}: {len(items):,} items are only in {model}\n" for name, items in indices.items() if items)
