"""Types of texts in a recipe: paths that a file system accepts, and names that tables and logs can show."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

MAX_NAME = 100


def _path(value: str) -> str:
    """Reject text that no file system accepts as a path."""
    if not value.strip():
        raise ValueError("expected a path, it is blank")
    if any(ord(character) < 32 for character in value):
        raise ValueError("a path cannot have control characters")
    try:
        encoded = [os.fsencode(part) for part in Path(value).expanduser().parts]
    except UnicodeEncodeError:
        raise ValueError("it is not valid Unicode") from None
    except RuntimeError as error:
        raise ValueError(f"{error}; write the path without ~") from None
    if any(len(part) > 255 for part in encoded) or len(os.fsencode(value)) > 4000:
        raise ValueError("the path is too long; expected names of at most 255 bytes")
    return value


def _task_name(value: str) -> str:
    """Reject names that tables, logs and `--set` cannot show."""
    if not value.strip() or value != value.strip():
        raise ValueError("expected a name without spaces around it")
    if not value.isprintable():
        raise ValueError("expected a name of printable characters on one line")
    if len(value) > MAX_NAME:
        raise ValueError(f"expected at most {MAX_NAME} characters")
    return value


PathText = Annotated[str, AfterValidator(_path)]
TaskName = Annotated[str, AfterValidator(_task_name)]
