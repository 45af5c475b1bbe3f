"""`multilora init`."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multilora.cli.options import AsJson

if TYPE_CHECKING:
    from multilora.tasks.look import Guess


class Goal(StrEnum):
    """What the recipe is for; see `multilora.runs.draft.GOALS`."""

    try_ = "try"
    quality = "quality"
    memory = "memory"


def init(
    recipe: Annotated[str, typer.Argument(metavar="[RECIPE]", help="New YAML file.")] = "recipe.yaml",
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", metavar="FILE", help="File, pattern, folder or hub:owner/name; repeatable, a task each."
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="`nano`, a model folder or a name on the hub.")
    ] = None,
    goal: Annotated[
        Goal | None,
        typer.Option(
            "--goal",
            help="try: a few minutes; quality: three passes with evaluation; memory: the same with a 4-bit base.",
        ),
    ] = None,
    eval_data: Annotated[
        str | None, typer.Option("--eval", metavar="FILE", help="Evaluation examples, with a single --data.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", metavar="COLUMN", help="Column or template of the prompt.")
    ] = None,
    response: Annotated[
        str | None, typer.Option("--response", metavar="COLUMN", help="Column or template of the response.")
    ] = None,
    output_dir: Annotated[str, typer.Option("--output-dir", metavar="DIR", help="Folder of the run.")] = "runs/first",
    json: AsJson = False,
) -> None:
    """Look at data files, write a commented recipe and preview it; asks for what no option gives."""
    from multilora.cli import plan
    from multilora.cli.show import note, show_json
    from multilora.errors import InputError
    from multilora.runs.draft import GOALS, draft_recipe, write_draft
    from multilora.runs.preview import plan_preview

    if Path(recipe).exists():
        raise InputError(f"{recipe}: there is a file already, and it is kept; give another name")
    data = data or [_ask("data file (or pattern, folder, hub:owner/name)", "--data")]
    base = base or _ask("base model (`nano`, a folder or a name on the hub)", "--base", "nano")
    goals = "; ".join(f"{name}: {about}" for name, about in GOALS.items())
    chosen = goal.value if goal else _ask(f"goal ({goals})", "--goal", "try")
    draft = draft_recipe(
        base, data, goal=chosen, eval_data=eval_data, prompt=prompt, response=response, output_dir=output_dir
    )
    write_draft(draft, Path(recipe))
    if not json:
        for name, guess in draft.guesses.items():
            print(_found(name, guess))
        print(f"recipe: {recipe}")
    note(f"preview of {recipe}:")
    try:
        preview = plan_preview(recipe)
    except InputError as error:
        raise InputError(f"{recipe} is written, but cannot be planned yet; edit it, then run multilora plan {recipe}\n"
                         f"{error}") from error  # fmt: skip
    if json:
        tasks = {name: vars(guess) for name, guess in draft.guesses.items()}
        show_json({"recipe": recipe, "tasks": tasks, "plan": preview})
        return
    plan.show(preview)
    print(f"next: multilora train {recipe}")


def _found(name: str, guess: Guess) -> str:
    keys = ", ".join(f"{key} {_short(value)}" for key, value in guess.keys.items())
    return f"{name}: {guess.records:,} records, {guess.kind} ({keys})"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _ask(what: str, option: str, default: str | None = None) -> str:
    from multilora.errors import InputError

    if not sys.stdin.isatty():
        if default is not None:
            return default
        raise InputError(f"{option} is missing; give it, or run this in a terminal to be asked")
    answer: str = typer.prompt(what, default=default, err=True)
    return answer
