"""Importing torch, transformers and PEFT without the garbage collector, which takes a fifth of that time."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Stop the garbage collector for the imports inside; afterwards it skips what they made, as long as it lives."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # once per process, which would keep garbage forever otherwise
            gc.freeze()
        if enabled:
            gc.enable()
