"""`multilora schema`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Kind(StrEnum):
    """What the schema describes."""

    recipe = "recipe"
    study = "study"


def schema(kind: Annotated[Kind, typer.Argument(help="What the schema describes.")] = Kind.recipe) -> None:
    """Print the JSON Schema of recipes or of study files, for completion and validation in editors."""
    from multilora.cli.show import show_json
    from multilora.recipe.json_schema import recipe_json_schema
    from multilora.study.json_schema import study_json_schema

    show_json(recipe_json_schema() if kind is Kind.recipe else study_json_schema())
