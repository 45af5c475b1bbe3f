"""Share requests out among processes.

Every process takes a stretch of the sorted requests, so that common prefixes stay together. If the model is sharded,
all processes take part in every forward pass: the number of passes is agreed on first, and a process that has fewer
fills up with passes over a single token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from multilora.evaluation.requests import Request, Scored
from multilora.loss.output_head import base_of


def is_sharded(model: Any) -> bool:
    """Return whether every forward pass needs all processes (FSDP2, ZeRO-3, tensor parallelism)."""
    return any(isinstance(module, FSDPModule) for module in model.modules()) or any(
        isinstance(parameter, DTensor) or hasattr(parameter, "ds_id") for parameter in model.parameters()
    )


class Share:
    """The requests of this process.

    Args:
        model: that answers them
        requests: of all processes, the same in each
        active: False to keep all of them

    Attributes:
        requests: of this process
        lockstep: whether all processes must run the same number of forward passes
    """

    def __init__(self, model: Any, requests: Sequence[Request], *, active: bool) -> None:
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.active = active and several
        self.lockstep = several and is_sharded(model)
        self.device = base_of(model).device
        self.total = len(requests)
        self.mine = list(range(self.total))
        if self.active:
            # Sorted as in the tree of prefixes, and cut where the tokens are.
            order = sorted(self.mine, key=lambda i: requests[i].context + requests[i].continuation)
            ends = np.cumsum([len(requests[i].context) + len(requests[i].continuation) for i in order])
            rank, world = dist.get_rank(), dist.get_world_size()
            limits = [int(ends[-1]) * part / world for part in (rank, rank + 1)] if len(ends) else [0, 0]
            self.mine = [i for i, end in zip(order, ends, strict=True) if limits[0] < end <= limits[1]]
        self.requests = [requests[i] for i in self.mine]
        self._idle = 0

    def announce(self, forwards: int) -> None:
        """Agree on the number of forward passes."""
        if self.lockstep:
            most = torch.tensor(forwards, device=self.device)
            dist.all_reduce(most, dist.ReduceOp.MAX)
            self._idle = int(most) - forwards

    def finish(self, idle_forward: Callable[[], None]) -> None:
        """Run the forward passes that this process has fewer than the others."""
        for _ in range(self._idle):
            idle_forward()

    def gather(self, results: list[Scored]) -> list[Scored]:
        """Return the results of all processes, in the order of the requests."""
        if not self.active:
            return results
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, (self.mine, results))
        everything: list[Any] = [None] * self.total
        for numbers, values in parts:
            for number, value in zip(numbers, values, strict=True):
                everything[number] = value
        return everything
