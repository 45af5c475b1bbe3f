"""`multilora eval`."""

from __future__ import annotations

from typing import Annotated

import typer

from multilora.cli.options import AsJson, RunPath


def evaluate(
    run: RunPath,
    max_examples: Annotated[
        int | None, typer.Option("--max-examples", min=1, help="Per task; overrides the recipe.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Score a run on every task, before and after training."""
    from multilora.cli.show import percent, show_json, table
    from multilora.runs.evaluate import evaluate as evaluate_run

    evaluation = evaluate_run(run, max_examples=max_examples)
    if json:
        show_json(evaluation.as_dict())
        return
    rows = []
    for name, after in evaluation.after.items():
        before = evaluation.before[name]
        rows.append(
            [
                name,
                after.metric,
                f"{after.n:,}",
                percent(before),
                percent(after),
                f"{before.loss:.3f}",
                f"{after.loss:.3f}",
                f"{after.truncated:,}",
                f"{after.dropped:,}",
            ]
        )
        for metric in list(after.metrics)[1:]:
            values = [f"{100 * score.metrics[metric]:.1f}" for score in (before, after)]
            rows.append(["", metric, "", *values, "", "", "", ""])
    columns = ["task", "metric", "n", "before", "after", "loss before", "loss after", "truncated", "dropped"]
    table("scores in percent ± standard error; loss in nats per response token", columns, rows)
    print(f"weights of step {evaluation.weights_of_step:,}")
