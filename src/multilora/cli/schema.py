"""`multilora schema`."""

from __future__ import annotations


def schema() -> None:
    """Print the JSON Schema of a recipe, with which editors complete and check it."""
    from multilora.cli.show import show_json
    from multilora.recipe.json_schema import recipe_json_schema

    show_json(recipe_json_schema())
