"""Loss sums for the next log, kept on the device; a step is added only if the optimizer takes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Tally:
    """Loss sums of the current step and of the steps taken since the last log; nothing is copied to the host.

    Attributes (None before the first batch):
        step_loss: [], sum over the batches of the current step so far
        step_tasks: [tasks, 2], loss sum and trained tokens per task, of the same batches
        loss, tasks: the same for the `steps` steps taken since the last log

    Args:
        num_tasks: number of tasks in the plan
    """

    def __init__(self, num_tasks: int) -> None:
        self.num_tasks = num_tasks
        self.step_loss: Tensor | None = None
        self.step_tasks: Tensor | None = None
        self.loss: Tensor | None = None
        self.tasks: Tensor | None = None
        self.steps = self.skipped = 0

    def add(self, loss: Tensor, losses: Tensor, tasks: Tensor) -> None:
        """Add a batch: its loss [], and the loss and task index of every trained token, each [trained tokens]."""
        dtype = sum_dtype(losses.device)
        if self.step_tasks is None or self.step_loss is None:
            self.step_loss = torch.zeros((), dtype=dtype, device=losses.device)
            self.step_tasks = torch.zeros(self.num_tasks, 2, dtype=dtype, device=losses.device)
        self.step_loss += loss.detach()
        values = torch.stack([losses.detach(), torch.ones_like(losses)], dim=-1).to(dtype)
        self.step_tasks.index_add_(0, tasks, values)

    def keep(self) -> None:
        """Add the current step: the optimizer takes it."""
        if self.step_loss is not None and self.step_tasks is not None:
            self.loss = self.step_loss if self.loss is None else self.loss + self.step_loss
            self.tasks = self.step_tasks if self.tasks is None else self.tasks + self.step_tasks
        self.steps += 1
        self.step_loss = self.step_tasks = None

    def drop(self) -> None:
        """Discard the current step: it is skipped."""
        self.skipped += 1
        self.step_loss = self.step_tasks = None

    def clear(self) -> None:
        """Reset the sums since the last log; the current step is kept."""
        self.loss = self.tasks = None
        self.steps = self.skipped = 0

    def state_dict(self, reduce: Callable[[Tensor, str], Tensor]) -> dict[str, Any]:
        """Return the sums since the last log, over all processes, as JSON values; every process must call it.

        Args:
            reduce: (tensor, `mean` or `sum`) -> the tensor reduced over all processes
        """
        return {
            "loss": None if self.loss is None else reduce(self.loss, "mean").tolist(),
            "tasks": None if self.tasks is None else reduce(self.tasks, "sum").tolist(),
            "steps": self.steps,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device, *, main_process: bool) -> None:
        """Restore a saved state. Only the main process takes the task sums, since logging sums them over processes."""
        self.steps, self.skipped = state["steps"], state["skipped"]
        if state["loss"] is not None:
            dtype = sum_dtype(device)
            self.loss = torch.tensor(state["loss"], dtype=dtype, device=device)
            tasks = torch.tensor(state["tasks"], dtype=dtype, device=device)
            self.tasks = tasks if main_process else torch.zeros_like(tasks)


def sum_dtype(device: torch.device) -> torch.dtype:
    """Use float64, so that sums do not depend on the logging interval; MPS does not support it."""
    return torch.float32 if device.type == "mps" else torch.float64
