"""`multilora schema`."""

from __future__ import annotations


def schema() -> None:
    """Print the JSON Schema of recipes, for completion and validation in editors."""
    from multilora.cli.show import show_json
    from multilora.recipe.json_schema import recipe_json_schema

    show_json(recipe_json_schema())
