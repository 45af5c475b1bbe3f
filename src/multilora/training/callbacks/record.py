"""Forward the trainer's logs to a run's log and its progress bar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Recorder(TrainerCallback):
    """Forward every log of the main process.

    Args:
        log: called with (step, values)
        advance: advances the progress bar
    """

    def __init__(self, log: Callable[[int, dict[str, float]], None], advance: Callable[..., None]) -> None:
        self.log, self.advance = log, advance

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Advance the progress bar."""
        self.advance()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Record the values, and show the loss next to the progress bar."""
        if not state.is_world_process_zero or not logs:
            return
        if "loss" in logs:
            self.advance(0, note=f"loss {logs['loss']:.3f}")
        self.log(state.global_step, logs)
