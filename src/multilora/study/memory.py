"""Peak memory of a part of a process."""

from __future__ import annotations

import re
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak_memory() -> bool:
    """Start measuring; returns whether this machine can."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        _CLEAR.write_text("5", encoding="ascii")  # resets VmHWM, see proc(5)
    except OSError:
        return False
    return True


def peak_memory() -> int | None:
    """Bytes at the peak since `reset_peak_memory`: of the GPU, or else of the process; None if it is not known."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
