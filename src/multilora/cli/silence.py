"""What reaches the terminal besides results: notes of multilora, and only errors of other libraries."""

from __future__ import annotations

import logging
import os
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from multilora.processes import is_main_process
from multilora.progress import QUIET

# Top-level names of the loggers that only report errors.
LIBRARIES = {
    "absl",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "filelock",
    "fsspec",
    "huggingface_hub",
    "lm_eval",
    "lm-eval",
    "peft",
    "torch",
    "torchao",
    "transformers",
    "triton",
    "urllib3",
}


class LibraryLogger(logging.Logger):
    """A logger that reports only errors if it belongs to another library."""

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802  (overrides)
        """See `logging.Logger`."""
        if level < logging.ERROR and self.name.partition(".")[0] in LIBRARIES:
            return False
        return super().isEnabledFor(level)


class NotesHandler(logging.Handler):
    """Prints messages to stderr; of several processes, only the main one prints notes."""

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        if record.levelno > logging.INFO or is_main_process():
            print(self.format(record), file=sys.stderr, flush=True)


@contextmanager
def notes(*, quiet: bool) -> Iterator[None]:
    """Print what multilora logs; with `quiet`, its errors only, and hide progress bars here and in child processes."""
    logger, handler = logging.getLogger("multilora"), NotesHandler()
    level, environment = logger.level, os.environ.get(QUIET)
    logger.addHandler(handler)
    logger.setLevel(logging.ERROR if quiet else logging.INFO)
    if quiet:
        os.environ[QUIET] = "1"
    try:
        yield
    finally:
        if quiet and environment is None:
            del os.environ[QUIET]
        logger.setLevel(level)
        logger.removeHandler(handler)


@contextmanager
def silent_libraries() -> Iterator[None]:
    """Hide warnings of other libraries that are imported in the block.

    Warnings about the user's own files are shown, and so are those of `multilora`.
    """
    logger_class, show = logging.getLoggerClass(), warnings.showwarning
    installed = tuple(str(Path(sysconfig.get_path(name)).resolve()) for name in ("purelib", "platlib", "stdlib"))
    package = str(Path(__file__).resolve().parents[1])

    def show_others(message: Any, category: Any, filename: str, *arguments: Any, **options: Any) -> None:
        file = str(Path(filename).resolve())
        if file.startswith(package) or not file.startswith(installed):
            show(message, category, filename, *arguments, **options)

    logging.setLoggerClass(LibraryLogger)
    warnings.showwarning = show_others
    try:
        yield
    finally:
        warnings.showwarning = show
        logging.setLoggerClass(logger_class)
