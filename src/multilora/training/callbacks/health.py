"""Health of a run: non-finite steps, scales that stay at zero, scale norms, throughput."""

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
from multilora.training.sharding import full_tensor

logger = logging.getLogger(__name__)

OnNonfinite = Literal["stop", "skip"]
ZERO_SCALE_STEPS = 50
_SHOWN_EXAMPLES = 8


class Health(TrainerCallback):
    """Check every optimizer step before it is taken, after its gradients are reduced over processes.

    A loss or gradient norm that is not finite stops the run or skips the step: its gradients are discarded, while the
    learning-rate schedule and the plan advance. With float16 loss scaling only the loss is checked, because gradients
    overflow occasionally, and the gradient scaler or DeepSpeed then skips the step.

    Args:
        plan: describes the rows of a step
        tally: the trainer's loss sums; every step is added or discarded here
        accelerator: of the constructed trainer
        on_nonfinite: `stop` or `skip`

    Raises:
        InputError: an unknown `on_nonfinite`.
        RunError: during training with `stop`; names the values that are not finite, and the step's tasks and examples.
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
        """Start the clock."""
        self._seconds, self._mark, self._logged_step = 0.0, time.perf_counter(), state.global_step

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Accept the step, skip it or stop. Reads one value from the device."""
        model: nn.Module = kwargs["model"]
        loss = self.tally.step_loss
        values = [] if loss is None else [loss.float()]
        if not self._loss_is_scaled(args):
            norm = gradient_norm(model) if self.gradient_norm is None else torch.as_tensor(self.gradient_norm)
            values.append(full_tensor(norm).float())
        self.gradient_norm = None
        if not values:
            return
        device = values[0].device
        # The loss differs between processes, but they must make the same decision.
        total: Tensor = self.accelerator.reduce(torch.stack([v.to(device) for v in values]).sum(), reduction="sum")
        if math.isfinite(total.item()):
            self.tally.keep()
            return
        listed = ", ".join(
            f"{name} {value.item():g}" for name, value in zip(("loss", "gradient norm"), values, strict=False)
        )
        message = f"step {state.global_step + 1} is not finite ({listed}); {self._describe_batch(state.global_step)}"
        if self.on_nonfinite == "stop":
            raise RunError(
                f"{message}. Check these examples, lower training.learning_rate or training.max_grad_norm, or train in "
                "bfloat16 or float32 instead of float16; to skip such steps, set `loss: {on_nonfinite: skip}`"
            )
        self.skipped_steps += 1
        logger.warning("%s. The step is skipped (%d so far)", message, self.skipped_steps)
        self.tally.drop()
        if getattr(self.accelerator, "scaler", None) is None:
            for parameter in model.parameters():
                parameter.grad = None

    def _loss_is_scaled(self, args: TrainingArguments) -> bool:
        deepspeed = getattr(self.accelerator, "distributed_type", None) == DistributedType.DEEPSPEED
        return getattr(self.accelerator, "scaler", None) is not None or bool(deepspeed and args.fp16)

    def _describe_batch(self, step: int) -> str:
        """Name the tasks and examples of a step, and the tasks whose loss is not finite."""
        text = f"its batch is rows {describe_rows(self.plan, step)}"
        if self.tally.step_tasks is not None:
            sums: Tensor = self.accelerator.reduce(self.tally.step_tasks, reduction="sum")
            loss_sums = zip(self.plan.task_names, sums[:, 0].tolist(), strict=True)
            nonfinite = [name for name, loss_sum in loss_sums if not math.isfinite(loss_sum)]
            text += f"; loss not finite in: {', '.join(nonfinite) or 'no task'}"
        return text

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the step's time; after 50 steps, check once for scales that are still zero."""
        now = time.perf_counter()
        self._seconds, self._mark = self._seconds + now - self._mark, now
        if not self._zero_checked and state.global_step >= ZERO_SCALE_STEPS:
            self._zero_checked = True
            warn_of_zero_scales(kwargs["model"], state.global_step)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Exclude evaluation from the throughput."""
        self._mark = time.perf_counter()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Exclude saving from the throughput."""
        self._mark = time.perf_counter()

    def exclude(self, seconds: float) -> None:
        """Exclude time that was spent on something else since the last step from the throughput."""
        self._mark += seconds

    def state_dict(self) -> dict[str, int]:
        """Return the state to save in a checkpoint."""
        return {"skipped_steps": self.skipped_steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore a saved state."""
        self.skipped_steps = state["skipped_steps"]

    def logs(self, model: nn.Module, step: int) -> dict[str, float]:
        """Return `scale_norm/branch_<i>`, `tokens_per_second` and, if not zero, `skipped_steps` for the log of a step.

        `tokens_per_second` counts all tokens since the last log, trained or not, over all processes, and excludes the
        time of evaluation, saving and `Interference`.
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
    """Return the 2-norm of all gradients, [], or 0 without any; if the model is sharded, all processes must call it."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return full_tensor(torch.nn.utils.get_total_norm(gradients))


def describe_rows(plan: Plan, step: int) -> str:
    """Describe the rows of a step (from 0), as in `8 to 11 of the plan: even (examples 3, 5), echo (example 0)`."""
    first = step * plan.rows_per_step
    rows = plan.table["row"].to_numpy()
    start, end = np.searchsorted(rows, [first, first + plan.rows_per_step])
    lines = plan.table.slice(int(start), int(end - start))
    by_task: dict[int, list[int]] = {}
    for task, example in zip(lines["task"].to_pylist(), lines["example"].to_pylist(), strict=True):
        by_task.setdefault(task, []).append(example)
    descriptions = []
    for task, examples in by_task.items():
        shown = ", ".join(map(str, examples[:_SHOWN_EXAMPLES]))
        more = f" and {len(examples) - _SHOWN_EXAMPLES} more" if len(examples) > _SHOWN_EXAMPLES else ""
        descriptions.append(f"{plan.task_names[task]} (example{'s' if len(examples) > 1 else ''} {shown}{more})")
    return f"{first} to {first + plan.rows_per_step - 1} of the plan: {', '.join(descriptions)}"


def _scales(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every trained scale, gathered if it is sharded, with its module's name; the last axis is the branch."""
    for name, module in model.named_modules():
        if isinstance(module, MultiLoraLayer):
            for parameter in module.multilora_scale.parameters():
                if parameter.requires_grad:
                    yield name, full_tensor(parameter).detach()


def scale_norms(model: nn.Module) -> list[float]:
    """Return the 2-norm of the scale per branch, averaged over layers; empty without MultiLoRA."""
    norms = [scale.float().reshape(-1, scale.shape[-1]).norm(dim=0) for _, scale in _scales(model)]
    if not norms:
        return []
    branches = max(len(norm) for norm in norms)
    stacked = torch.stack([norm for norm in norms if len(norm) == branches])
    means: list[float] = stacked.mean(dim=0).tolist()
    return means


def warn_of_zero_scales(model: nn.Module, step: int) -> None:
    """Warn about branches whose scale is still zero, with their count and the first affected module."""
    zero_branches, branches, first_module = 0, 0, ""
    for name, scale in _scales(model):
        zero = int((scale.reshape(-1, scale.shape[-1]) == 0).all(dim=0).sum())
        zero_branches, branches = zero_branches + zero, branches + scale.shape[-1]
        first_module = first_module or (name if zero else "")
    if zero_branches:
        logger.warning(
            "after %d steps %d of %d branches still have a scale of exactly zero and no effect, the first in %s; check "
            "that the module is used, that it receives a gradient and that the learning rate is above zero",
            step,
            zero_branches,
            branches,
            first_module,
        )
