"""Ending a run cleanly when it is told to stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StopOnSignal(TrainerCallback):
    """At SIGTERM or SIGINT: finish the step, write a checkpoint, stop. A second signal ends the process as usual.

    A signal may reach several processes at different steps, or only some of them; whichever sees it first stops all.

    Attributes:
        received: name of the signal, or None
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[int, Any] = {}

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start listening."""
        if threading.current_thread() is threading.main_thread():  # Python delivers signals to no other
            self._previous = {
                number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)
            }

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Ask for a checkpoint and the end, if a signal has come."""
        if args.world_size > 1:
            came = torch.tensor(float(self.received is not None), device=args.device)
            dist.all_reduce(came, dist.ReduceOp.MAX)
            if came.item() and self.received is None:
                self.received = "a signal to another process"
        if self.received and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True
        return control

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Give signals back to whoever handled them before."""
        self._restore()
