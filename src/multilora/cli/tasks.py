"""`multilora tasks`."""

from __future__ import annotations

from multilora.cli.options import AsJson


def tasks(json: AsJson = False) -> None:
    """List the built-in tasks."""
    from multilora.cli.show import show_json, table
    from multilora.recipe.built_in_tasks import BUILT_IN

    if json:
        show_json({name: task.about for name, task in BUILT_IN.items()})
        return
    table(
        "any other name is for your own data: set path, and prompt and response, or messages, or question, choices and "
        "answer",
        ["task", "description"],
        [[name, task.about] for name, task in BUILT_IN.items()],
        text=True,
    )
