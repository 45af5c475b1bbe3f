"""The new folder of an export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from multilora.errors import RunDirectoryError
from multilora.files import atomic_folder
from multilora.runs.directory import check_free


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes `out` if the block succeeds; if the block fails, nothing is left.

    Raises:
        RunDirectoryError: `out` is taken or cannot be written; raised before the block runs.
    """
    missing: list[Path] = []
    try:
        with ExitStack() as stack:
            try:
                check_free(out)
                missing = [parent for parent in out.resolve().parents if not parent.exists()]
                folder = stack.enter_context(atomic_folder(out))
            except RunDirectoryError:
                raise
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise RunDirectoryError(
                    f"{out}: cannot be written ({reason}); set --out to a new folder in a place that can be written"
                ) from error
            yield folder
    except BaseException:
        for parent in missing:  # the innermost first
            with suppress(OSError):
                parent.rmdir()
        raise
