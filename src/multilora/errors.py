"""The exceptions of this package.

    MultiLoraError
    ├── InputError (also a ValueError)   invalid input, which the caller can fix; the command line exits with 2
    │   ├── RecipeError                  a recipe, with all of its problems
    │   ├── DataError                    a data file, an example or a template
    │   │   └── RecordError              one record of a source; `on_error: drop` drops and counts it
    │   ├── AdapterError                 an adapter's options, target modules or checkpoint
    │   └── RunDirectoryError            a run directory that is already used, missing or incomplete
    └── RunError (also a RuntimeError)   a failure while running; the command line exits with 1
        └── StoppedError                 a signal stopped the training; it can be resumed

Every message contains the value, what was expected and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


class MultiLoraError(Exception):
    """Base class of the errors that this package raises."""


class InputError(MultiLoraError, ValueError):
    """Something the caller passed is wrong."""


class RecipeError(InputError):
    """A recipe is invalid; `problems` has one line per problem."""

    def __init__(self, problems: Sequence[str], source: str = "recipe") -> None:
        self.problems = list(problems)
        self.source = source
        count = f"{len(self.problems)} problem{'s' if len(self.problems) > 1 else ''}"
        super().__init__(f"{source}: {count}\n" + "\n".join(f"  - {problem}" for problem in self.problems))


class DataError(InputError):
    """A data file or an example cannot be used."""


class RecordError(DataError):
    """A record cannot be turned into an example; `reason` is a short name under which such records are counted."""

    # `reason` has a default so that the error can be unpickled in another process.
    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class AdapterError(InputError):
    """An adapter's options do not fit the model, or its checkpoint is incomplete."""


class RunDirectoryError(InputError):
    """A run directory is already used, missing or incomplete."""


class RunError(MultiLoraError, RuntimeError):
    """Training, evaluation or analysis failed after its input was accepted."""


class StoppedError(RunError):
    """A signal stopped the training before its last step."""


class _Unset:
    def __repr__(self) -> str:
        return "not set"


_UNSET = _Unset()


def changes(before: Any, after: Any, prefix: str = "") -> list[str]:
    """One line per difference between two nested values: `training.max_steps: was 100, is 200`."""
    if isinstance(before, list) and isinstance(after, list):
        before, after = (dict(enumerate(value)) for value in (before, after))
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*before, *(key for key in after if key not in before)]
        return [
            line for key in keys for line in changes(before.get(key, _UNSET), after.get(key, _UNSET), f"{prefix}{key}.")
        ]
    return [] if before == after else [f"{prefix.rstrip('.')}: was {before!r}, is {after!r}"]


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint with the closest match in `known`, `" (did you mean 'x'?)"`, or `""` if nothing is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {matches[0]!r}?)" if matches else ""
