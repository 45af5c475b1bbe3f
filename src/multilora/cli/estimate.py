"""`multilora estimate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from multilora.cli.options import AsJson, Overrides, RecipePath

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multilora.estimate.needs import Memory, Needs

Gpus = Annotated[int, typer.Option("--gpus", metavar="N", help="Number of GPUs, with one process on each.")]
MemorySize = Annotated[
    float | None, typer.Option("--memory", metavar="GIB", help="Memory of a GPU; shows what fits into it.")
]
Tflops = Annotated[
    float | None,
    typer.Option("--tflops", metavar="N", help="Speed of a GPU in 10^12 operations per second; estimates the time."),
]
UTILIZATION = 0.4
Utilization = Annotated[
    float, typer.Option("--utilization", metavar="SHARE", help="Share of --tflops that training reaches.")
]


def estimate(
    recipe: RecipePath,
    overrides: Overrides = None,
    gpus: Gpus = 1,
    memory: MemorySize = None,
    tflops: Tflops = None,
    utilization: Utilization = UTILIZATION,
    json: AsJson = False,
) -> None:
    """Estimate the memory and time of a training step on other machines; reads neither data nor weights."""
    from multilora.cli.show import show_json

    result = estimated(recipe, overrides or (), gpus, memory, tflops, utilization)
    if json:
        show_json(json_values(result))
    else:
        show(result, memory)


def estimated(
    recipe: str, overrides: Sequence[str], gpus: int, memory: float | None, tflops: float | None, utilization: float
) -> Needs:
    """Return the estimate for the values of the options.

    Raises:
        InputError: one of them or the recipe is invalid.
    """
    from multilora.errors import InputError
    from multilora.estimate.needs import needs
    from multilora.recipe import Recipe

    if memory is not None and memory <= 0:
        raise InputError(f"--memory is {memory:g}, expected more than 0")
    return needs(Recipe.load(recipe, overrides), processes=gpus, tflops=tflops, utilization=utilization)


def json_values(result: Needs) -> dict[str, Any]:
    """Return an estimate with the totals of its rows, as JSON values."""
    from dataclasses import asdict

    values = asdict(result)
    for row, item in zip(values["memory"], result.memory, strict=True):
        row["total"] = item.total
    return values


def show(result: Needs, memory: float | None) -> None:
    """Print an estimate."""
    from multilora.cli.show import say, table

    say(
        f"{result.frozen_parameters:,} frozen and {result.trained_parameters:,} trained parameters; a step has "
        f"{result.tokens:,} tokens: {result.processes} x {result.rows * result.accumulation} rows of "
        f"{result.row_tokens:,}"
    )
    columns = ["weights", "activations", "base", "trained", "gathered", "working", "total"]
    columns += [] if memory is None else [f"in {memory:g} GiB"]
    unit, name = (2**30, "GiB") if max(item.total for item in result.memory) >= 10 * 2**30 else (2**20, "MiB")
    rows = []
    for item in result.memory:
        cells = [f"{size / unit:,.1f}" for size in (item.base, item.trained, item.gathered, item.working, item.total)]
        fits = [] if memory is None else ["fits" if item.total <= memory * 2**30 else "too large"]
        rows.append([*_kind(item), *cells, *fits])
    table(f"memory of each GPU in {name}", columns, rows)
    for kind, index in (("kept", 0), ("recomputed", 1)):
        line = f"activations {kind}: {result.operations[index]:.2e} operations per step"
        if result.seconds is not None:
            seconds = result.seconds[index]
            line += f", {seconds:,.2f} s, {result.tokens / seconds:,.0f} tokens per second"
        say(line)


def _kind(item: Memory) -> tuple[str, str]:
    return ("sharded" if item.sharded else "on every GPU"), ("recomputed" if item.checkpointing else "kept")
