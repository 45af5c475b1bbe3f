"""`multilora plan`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from multilora.cli.estimate import UTILIZATION, MemorySize, Tflops, Utilization, estimated, json_values
from multilora.cli.estimate import show as show_estimate
from multilora.cli.imports import heavy_imports
from multilora.cli.options import AsJson, Overrides, RecipePath

Measure = Annotated[bool, typer.Option("--measure/--no-measure", help="Run two steps to measure time and memory.")]
Gpus = Annotated[
    int | None,
    typer.Option("--gpus", metavar="N", help="Also estimate a step on N GPUs, as multilora estimate does."),
]


def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    json: AsJson = False,
    measure: Measure = True,
    gpus: Gpus = None,
    memory: MemorySize = None,
    tflops: Tflops = None,
    utilization: Utilization = UTILIZATION,
) -> None:
    """Preview a recipe without training: shares, tokens, steps, parameters, cost, one example per task."""
    from multilora.cli.show import show_json
    from multilora.errors import InputError

    if gpus is None and (memory is not None or tflops is not None or utilization != UTILIZATION):
        raise InputError(
            "--memory, --tflops and --utilization describe the GPUs of an estimate; give their number with --gpus"
        )
    estimate = None if gpus is None else estimated(recipe, overrides or (), gpus, memory, tflops, utilization)
    with heavy_imports():
        from multilora.runs.preview import plan_preview

    preview = plan_preview(recipe, overrides or (), measure=measure)
    if json:
        show_json(preview if estimate is None else {**preview, "estimate": json_values(estimate)})
    else:
        show(preview)
        if estimate is not None:
            show_estimate(estimate, memory)


def show(preview: dict[str, Any]) -> None:
    """Print a preview."""
    from rich.text import Text

    from multilora.cli.show import console, say, table
    from multilora.progress import facts

    requested = f"requested ({preview['unit'].replace('_', ' ')})"
    columns = ["task", "available", "examples", requested, "share", "epochs", "tokens", "trained"]
    columns += ["median", "99\N{NO-BREAK SPACE}%", "longest"]
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
        for task in preview["tasks"]
    ]
    kind = "packed rows" if preview["packed"] else "examples"
    trainable, total = preview["trainable_parameters"], preview["total_parameters"]
    cost = preview["cost"]
    share = f"{trainable:,} of {total:,} parameters ({100 * trainable / total:.2f} %)"
    device = None if cost is None else cost["device"]
    say(
        facts(
            {
                "base": preview["base"],
                "device": device,
                "dtype": preview["dtype"],
                "method": preview["method"],
                "trainable": share,
                "output": preview["output"],
            }
        )
    )
    title = (
        f"{preview['steps']:,} steps of {preview['rows_per_step']} {kind} of at most {preview['max_length']} tokens, "
        f"{100 * preview['fill_rate']:.1f} % of token slots used"
    )
    table(title, columns, rows)
    for line in [*_truncated_and_dropped(preview["tasks"]), *_overlap(preview["overlap"])]:
        say(line)
    if cost is not None:
        say(
            f"about {_duration(cost['seconds'])} per step and {_duration(cost['seconds'] * preview['steps'])} in total "
            f"on {cost['device']} (measured on two steps, without the optimizer), "
            f"{cost['peak_bytes'] / 2**30:.1f} GiB peak memory"
        )
    out = console()
    for name, pieces in preview["examples"].items():
        out.print(Text(f"\n{name}: first example, ⟦trained part⟧", style="bold"), soft_wrap=True)
        styled = [
            ("⟦" + piece["text"] + "⟧", "bold green") if piece["trained"] else (piece["text"], "dim")
            for piece in pieces
        ]
        out.print(Text.assemble(*styled), soft_wrap=True)


def _truncated_and_dropped(tasks: list[dict[str, Any]]) -> list[str]:
    """Return one line per task with truncated or dropped examples."""
    lines = []
    for task in tasks:
        parts = [
            f"{count:,} {description}"
            for count, description in (
                (task["truncated"], "prompts truncated on the left"),
                (task["cut"], "responses truncated"),
                (task["dropped"], "dropped (too long)"),
                *((count, f"dropped ({reason})") for reason, count in task["dropped_in_source"].items()),
            )
            if count
        ]
        if parts:
            lines.append(f"{task['name']}: {'; '.join(parts)}")
    return lines


def _overlap(overlap: dict[str, dict[str, int]]) -> list[str]:
    """One line per task whose evaluation prompts are also training prompts."""
    return [
        f"{name}: {entry['exact']:,} of {entry['evaluation']:,} evaluation prompts are also training prompts "
        f"({entry['normalized']:,} if case, punctuation and white space are ignored)"
        for name, entry in overlap.items()
        if entry["normalized"]
    ]


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
