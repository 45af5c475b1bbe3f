"""Loss sums between two logs, kept on the device: a step's sums join the log's only when the step is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Tally:
    """Loss sums of the current step and, since the last log, of the steps taken; nothing is moved to the host.

    Attributes (None before the first batch):
        step_loss: [], the loss of the current step's batches so far
        step_tasks: [tasks, 2], their loss sums and trained tokens per task
        loss, tasks: the same since the last log, of `steps` steps

    Args:
        num_tasks: of the plan
    """

    def __init__(self, num_tasks: int) -> None:
        self.num_tasks = num_tasks
        self.step_loss: Tensor | None = None
        self.step_tasks: Tensor | None = None
        self.loss: Tensor | None = None
        self.tasks: Tensor | None = None
        self.steps = self.skipped = 0

    def add(self, loss: Tensor, losses: Tensor, tasks: Tensor) -> None:
        """Count a batch: its loss [], and the loss and task of every trained token, each [trained tokens]."""
        dtype = _sum_dtype(losses.device)
        if self.step_tasks is None or self.step_loss is None:
            self.step_loss = torch.zeros((), dtype=dtype, device=losses.device)
            self.step_tasks = torch.zeros(self.num_tasks, 2, dtype=dtype, device=losses.device)
        self.step_loss += loss.detach()
        values = torch.stack([losses.detach(), torch.ones_like(losses)], dim=-1).to(dtype)
        self.step_tasks.index_add_(0, tasks, values)

    def keep(self) -> None:
        """The step is taken."""
        if self.step_loss is not None and self.step_tasks is not None:
            self.loss = self.step_loss if self.loss is None else self.loss + self.step_loss
            self.tasks = self.step_tasks if self.tasks is None else self.tasks + self.step_tasks
        self.steps += 1
        self.step_loss = self.step_tasks = None

    def drop(self) -> None:
        """The step is skipped."""
        self.skipped += 1
        self.step_loss = self.step_tasks = None

    def clear(self) -> None:
        """Begin a new stretch; a step under way stays."""
        self.loss = self.tasks = None
        self.steps = self.skipped = 0

    def state_dict(self, reduce: Callable[[Tensor, str], Tensor]) -> dict[str, Any]:
        """The sums since the last log over all processes, as JSON values; every process must call it.

        Args:
            reduce: (tensor, `mean` or `sum`) -> the same over all processes
        """
        return {
            "loss": None if self.loss is None else reduce(self.loss, "mean").tolist(),
            "tasks": None if self.tasks is None else reduce(self.tasks, "sum").tolist(),
            "steps": self.steps,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device, *, main_process: bool) -> None:
        """Go on from a saved state. The sums per task go to the main process: they are summed over processes again."""
        self.steps, self.skipped = state["steps"], state["skipped"]
        if state["loss"] is not None:
            dtype = _sum_dtype(device)
            self.loss = torch.tensor(state["loss"], dtype=dtype, device=device)
            tasks = torch.tensor(state["tasks"], dtype=dtype, device=device)
            self.tasks = tasks if main_process else torch.zeros_like(tasks)


def _sum_dtype(device: torch.device) -> torch.dtype:
    """float64, so that sums do not depend on the number of steps between logs; Apple's devices have none."""
    return torch.float32 if device.type == "mps" else torch.float64
