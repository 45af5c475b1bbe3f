"""`multilora eval`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multilora.cli.imports import heavy_imports
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
    "fewer_shots": "prompts have fewer shots, because all of them do not fit",
}
# Kinds of parts with more members, such as MMLU's 57 subjects, are only in the JSON.
SHOWN_PARTS = 8
TITLE = "scores in percent with 95 % intervals; loss in nats per response token"


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
    shots: Annotated[
        int | None, typer.Option("--shots", min=0, help="Examples before each question; overrides the recipe.")
    ] = None,
    harness: Annotated[
        str | None,
        typer.Option("--harness", metavar="TASKS", help="Score these tasks of lm-eval instead, separated by commas."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="With --harness: only the first documents of each task.")
    ] = None,
    include_path: Annotated[
        str | None, typer.Option("--include-path", metavar="FOLDER", help="With --harness: more task definitions.")
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
    _check_options(
        {"--max-examples": max_examples, "--samples": samples, "--diff": diff or None} if harness is not None else {},
        "with --harness",
    )
    _check_options({"--limit": limit, "--include-path": include_path} if harness is None else {}, "without --harness")
    if harness is not None:
        from multilora.cli.harness import show_harness

        show_harness(models, harness, tasks, shots=shots, limit=limit, include_path=include_path, json=json)
        return
    if diff:
        _show_difference(models, json)
        return
    if len(models) == 1 and tasks is None and samples is None and _is_run(Path(models[0])):
        _show_run(models[0], max_examples, shots, json)
        return
    from multilora.cli.show import show_json

    with heavy_imports():
        from multilora.runs.evaluate import evaluate_models

    scores = evaluate_models(models, tasks, max_examples=max_examples, shots=shots, samples=samples)
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


def _check_options(options: Mapping[str, Any], when: str) -> None:
    """Refuse options that would have no effect."""
    from multilora.errors import InputError

    given = [name for name, value in options.items() if value is not None]
    if given:
        raise InputError(f"{', '.join(given)} {'has' if len(given) == 1 else 'have'} no effect {when}; leave it out")


def _show_run(path: str, max_examples: int | None, shots: int | None, json: bool) -> None:
    from multilora.cli.show import show_json

    with heavy_imports():
        from multilora.runs.evaluate import evaluate as evaluate_run

    evaluation = evaluate_run(path, max_examples=max_examples, shots=shots)
    if not is_main_process():
        return
    if json:
        show_json(evaluation.as_dict())
        return
    rows = []
    for name, after in evaluation.after.items():
        scores = [evaluation.before[name], after]
        losses = [f"{score.loss:.3f}" for score in scores]
        rows.append([name, after.metric, f"{after.n:,}", *_percents(scores), *losses, after.protocol])
        rows += [[*row, "", "", ""] for row in _more_rows(scores)]
    _table(["before", "after", "loss before", "loss after"], rows, list(evaluation.after.values()))
    _show_counts({"": evaluation.after})
    print(f"weights: of step {evaluation.weights_of_step:,}")
    print(f"next: multilora samples {path} --wrong")


def _show_models(scores: Mapping[str, Mapping[str, TaskScore]]) -> None:
    rows = []
    firsts = next(iter(scores.values()))
    for name, first in firsts.items():
        found = [of_model[name] for of_model in scores.values()]
        rows.append([name, first.metric, f"{first.n:,}", *_percents(found), first.protocol])
        rows.append(["", "loss", "", *(f"{score.loss:.3f}" for score in found), ""])
        rows += [[*row, ""] for row in _more_rows(found)]
    _table(list(scores), rows, list(firsts.values()))
    _show_counts(scores)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], scores: Sequence[TaskScore]) -> None:
    """Print a table whose last column is the protocol; if that is the same for all, it is a line below instead."""
    from multilora.cli.show import table

    protocols = {score.protocol for score in scores}
    if len(protocols) > 1:
        table(TITLE, ["task", "metric", "n", *columns, "protocol"], rows, keys=2)
    else:
        table(TITLE, ["task", "metric", "n", *columns], [row[:-1] for row in rows], keys=2)
        print(f"protocol: {protocols.pop()}")
    if any(score.harness for score in scores):
        print("lm-eval scores the first documents of a task; the loss is that of multilora's prompts, without answers")


def _percents(scores: Sequence[TaskScore]) -> list[str]:
    from multilora.cli.show import percent

    return [percent(score) for score in scores]


def _more_rows(scores: Sequence[TaskScore]) -> Iterator[list[str]]:
    """The rows of the other metrics and of the parts of a task."""
    first = scores[0]
    for metric in list(first.metrics)[1:]:
        yield ["", metric, "", *(f"{100 * score.metrics[metric]:.1f}" for score in scores)]
    for parts in first.parts.values():
        if len(parts) <= SHOWN_PARTS:
            for name, part in parts.items():
                yield ["", name, f"{part['n']:,}", *(f"{100 * _part(score, name):.1f}" for score in scores)]


def _part(score: TaskScore, name: str) -> float:
    return next(float(parts[name]["value"]) for parts in score.parts.values() if name in parts)


def _show_counts(scores: Mapping[str, Mapping[str, TaskScore]]) -> None:
    """Print every count that is not zero."""
    for label, found in scores.items():
        for name, score in found.items():
            asked = (score.loss_n or score.n) + score.dropped
            for attribute, meaning in COUNTS.items():
                count = getattr(score, attribute)
                if count:
                    print(f"{label + ', ' if label else ''}{name}: {count:,} of {asked:,} {meaning}")


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
