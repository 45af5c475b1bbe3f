"""A run in several processes, as torchrun and `accelerate launch` start them: who speaks, and how it ends."""

from __future__ import annotations

import os
import sys


def is_main_process() -> bool:
    """Whether this process writes and speaks for all; true where there is only one."""
    return os.environ.get("RANK", "0") == "0"


def end_process(code: int) -> None:
    """End this process of several with an exit code; return where there is only one.

    Gloo's threads outlive their process group, and an interpreter that winds down beside them aborts now and then: a
    finished run would be reported as failed.
    """
    if "torch" not in sys.modules:
        return
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        if code == 0:
            dist.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
