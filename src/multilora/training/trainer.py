"""transformers' Trainer with three differences: the loss (per task, in the same pass), the order, the batches."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import Trainer, TrainingArguments

from multilora.data.collate import Collator, pad_token_id
from multilora.data.plan import Plan
from multilora.errors import InputError
from multilora.files import write_json
from multilora.training.checkpoint import PREFIX, PROGRESS_FILE, keep_newest, staged
from multilora.training.groups import split_groups


def token_losses(model: Any, inputs: dict[str, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every trained token.

    The vocabulary projection is taken only at positions that some row of the batch trains on (the model's
    `logits_to_keep`), which for responses behind long prompts saves most of the logits.

    Args:
        model: a causal language model
        inputs: input_ids and attention_mask or position_ids, [batch, length]
        labels: [batch, length], -100 where not trained on; token t is predicted at position t - 1

    Returns:
        (losses [trained tokens] in float32 nats, mask [batch, length - 1] of the trained positions)
    """
    targets = labels[:, 1:]
    trained = targets != -100
    positions = trained.any(dim=0).nonzero().squeeze(-1)
    if _keeps_logits(model):
        logits = model(**inputs, logits_to_keep=positions, use_cache=False).logits
    else:
        logits = model(**inputs, use_cache=False).logits[:, positions]
    kept = trained[:, positions]
    losses = F.cross_entropy(logits[kept].float(), targets[:, positions][kept], reduction="none")
    return losses, trained


def _keeps_logits(model: Any) -> bool:
    inner = model.module if hasattr(model, "module") else model
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    return "logits_to_keep" in inspect.signature(inner.forward).parameters


class MultiTaskTrainer(Trainer):
    """Trains on a plan, in its order, and logs `loss/<task>` beside the loss.

    Args:
        model: a causal language model, adapted or not
        args: any `TrainingArguments`; `remove_unused_columns` is turned off, for the task ids must reach the loss
        plan: from `multilora.plan`; its rows per step must equal what `args` asks for
        scale_lr_factor: learning rate of MultiLoRA's scales over `args.learning_rate`
        up_lr_factor: the same for the up-projections B of MultiLoRA and LoRA
        **kwargs: passed on to `transformers.Trainer`

    Raises:
        InputError: batch size, accumulation and processes do not multiply to the plan's rows per step, or one
            process would drive several GPUs.
    """

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        plan: Plan,
        *,
        scale_lr_factor: float = 1.0,
        up_lr_factor: float = 1.0,
        **kwargs: Any,
    ) -> None:
        asked = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        if asked != plan.rows_per_step:
            raise InputError(
                f"the arguments take {asked} rows per step ({args.train_batch_size} x "
                f"{args.gradient_accumulation_steps} accumulated x {args.world_size} processes), the plan holds "
                f"{plan.rows_per_step}; make the plan for these arguments"
            )
        if args.n_gpu > 1:
            raise InputError(
                f"one process would drive {args.n_gpu} GPUs (DataParallel), which the loss does not support; start one "
                "process per GPU with torchrun or accelerate, or choose one with CUDA_VISIBLE_DEVICES"
            )
        args.remove_unused_columns = False
        # transformers would remove an old checkpoint before the new one is whole.
        self.checkpoint_limit, args.save_total_limit = args.save_total_limit, None
        tokenizer = plan.renderer.tokenizer
        super().__init__(
            model=model,
            args=args,
            train_dataset=plan.dataset(),
            data_collator=Collator(
                pad_token_id(tokenizer),
                packed=plan.packed,
                flatten=plan.packed and str(model.config._attn_implementation).startswith("flash"),
            ),
            processing_class=tokenizer,
            **kwargs,
        )
        self.plan = plan
        self.lr_factors = {"scale_factor": scale_lr_factor, "up_factor": up_lr_factor}
        # The loss below is divided by the trained tokens of the whole accumulated batch, over all processes.
        self.model_accepts_loss_kwargs = True
        self._task_sums: Tensor | None = None
        self._staging: Path | None = None

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int]:
        """The plan's own order."""
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(dataset)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """transformers' own, with its groups split by kind of parameter."""
        given = self.optimizer is not None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if not given:
            split_groups(optimizer, self.model if model is None else model, **self.lr_factors)
        return optimizer

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The mean cross-entropy over the trained tokens of the (accumulated, gathered) batch."""
        inputs = dict(inputs)
        labels, task_ids = inputs.pop("labels"), inputs.pop("task_ids")
        losses, trained = token_losses(model, inputs, labels)
        if model.training:
            self._count(losses.detach(), task_ids[:, 1:][trained])
        count = losses.numel() if num_items_in_batch is None else num_items_in_batch
        loss = losses.sum() / count
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over processes
        return (loss, {}) if return_outputs else loss

    def _count(self, losses: Tensor, tasks: Tensor) -> None:
        if self._task_sums is None:
            dtype = torch.float32 if losses.device.type == "mps" else torch.float64
            self._task_sums = torch.zeros(len(self.plan.task_names), 2, dtype=dtype, device=losses.device)
        values = torch.stack([losses, torch.ones_like(losses)], dim=-1).to(self._task_sums.dtype)
        self._task_sums.index_add_(0, tasks, values)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """transformers' own, written whole or not at all, with the sums behind the next line of the log."""
        folder = Path(self.args.output_dir)
        main_process = self.is_world_process_zero()
        with staged(folder, main_process=main_process, wait=self.accelerator.wait_for_everyone) as self._staging:
            try:
                super()._save_checkpoint(model, trial)
                if main_process:
                    target = self._staging / f"{PREFIX}{self.state.global_step}" / PROGRESS_FILE
                    write_json(target, self._progress())
            finally:
                self._staging = None
        if main_process:
            keep_newest(folder, self.checkpoint_limit)

    def _progress(self) -> dict[str, Any]:
        return {
            "loss": self._tr_loss.item(),
            "total_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
            "task_sums": None if self._task_sums is None else self._task_sums.tolist(),
        }

    def restore_progress(self, checkpoint: Path) -> None:
        """Take the sums up again that `checkpoint` was written with; call it when training begins."""
        found = json.loads((checkpoint / PROGRESS_FILE).read_text(encoding="utf-8"))
        self._tr_loss += found["loss"]
        self._total_loss_scalar = found["total_loss"]
        self._globalstep_last_logged = found["last_logged"]
        if found["task_sums"] is not None:
            dtype = torch.float32 if self.args.device.type == "mps" else torch.float64
            self._task_sums = torch.tensor(found["task_sums"], dtype=dtype, device=self.args.device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds `loss/<task>`, the mean over the task's trained tokens since the last log; a task unseen is left out."""
        if "loss" in logs and self._task_sums is not None:
            sums: Any = self.accelerator.reduce(self._task_sums, reduction="sum")
            for name, (total, count) in zip(self.plan.task_names, sums.tolist(), strict=True):
                if count:
                    logs[f"loss/{name}"] = total / count
            self._task_sums.zero_()
        super().log(logs, start_time)
