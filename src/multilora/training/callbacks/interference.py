"""Log the cosine between the tasks' gradients during training: do the tasks of a mixture pull the same way?"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from multilora.errors import InputError
from multilora.loss.task_gradients import task_cosines, task_products, trained_by_type
from multilora.loss.token_losses import token_losses

PREFIX, BETWEEN, SECONDS = "interference/", " x ", "interference_seconds"


def interference_key(module_type: str, first: str, second: str) -> str:
    """The key of a cosine in `metrics.jsonl`: `interference/q_proj/first x second`, tasks in the order of the recipe.

    Args:
        module_type: such as `q_proj`, or `all`
        first, second: names of tasks
    """
    return f"{PREFIX}{module_type}/{first}{BETWEEN}{second}"


class Interference(TrainerCallback):
    """Before every `every`-th optimizer step, compare the tasks' gradients on the step's first batch of every process.

    It runs the batch once, in training mode with the random numbers that the step will use, and once backward per task.
    Training is not changed: gradients, random number generators and logs stay as they are. Tasks that are not in the
    batch, or whose gradient is zero, have no cosines. With several processes, a task's gradient is its sum over them.

    Args:
        trainer: a MultiTaskTrainer, which logs the cosines
        every: in optimizer steps

    Raises:
        InputError: FSDP or DeepSpeed shards the gradients, or gradient checkpointing is reentrant.
    """

    def __init__(self, trainer: Any, every: int) -> None:
        self.trainer, self.every = trainer, every
        self._found: dict[str, float] = {}
        if trainer.is_sharded:
            raise InputError(
                "loss.interference_every needs the whole gradients, which FSDP and DeepSpeed shard; leave it out, or "
                "train with DDP"
            )
        options = trainer.args.gradient_checkpointing_kwargs or {}
        if trainer.args.gradient_checkpointing and options.get("use_reentrant"):
            raise InputError(
                "loss.interference_every needs several backward passes, which reentrant gradient checkpointing does "
                "not support; set training.gradient_checkpointing_kwargs to {use_reentrant: false}"
            )

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Measure if this step is due."""
        if (state.global_step + 1) % self.every:
            return
        start = time.perf_counter()
        preserved_rng = torch.random.fork_rng(devices=[args.device] if args.device.type == "cuda" else [])
        # Compiled blocks allow only one backward pass.
        with preserved_rng, torch.compiler.set_stance("force_eager"):
            self._found = self._measure(self._first_batch(args, state.global_step))
        seconds = time.perf_counter() - start
        self.trainer.health.exclude(seconds)
        self._found[SECONDS] = round(seconds, 3)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Log what was measured, so that the line belongs to this step and to its checkpoint."""
        if self._found:
            step_log_due = control.should_log
            self.trainer.log(self._found)
            control.should_log = step_log_due  # logging resets it, but the log of the step itself is still due
            self._found = {}
        return control

    def _first_batch(self, args: TrainingArguments, step: int) -> dict[str, Tensor]:
        """The first batch of this process in a step (from 0)."""
        first = step * self.trainer.plan.rows_per_step + args.process_index * args.train_batch_size
        rows = [self.trainer.train_dataset[first + index] for index in range(args.train_batch_size)]
        return {key: value.to(args.device) for key, value in self.trainer.data_collator(rows).items()}

    def _measure(self, batch: dict[str, Tensor]) -> dict[str, float]:
        trainer, names = self.trainer, self.trainer.plan.task_names
        labels, task_ids = batch.pop("labels"), batch.pop("task_ids")
        # The model without the wrapper of DDP, which would expect one backward pass that reduces all gradients.
        model = trainer.model.train()
        with torch.enable_grad(), trainer.compute_loss_context_manager():
            losses, trained = token_losses(model, batch, labels)
        of_tokens = task_ids[:, 1:][trained]
        counts = self._total(torch.bincount(of_tokens, minlength=len(names)))
        present = counts.nonzero().flatten().tolist()
        if len(present) < 2:
            return {}
        products = task_products(losses, of_tokens, present, trained_by_type(model), self._total)
        return {
            interference_key(module_type, *pair): cosine
            for module_type, pairs in task_cosines(products, [names[task] for task in present]).items()
            for pair, cosine in pairs.items()
        }

    def _total(self, values: Tensor) -> Tensor:
        summed: Tensor = self.trainer.accelerator.reduce(values, reduction="sum")
        return summed
