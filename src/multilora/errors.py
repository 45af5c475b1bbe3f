"""What can go wrong, as a tree.

    MultiLoraError
    ├── InputError (also a ValueError)   the caller can mend it; the command line exits with 2
    │   ├── RecipeError                  a recipe, with every problem found in it
    │   ├── DataError                    a data file, an example, a template
    │   │   └── RecordError              one record of a source; `on_error: drop` leaves it out and counts it
    │   ├── AdapterError                 an adapter's options, target modules or checkpoint
    │   └── RunDirectoryError            a run directory that is taken, missing or incomplete
    └── RunError (also a RuntimeError)   it failed while running; the command line exits with 1

Every message says the value met, what was expected and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


class MultiLoraError(Exception):
    """Base of every error this package raises on purpose."""


class InputError(MultiLoraError, ValueError):
    """Something the caller passed is wrong."""


class RecipeError(InputError):
    """A recipe with problems; `problems` holds one line for each of them."""

    def __init__(self, problems: Sequence[str], source: str = "recipe") -> None:
        self.problems = list(problems)
        self.source = source
        count = f"{len(self.problems)} problem{'s' if len(self.problems) > 1 else ''}"
        super().__init__(f"{source}: {count}\n" + "\n".join(f"  - {problem}" for problem in self.problems))


class DataError(InputError):
    """A data file or an example cannot be used."""


class RecordError(DataError):
    """One record cannot become an example; `reason` is the short label under which such records are counted."""

    # A default, so that the error can be sent from one process to another.
    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class AdapterError(InputError):
    """An adapter's options do not fit the model, or its checkpoint is not whole."""


class RunDirectoryError(InputError):
    """A run directory is already taken, missing, or lacks a part that is needed."""


class RunError(MultiLoraError, RuntimeError):
    """Training, evaluation or analysis failed after its input was accepted."""


class _Unset:
    def __repr__(self) -> str:
        return "not set"


_UNSET = _Unset()


def changes(before: Any, after: Any, prefix: str = "") -> list[str]:
    """One line per place where two nested values differ: `training.max_steps: was 100, is 200`."""
    if isinstance(before, list) and isinstance(after, list):
        before, after = (dict(enumerate(value)) for value in (before, after))
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*before, *(key for key in after if key not in before)]
        return [
            line for key in keys for line in changes(before.get(key, _UNSET), after.get(key, _UNSET), f"{prefix}{key}.")
        ]
    return [] if before == after else [f"{prefix.rstrip('.')}: was {before!r}, is {after!r}"]


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint naming the closest of `known`: `" (did you mean 'x'?)"`, or `""` when nothing is near."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {matches[0]!r}?)" if matches else ""
