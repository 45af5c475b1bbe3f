"""Check that a run is resumed with the same recipe."""

from __future__ import annotations

from typing import Any

from multilora.errors import RunDirectoryError, changes
from multilora.recipe import Recipe

# Keys that do not change the training: they only adapt it to another folder or machine.
MAY_DIFFER: dict[str, Any] = {
    "output_dir": True,
    "data": {"num_proc"},
    "evaluation": {"batch_size", "max_examples"},
}


def check_same_recipe(recipe: Recipe, saved: Recipe) -> None:
    """Check that a recipe would train the same run as the saved recipe.

    Raises:
        RunDirectoryError: the recipes differ; lists every difference that is not in `MAY_DIFFER`.
    """
    differences = changes(_compared(saved), _compared(recipe))
    if differences:
        raise RunDirectoryError(
            f"{recipe.output_dir}: this run was started with a different recipe:\n  "
            + "\n  ".join(differences)
            + "\nrestore these values to resume it, or start a new run in another output_dir"
        )


def _compared(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(exclude=MAY_DIFFER)
