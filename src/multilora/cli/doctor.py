"""`multilora doctor`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from multilora.cli.options import AsJson, Overrides


def doctor(
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="Check what this recipe needs.")] = None,
    overrides: Overrides = None,
    json: AsJson = False,
) -> None:
    """Show versions, devices and optional packages, and what a recipe needs; to paste into an issue."""
    from multilora.cli.show import show_json
    from multilora.runs.doctor import diagnose

    facts = diagnose(recipe, overrides or ())
    if json:
        show_json(facts)
    else:
        _show(facts)
    if facts.get("recipe", {}).get("problems"):
        raise typer.Exit(2)


def _show(facts: dict[str, Any]) -> None:
    missing = [name for name, version in facts["optional"].items() if version is None]
    memory = "" if facts["memory_gib"] is None else f", {facts['memory_gib']} GiB memory"
    _line("python", f"{facts['python']}, {facts['platform']}{memory}")
    _line("packages", _versions(facts["packages"]))
    _line("optional", _versions(facts["optional"]))
    _line("missing", ", ".join(missing))
    for device in facts["devices"]:
        _line("device", device)
    _line("cache", f"{facts['cache']['folder']}, {facts['cache']['free_gib']} GiB free")
    _line("variables", ", ".join(f"{name}={value}" for name, value in facts["variables"].items()))
    recipe = facts.get("recipe")
    if recipe is None:
        return
    for problem in recipe["problems"]:
        _line("problem", problem)
    if not recipe["problems"]:
        _line("recipe", "no problems found; `multilora plan` checks data and model too")
        _line("needs", _versions(recipe["packages"]))
        _line("install", " ".join(f"pip install '{name}'" for name in recipe["install"]))
        _line("from hub", ", ".join(recipe["from_hub"]))
        _line("output", f"{recipe['output']['folder']}, {recipe['output']['free_gib']} GiB free")


def _versions(packages: dict[str, str | None]) -> str:
    return ", ".join(f"{name} {version}" for name, version in packages.items() if version is not None)


def _line(name: str, text: str) -> None:
    """Print a line, or nothing if there is nothing to say."""
    from multilora.cli.show import say

    if text:
        say(f"{name:10} {text}", indent=11)
