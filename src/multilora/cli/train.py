"""`multilora train`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from multilora.cli.imports import heavy_imports
from multilora.cli.options import AsJson, Overrides, RecipePath

if TYPE_CHECKING:
    from multilora.runs.directory import Run

Resume = Annotated[bool, typer.Option("--resume", help="Continue from the last complete checkpoint, if there is one.")]


def train(recipe: RecipePath, overrides: Overrides = None, resume: Resume = False, json: AsJson = False) -> None:
    """Train a recipe and write its run directory."""
    from multilora.cli.show import show_json, table
    from multilora.processes import is_main_process
    from multilora.recipe import Recipe

    loaded = Recipe.load(recipe, overrides or (), check_writable=True)  # before the seconds that importing torch takes
    with heavy_imports():
        from multilora.runs.train import train as train_recipe

    run = train_recipe(loaded, resume=resume)
    if not is_main_process():
        return
    from multilora.report.write import report

    file = report(run)
    facts = run.training
    lines = [line for line in run.metrics if "loss" in line]
    names = [section.name for section in run.recipe.tasks]
    first_and_last = {
        name: (losses[0], losses[-1])
        for name in names
        if (losses := [line[f"loss/{name}"] for line in lines if line.get(f"loss/{name}") is not None])
    }
    if json:
        loss = {name: {"first": first, "last": last} for name, (first, last) in first_and_last.items()}
        show_json({"run": str(run.path), **facts, "loss": loss})
        return
    rows = [[name, f"{first:.3f}", f"{last:.3f}"] for name, (first, last) in first_and_last.items()]
    title = f"{facts['steps']:,} steps in {facts['seconds']:.0f} s"
    if not rows:
        title += "; no loss was logged, since the run is shorter than training.logging_steps"
    table(title, ["task", "first logged loss", "last logged loss"], rows)
    print(f"weights: {_weights(run)}")
    print(f"run: {run.path}")
    print(f"report: {file}")
    print(f"next: multilora eval {run.path}")


def _weights(run: Run) -> str:
    """Which weights the run has kept, and where."""
    facts, section = run.training, run.recipe.evaluation
    step = f"of step {facts['weights_of_step']:,}"
    which = f"the best by {section.best_by}" if section.keep == "best" else "the last"
    return f"{step}, {which}, in {run.weights.name}/"
