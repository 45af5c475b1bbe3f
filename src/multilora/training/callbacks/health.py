"""Is the run healthy? Non-finite steps, scales that stay at zero, the norms of the scales, the speed."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from multilora.data.plan import Plan
from multilora.errors import InputError, RunError
from multilora.loss.tally import Tally
from multilora.peft_method.layer import MultiLoraLayer
from multilora.training.sharding import whole

logger = logging.getLogger(__name__)

OnNonfinite = Literal["stop", "skip"]
ZERO_SCALE_STEPS = 50
_NAMED = 8


class Health(TrainerCallback):
    """Looks at every optimizer step once, after its gradients are summed over processes and before it is taken.

    A loss or gradient norm that is not finite stops the run, or drops the step: its gradients are thrown away, the
    learning-rate schedule and the plan go on. Where float16's loss is scaled only the loss is looked at: there a
    gradient overflows now and then, and the scaler, or DeepSpeed, skips the step itself.

    Args:
        plan: names the rows of a step
        tally: what the trainer counts; a step is kept or dropped here
        accelerator: the trainer's, after its construction
        on_nonfinite: `stop` or `skip`

    Raises:
        InputError: another `on_nonfinite`.
        RunError: while training, with `stop`: what was not finite, and the step's tasks and examples.
    """

    def __init__(self, plan: Plan, tally: Tally, accelerator: Any, on_nonfinite: OnNonfinite = "stop") -> None:
        if on_nonfinite not in ("stop", "skip"):
            raise InputError(f"on_nonfinite {on_nonfinite!r}; expected stop or skip")
        self.plan, self.tally, self.accelerator, self.on_nonfinite = plan, tally, accelerator, on_nonfinite
        self.gradient_norm: Tensor | float | None = None  # of the current step, if the trainer knows it
        self.skipped_steps = 0
        self._seconds, self._mark, self._logged_step = 0.0, time.perf_counter(), 0
        self._zero_checked = False
        rows = plan.table["row"].to_numpy()
        self._tokens = np.bincount(rows // plan.rows_per_step, weights=plan.table["tokens"].to_numpy())

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The clock starts."""
        self._seconds, self._mark, self._logged_step = 0.0, time.perf_counter(), state.global_step

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Keep, drop or refuse the step. One number is read from the device."""
        model: nn.Module = given["model"]
        loss = self.tally.step_loss
        values = [] if loss is None else [loss.float()]
        if not self._loss_is_scaled(args):
            norm = gradient_norm(model) if self.gradient_norm is None else torch.as_tensor(self.gradient_norm)
            values.append(whole(norm).float())
        self.gradient_norm = None
        if not values:
            return
        device = values[0].device
        # Processes must agree: a loss is each one's own.
        summed: Tensor = self.accelerator.reduce(torch.stack([v.to(device) for v in values]).sum(), reduction="sum")
        if math.isfinite(summed.item()):
            self.tally.keep()
            return
        what = ", ".join(
            f"{name} {value.item():g}" for name, value in zip(("loss", "gradient norm"), values, strict=False)
        )
        text = f"step {state.global_step + 1} is not finite ({what}); {self._batch(state.global_step)}"
        if self.on_nonfinite == "stop":
            raise RunError(
                f"{text}. Look at these examples, lower training.learning_rate or training.max_grad_norm, train in "
                "bfloat16 or float32 rather than float16; `loss: {on_nonfinite: skip}` leaves such steps out"
            )
        self.skipped_steps += 1
        logger.warning("%s. The step is skipped (%d so far)", text, self.skipped_steps)
        self.tally.drop()
        if getattr(self.accelerator, "scaler", None) is None:
            for parameter in model.parameters():
                parameter.grad = None

    def _loss_is_scaled(self, args: TrainingArguments) -> bool:
        deepspeed = getattr(self.accelerator, "distributed_type", None) == DistributedType.DEEPSPEED
        return getattr(self.accelerator, "scaler", None) is not None or bool(deepspeed and args.fp16)

    def _batch(self, step: int) -> str:
        """The tasks and examples of a step, and the tasks whose loss was not finite."""
        text = f"its batch, rows {describe_rows(self.plan, step)}"
        if self.tally.step_tasks is not None:
            sums: Tensor = self.accelerator.reduce(self.tally.step_tasks, reduction="sum")
            bad = [n for n, s in zip(self.plan.task_names, sums[:, 0].tolist(), strict=True) if not math.isfinite(s)]
            text += f"; loss not finite in: {', '.join(bad) or 'no task'}"
        return text

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Count the time; after 50 steps look for scales that are still zero, once."""
        now = time.perf_counter()
        self._seconds, self._mark = self._seconds + now - self._mark, now
        if not self._zero_checked and state.global_step >= ZERO_SCALE_STEPS:
            self._zero_checked = True
            warn_of_zero_scales(given["model"], state.global_step)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Evaluation is no time of training."""
        self._mark = time.perf_counter()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Nor is writing checkpoints."""
        self._mark = time.perf_counter()

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint keeps."""
        return {"skipped_steps": self.skipped_steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a saved state."""
        self.skipped_steps = state["skipped_steps"]

    def logs(self, model: nn.Module, step: int) -> dict[str, float]:
        """`scale_norm/branch_<i>`, `tokens_per_second` and, once there are any, `skipped_steps`; for the log of a step.

        tokens_per_second: tokens of the rows since the last log, context and trained, of all processes, over the time
        since then without evaluation and saving.
        """
        logs = {f"scale_norm/branch_{i}": value for i, value in enumerate(scale_norms(model))}
        seconds, tokens = self._seconds, self._tokens[self._logged_step : step].sum()
        if seconds > 0 and tokens:
            logs["tokens_per_second"] = round(float(tokens) / seconds, 1)
        self._seconds, self._logged_step = 0.0, step
        if self.skipped_steps:
            logs["skipped_steps"] = self.skipped_steps
        return logs


def gradient_norm(model: nn.Module) -> Tensor:
    """The 2-norm of all gradients, []; 0 where there are none. Of a sharded model all processes must call it."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return whole(torch.nn.utils.get_total_norm(gradients))


def describe_rows(plan: Plan, step: int) -> str:
    """`8 to 11 of the plan: even (examples 3, 5), echo (example 0)` for a step counted from 0."""
    first = step * plan.rows_per_step
    rows = plan.table["row"].to_numpy()
    start, end = np.searchsorted(rows, [first, first + plan.rows_per_step])
    lines = plan.table.slice(int(start), int(end - start))
    by_task: dict[int, list[int]] = {}
    for task, example in zip(lines["task"].to_pylist(), lines["example"].to_pylist(), strict=True):
        by_task.setdefault(task, []).append(example)
    parts = []
    for task, examples in by_task.items():
        shown = ", ".join(map(str, examples[:_NAMED]))
        more = f" and {len(examples) - _NAMED} more" if len(examples) > _NAMED else ""
        parts.append(f"{plan.task_names[task]} (example{'s' if len(examples) > 1 else ''} {shown}{more})")
    return f"{first} to {first + plan.rows_per_step - 1} of the plan: {', '.join(parts)}"


def _scales(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every trained scale, whole, with its module's name; the branch is the last axis."""
    for name, module in model.named_modules():
        if isinstance(module, MultiLoraLayer):
            for parameter in module.multilora_scale.parameters():
                if parameter.requires_grad:
                    yield name, whole(parameter).detach()


def scale_norms(model: nn.Module) -> list[float]:
    """Per branch the 2-norm of its scale, mean over layers; empty without MultiLoRA. One read from the device."""
    norms = [scale.float().reshape(-1, scale.shape[-1]).norm(dim=0) for _, scale in _scales(model)]
    if not norms:
        return []
    widest = max(len(norm) for norm in norms)
    same = torch.stack([norm for norm in norms if len(norm) == widest])
    means: list[float] = same.mean(dim=0).tolist()
    return means


def warn_of_zero_scales(model: nn.Module, step: int) -> None:
    """A warning that counts the branches whose scale is all zero and names the first module with one."""
    dead, total, first = 0, 0, ""
    for name, scale in _scales(model):
        zero = int((scale.reshape(-1, scale.shape[-1]) == 0).all(dim=0).sum())
        dead, total = dead + zero, total + scale.shape[-1]
        first = first or (name if zero else "")
    if dead:
        logger.warning(
            "after %d steps %d of %d branches still have a scale of exactly zero and do nothing, the first in %s; is "
            "the module used, does its gradient arrive, is the learning rate above zero?",
            step,
            dead,
            total,
            first,
        )
