"""Two processes on this machine that speak gloo, each in an interpreter of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD = 2


def together(work: Callable[..., None], folder: Path, *given: Any) -> None:
    """Call `work(rank, folder, *given)` in two processes of one group; it must be importable.

    Raises:
        torch.multiprocessing.ProcessRaisedException: what either of them raised.
    """
    mp.spawn(_process, (work, folder, given), nprocs=WORLD)


def _process(rank: int, work: Callable[..., None], folder: Path, given: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    os.environ["MASTER_ADDR"] = "127.0.0.1"  # accelerate asks for one; the processes meet at a file
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    work(rank, folder, *given)
    dist.barrier()
    dist.destroy_process_group()
    # Gloo's threads outlive their group, and an interpreter that winds down beside them aborts now and then.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
