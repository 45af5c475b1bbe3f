"""Runs in several processes, as started by torchrun or `accelerate launch`: the main process and exiting."""

from __future__ import annotations

import atexit
import os
import sys


def is_main_process() -> bool:
    """Whether this process writes files and output for all processes; true for a single process."""
    return os.environ.get("RANK", "0") == "0"


def join_processes(*, cpu: bool = False) -> None:
    """Join the processes of a launch (torchrun, `accelerate launch`) and select their devices; nothing for one process.

    Args:
        cpu: do not use the accelerators of this machine; without any, this is the default
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return
    import torch
    from accelerate import PartialState

    # Without `cpu`, accelerate does not join processes on a machine that has no accelerator.
    PartialState(cpu=cpu or not torch.accelerator.is_available())


def end_process(code: int) -> None:
    """Exit directly with `code` if a normal shutdown of this distributed process could abort or hang; else return.

    Gloo's threads outlive their process group and sometimes abort the interpreter's shutdown, so that a finished run
    would be reported as failed. A process that has failed must not wait for the other processes either.
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
        atexit._run_exitfuncs()  # flush experiment trackers
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
