"""A run in several processes, as torchrun and `accelerate launch` start them: who speaks, and how it ends."""

from __future__ import annotations

import atexit
import os
import sys


def is_main_process() -> bool:
    """Whether this process writes and speaks for all; true where there is only one."""
    return os.environ.get("RANK", "0") == "0"


def end_process(code: int) -> None:
    """End this process of several with an exit code, if the interpreter should not wind down by itself; else return.

    Gloo's threads outlive their process group, and an interpreter that winds down beside them aborts now and then: a
    finished run would be reported as failed. A process that has failed must not wait for the others either.
    """
    if "torch" not in sys.modules:
        return
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return
    several, gloo = dist.get_world_size() > 1, "gloo" in str(dist.get_backend_config())
    if code == 0:
        dist.destroy_process_group()
    if several and (gloo or code != 0):
        atexit._run_exitfuncs()  # trackers send their last lines
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
