"""Check that a run is resumed with the same recipe."""

from __future__ import annotations

from typing import Any

from multilora.errors import RunDirectoryError, changes
from multilora.recipe import Recipe
from multilora.runs.extend import MIXTURE_LENGTH, TRAINING_LENGTH

# Keys that do not change the training but only adapt it to another folder, machine or tracker.
WITHOUT_EFFECT: dict[str, Any] = {
    "output_dir": True,
    "data": {"num_proc"},
    "loss": {"interference_every"},
    "evaluation": {"batch_tokens", "max_examples", "protocol", "split"},
    "training": {"report_to", "run_name", "project", "trackio_space_id", "log_level", "log_level_replica"}
    | {"logging_steps", "logging_strategy", "logging_first_step", "save_steps", "save_total_limit"}
    | {"dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_persistent_workers", "dataloader_pin_memory"}
    | {"ddp_timeout"},
}
# A resumed run may also be longer.
MAY_DIFFER = {
    **WITHOUT_EFFECT,
    "mixture": MIXTURE_LENGTH,
    "training": WITHOUT_EFFECT["training"] | TRAINING_LENGTH,
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
