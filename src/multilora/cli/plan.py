"""`multilora plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from multilora.cli.options import AsJson, Overrides, RecipePath

if TYPE_CHECKING:
    from multilora.data.plan import Plan, TaskSummary
    from multilora.training.measure import StepCost

Measure = Annotated[bool, typer.Option("--measure/--no-measure", help="take two steps for time and memory")]


def plan(recipe: RecipePath, overrides: Overrides = None, json: AsJson = False, measure: Measure = True) -> None:
    """Show what a recipe would train on: shares, tokens, steps, parameters, cost, one example per task."""
    from dataclasses import asdict

    from multilora.cli.show import show_json
    from multilora.modeling import parameter_counts
    from multilora.recipe import Recipe
    from multilora.training.measure import step_cost
    from multilora.training.run import prepare

    prepared = prepare(Recipe.load(recipe, overrides or ()))
    made = prepared.plan
    counts = parameter_counts(prepared.model)
    cost = step_cost(prepared) if measure else None
    if json:
        show_json(
            {
                **made.as_dict(),
                "trainable_parameters": counts[0],
                "total_parameters": counts[1],
                "cost": None if cost is None else asdict(cost),
                "examples": {
                    name: [{"text": text, "trained": trained} for text, trained in made.rendered(name)]
                    for name in made.task_names
                },
            }
        )
        return
    _show(made, counts, cost)


def _show(made: Plan, counts: tuple[int, int], cost: StepCost | None) -> None:
    from rich.text import Text

    from multilora.cli.show import console, table

    entries = made.summary()
    asked = f"asked ({made.unit.replace('_', ' ')})"
    columns = ["task", "available", "drawn", asked, "share", "epochs", "tokens", "trained", "median", "99 %", "longest"]
    rows = [
        [
            entry.name,
            f"{entry.available:,}",
            f"{entry.examples:,}",
            f"{100 * entry.asked:.1f} %",
            f"{100 * entry.share:.1f} %",
            f"{entry.epochs:.2f}",
            f"{entry.tokens:,}",
            f"{entry.trained_tokens:,}",
            *(f"{entry.length[key]:,}" for key in ("median", "99 %", "longest")),
        ]
        for entry in entries
    ]
    kind = "packed rows" if made.packed else "examples"
    title = (
        f"{made.steps:,} steps of {made.rows_per_step} {kind}, at most {made.max_length} tokens each, "
        f"{100 * made.fill_rate:.1f} % of the room filled; {counts[0]:,} of {counts[1]:,} parameters trained "
        f"({100 * counts[0] / counts[1]:.2f} %)"
    )
    table(title, columns, rows)
    out = console()
    for line in _losses(entries):
        out.print(line, highlight=False)
    if cost is not None:
        total = cost.seconds * made.steps
        out.print(
            f"about {_duration(cost.seconds)} a step and {_duration(total)} in all on {cost.device} (two steps taken; "
            f"the optimizer's own time left out), {cost.peak_bytes / 2**30:.1f} GiB at the peak",
            highlight=False,
        )
    for name in made.task_names:
        out.print(Text(f"\n{name}: first example, ⟦trained part⟧", style="bold"))
        styled: list[Any] = [
            ("⟦" + text + "⟧", "bold green") if trained else (text, "dim") for text, trained in made.rendered(name)
        ]
        out.print(Text.assemble(*styled))


def _losses(entries: list[TaskSummary]) -> list[str]:
    """One line per task that was changed on its way in."""
    lines = []
    for entry in entries:
        parts = [
            f"{count:,} {what}"
            for count, what in (
                (entry.truncated, "prompts lost their start"),
                (entry.cut, "responses lost their end"),
                (entry.dropped, "left out, too long"),
                *((count, f"left out, {reason}") for reason, count in entry.dropped_in_source.items()),
            )
            if count
        ]
        if parts:
            lines.append(f"{entry.name}: {'; '.join(parts)}")
    return lines


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
