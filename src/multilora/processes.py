"""A run in several processes, as torchrun and `accelerate launch` start them: who speaks, and how it ends."""

from __future__ import annotations

import atexit
import os
import sys


def is_main_process() -> bool:
    """Whether this process writes and speaks for all; true where there is only one."""
    return os.environ.get("RANK", "0") == "0"


def end_process(code: int) -> None:
    """End this process of several that speak gloo with an exit code; return in every other case.

    Gloo's threads outlive their process group, and an interpreter that winds down beside them aborts now and then: a
    finished run would be reported as failed.
    """
    if "torch" not in sys.modules:
        return
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return
    gloo = "gloo" in str(dist.get_backend_config()) and dist.get_world_size() > 1
    if code == 0:
        dist.destroy_process_group()
    if gloo:
        atexit._run_exitfuncs()  # trackers send their last lines
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
