"""Stop a run cleanly on a signal."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopOnSignal(TrainerCallback):
    """On SIGTERM, SIGINT or SIGHUP, finish the step, write a checkpoint and stop. A second signal has its usual effect.

    Signals may reach the processes at different steps, or only some of them; the first one stops all processes.

    Attributes:
        received: name of the signal, or None
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[int, Any] = {}

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        self._restore()
        logger.warning(
            "%s: finishing this step and writing a checkpoint; a second signal stops immediately and loses the steps "
            "since the last checkpoint",
            self.received,
        )

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Install the signal handlers."""
        if threading.current_thread() is threading.main_thread():  # only it may set signal handlers
            self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Request a checkpoint and the end of training if a process has received a signal."""
        if args.world_size > 1:
            any_received = torch.tensor(float(self.received is not None), device=args.device)
            dist.all_reduce(any_received, dist.ReduceOp.MAX)
            if any_received.item() and self.received is None:
                self.received = "a signal to another process"
        if self.received and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True
        return control

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Restore the previous signal handlers."""
        self._restore()
