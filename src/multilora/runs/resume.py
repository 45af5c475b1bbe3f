"""What may differ between a run and the recipe that it is resumed with."""

from __future__ import annotations

from typing import Any

from multilora.errors import RunDirectoryError, changes
from multilora.recipe import Recipe

# These change neither the steps nor what decides about them: another place, another machine, less memory.
MAY_DIFFER: dict[str, Any] = {
    "output_dir": True,
    "data": {"num_proc"},
    "evaluation": {"batch_size", "max_examples"},
}


def check_same_recipe(recipe: Recipe, saved: Recipe) -> None:
    """Refuse to go on with a run under a recipe that would have trained another one.

    Raises:
        RunDirectoryError: names every difference that is not in `MAY_DIFFER`.
    """
    differences = changes(_compared(saved), _compared(recipe))
    if differences:
        raise RunDirectoryError(
            f"{recipe.output_dir}: the run there was started with another recipe:\n  "
            + "\n  ".join(differences)
            + "\nrestore these values to resume it, or start another run in a new output_dir"
        )


def _compared(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(exclude=MAY_DIFFER)
