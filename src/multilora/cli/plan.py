"""`multilora plan`."""

from __future__ import annotations

from multilora.cli.options import AsJson, Overrides, RecipePath


def plan(recipe: RecipePath, overrides: Overrides = None, json: AsJson = False) -> None:
    """Show what a recipe would train on: shares, tokens, steps, parameters, one example per task."""
    from rich.text import Text

    from multilora.cli.show import console, show_json, table
    from multilora.modeling import parameter_counts
    from multilora.recipe import Recipe
    from multilora.training.run import prepare

    prepared = prepare(Recipe.load(recipe, overrides or ()))
    made = prepared.plan
    trainable, total = parameter_counts(prepared.model)
    if json:
        parameters = {"trainable_parameters": trainable, "total_parameters": total}
        examples = {
            name: dict(zip(("prefix", "trained"), made.rendered(name), strict=True)) for name in made.task_names
        }
        show_json({**made.as_dict(), **parameters, "examples": examples})
        return
    columns = ["task", "available", "trained on", "share", "epochs", "tokens", "trained tokens", "truncated", "dropped"]
    rows = [
        [
            entry.name,
            f"{entry.available:,}",
            f"{entry.examples:,}",
            f"{100 * entry.share:.1f} %",
            f"{entry.epochs:.2f}",
            f"{entry.tokens:,}",
            f"{entry.trained_tokens:,}",
            f"{entry.truncated:,}",
            f"{entry.dropped:,}",
        ]
        for entry in made.summary()
    ]
    title = (
        f"{made.steps:,} steps of {made.examples_per_step} examples, at most {made.max_length} tokens each; "
        f"{trainable:,} of {total:,} parameters trained ({100 * trainable / total:.2f} %)"
    )
    table(title, columns, rows)
    out = console()
    for name in made.task_names:
        prefix, response = made.rendered(name)
        out.print(Text(f"\n{name}: first example, ⟦trained part⟧", style="bold"))
        out.print(Text.assemble((prefix, "dim"), ("⟦" + response + "⟧", "bold green")))
