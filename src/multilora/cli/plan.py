"""`multilora plan`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from multilora.cli.options import AsJson, Overrides, RecipePath

Measure = Annotated[bool, typer.Option("--measure/--no-measure", help="take two steps for time and memory")]


def plan(recipe: RecipePath, overrides: Overrides = None, json: AsJson = False, measure: Measure = True) -> None:
    """Show what a recipe would train on: shares, tokens, steps, parameters, cost, one example per task."""
    from multilora.cli.show import show_json
    from multilora.runs.preview import plan_preview

    preview = plan_preview(recipe, overrides or (), measure=measure)
    if json:
        show_json(preview)
    else:
        _show(preview)


def _show(shown: dict[str, Any]) -> None:
    from rich.text import Text

    from multilora.cli.show import console, table

    asked = f"asked ({shown['unit'].replace('_', ' ')})"
    columns = ["task", "available", "drawn", asked, "share", "epochs", "tokens", "trained", "median", "99 %", "longest"]
    rows = [
        [
            task["name"],
            f"{task['available']:,}",
            f"{task['examples']:,}",
            f"{100 * task['asked']:.1f} %",
            f"{100 * task['share']:.1f} %",
            f"{task['epochs']:.2f}",
            f"{task['tokens']:,}",
            f"{task['trained_tokens']:,}",
            *(f"{task['length'][key]:,}" for key in ("median", "99 %", "longest")),
        ]
        for task in shown["tasks"]
    ]
    kind = "packed rows" if shown["packed"] else "examples"
    trainable, total = shown["trainable_parameters"], shown["total_parameters"]
    title = (
        f"{shown['steps']:,} steps of {shown['rows_per_step']} {kind}, at most {shown['max_length']} tokens each, "
        f"{100 * shown['fill_rate']:.1f} % of the room filled; {trainable:,} of {total:,} parameters trained "
        f"({100 * trainable / total:.2f} %)"
    )
    table(title, columns, rows)
    out = console()
    for line in _changed(shown["tasks"]):
        out.print(line, highlight=False)
    cost = shown["cost"]
    if cost is not None:
        out.print(
            f"about {_duration(cost['seconds'])} a step and {_duration(cost['seconds'] * shown['steps'])} in all on "
            f"{cost['device']} (two steps taken; the optimizer's own time left out), "
            f"{cost['peak_bytes'] / 2**30:.1f} GiB at the peak",
            highlight=False,
        )
    for name, stretches in shown["examples"].items():
        out.print(Text(f"\n{name}: first example, ⟦trained part⟧", style="bold"))
        styled = [
            ("⟦" + part["text"] + "⟧", "bold green") if part["trained"] else (part["text"], "dim") for part in stretches
        ]
        out.print(Text.assemble(*styled))


def _changed(tasks: list[dict[str, Any]]) -> list[str]:
    """One line per task that was changed on its way in."""
    lines = []
    for task in tasks:
        parts = [
            f"{count:,} {what}"
            for count, what in (
                (task["truncated"], "prompts lost their start"),
                (task["cut"], "responses lost their end"),
                (task["dropped"], "left out, too long"),
                *((count, f"left out, {reason}") for reason, count in task["dropped_in_source"].items()),
            )
            if count
        ]
        if parts:
            lines.append(f"{task['name']}: {'; '.join(parts)}")
    return lines


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
