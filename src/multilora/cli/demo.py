"""`multilora demo`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from multilora.cli.options import AsJson

if TYPE_CHECKING:
    from multilora.study.compare import Comparison


def demo(
    out: Annotated[
        str | None, typer.Option("--out", metavar="DIR", help="New folder for the results; by default runs/demo.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Compare LoRA, MultiLoRA and full fine-tuning on the embedded base; takes a few minutes on two CPU cores."""
    from pathlib import Path

    from multilora.cli.show import show_json
    from multilora.demo import next_free, run_demo

    comparison = run_demo(Path(out) if out else next_free(Path("runs/demo")))
    if json:
        show_json(comparison.as_dict())
    else:
        _show(comparison)


def _show(comparison: Comparison) -> None:
    from multilora.cli.show import percent, table
    from multilora.study.means import mean_loss, mean_value

    columns = ["method", "trainable", "seconds", *comparison.base, "mean", "mean loss", "effective rank"]
    rows = [
        [
            "base",
            "–",
            "–",
            *map(percent, comparison.base.values()),
            f"{100 * mean_value(comparison.base):.1f}",
            f"{mean_loss(comparison.base):.3f}",
            "–",
        ]
    ]
    for result in comparison.results:
        rows.append(
            [
                result.label,
                f"{result.trainable_parameters:,}",
                f"{result.train_seconds:.1f}",
                *map(percent, result.scores.values()),
                f"{100 * result.mean_value:.1f}",
                f"{result.mean_loss:.3f}",
                f"{result.spectrum.mean()['effective_rank']:.1f}",
            ]
        )
    plan = comparison.plan
    table(f"{plan.steps} steps of {plan.rows_per_step} examples, the same for every method", columns, rows)
    print(f"report: {comparison.path / 'report.html'}")
