"""Check that lm-eval is installed, before anything of it is imported, and report what its tasks lack."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

from multilora.errors import DataError, InputError

OLDEST = (0, 4, 12)
INSTALL = "pip install 'multilora[lm-eval]'"


def require_lm_eval() -> None:
    """Check that lm-eval can be used.

    Raises:
        InputError: it is missing or too old.
    """
    oldest = ".".join(map(str, OLDEST))
    try:
        installed = version("lm-eval")
    except PackageNotFoundError:
        raise InputError(f"lm-eval is not installed, expected {oldest} or later; {INSTALL}") from None
    numbers = tuple(int(part) for part in installed.split(".")[:3] if part.isdigit())
    if numbers < OLDEST:
        raise InputError(f"lm-eval is {installed}, expected {oldest} or later; {INSTALL}")


@contextmanager
def own_task_errors() -> Iterator[None]:
    """Raise an InputError for what callers can fix about a task of lm-eval.

    That is: its data cannot be reached, it has too few few-shot examples, it was named twice, or it imports a module
    that is not there.
    """
    try:
        yield
    except ConnectionError as error:
        raise DataError(
            f"lm-eval cannot load the data of a task ({error}); check the network, or give local data: a path in the "
            "recipe for a built-in task, or your own definition in include_path"
        ) from error
    except (ValueError, AssertionError) as error:
        # From random.sample, and from the sampler of a task with fixed examples.
        if "larger than population" in str(error) or "fewshot samples requested exceeds" in str(error):
            raise InputError(
                "a task of lm-eval has fewer few-shot examples than are drawn for each question; lower `shots`"
            ) from error
        if str(error).startswith("Duplicate task"):
            raise InputError(f"lm-eval: {error}; name either the group or its tasks") from error
        raise
    except ModuleNotFoundError as error:
        raise InputError(
            f"a task of lm-eval {version('lm-eval')} imports {error.name}, which is not installed or not part of the "
            "installed version; install one that has it, or leave the task out"
        ) from error
