"""Write a run directory; the counterpart of `Run`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from multilora.data.plan import Plan
from multilora.files import append_json_line, drop_later_lines, write_json, write_text
from multilora.recipe import Recipe
from multilora.runs.directory import FACTS_FILE, METRICS_FILE, RECIPE_FILE


class RunWriter:
    """Writes a run directory, except for the weights, which the trainer writes.

    Args:
        path: the run directory
        active: whether this is the main process; in the others, every method does nothing
    """

    def __init__(self, path: Path, *, active: bool) -> None:
        self.path, self.active = path, active

    def begin(self, recipe: Recipe, environment: dict[str, Any], plan: Plan, first_step: int) -> None:
        """Write the files that are known before the first step.

        Args:
            recipe: the resolved recipe
            environment: from `multilora.runs.environment`
            plan: of the run
            first_step: the step that training continues from; later lines of the log are removed
        """
        if not self.active:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / RECIPE_FILE).is_file():  # first, since it marks the folder as a run
            write_text(self.path / RECIPE_FILE, recipe.dump_yaml())
        write_json(self.path / "environment.json", environment)
        plan.save(self.path / "plan")
        write_text(self.path / RECIPE_FILE, recipe.dump_yaml())  # of an extended run: after its plan
        drop_later_lines(self.path / METRICS_FILE, first_step)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Append a line to `metrics.jsonl`."""
        if self.active:
            append_json_line(self.path / METRICS_FILE, {"step": step, **values})

    def finish(self, facts: dict[str, Any]) -> None:
        """Write `train.json`, before the weights: a run with weights counts as finished."""
        if self.active:
            write_json(self.path / FACTS_FILE, facts)
