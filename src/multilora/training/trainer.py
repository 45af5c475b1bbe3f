"""The transformers Trainer, extended by the plan's order, a weighted loss logged per task, and health checks."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from multilora.data.collate import collator_for
from multilora.data.plan import Plan
from multilora.data.probe import check_packing
from multilora.files import atomic_folder, write_json
from multilora.loss import weighting
from multilora.loss.tally import Tally
from multilora.loss.token_losses import token_losses
from multilora.training.callbacks.health import Health, OnNonfinite
from multilora.training.checkpoint import PREFIX, PROGRESS_FILE, keep_newest, later_checkpoints, staged
from multilora.training.compile import compile_blocks
from multilora.training.muon import Muon
from multilora.training.parameter_groups import split_groups
from multilora.training.schedule import follow_schedule, train_scales_until
from multilora.training.sharding import check_sharding, check_written, reduce_in_float32, trained_weights
from multilora.training.trainer_checks import check_finite, check_trainer_inputs


class MultiTaskTrainer(Trainer):
    """Trainer for a plan: trains on its rows in order and logs `loss/<task>` next to the loss.

    Args:
        model: a causal language model, with or without adapters
        args: any `TrainingArguments`; they are copied. `remove_unused_columns` is turned off, because the loss needs
            the task ids, and `torch_compile` compiles only the model's repeated blocks
        plan: from `multilora.plan`; its rows per step must match `args`
        scale_lr_factor, up_lr_factor, down_lr_factor: multiply `args.learning_rate` for MultiLoRA's scales and for the
            factors B and A of MultiLoRA and LoRA; a `down_lr_factor` of 0 freezes A
        scale_steps: train the scales in the first so many steps only
        muon: use Muon for the factors of MultiLoRA and LoRA, see `multilora.training.muon`
        loss_weighting: what has the same weight in the loss of a step: every trained `token`, every `example` (mean
            over its trained tokens) or every `task` (mean over its trained tokens)
        on_nonfinite: `stop` or `skip` a step whose loss or gradient norm is not finite
        **kwargs: passed to `transformers.Trainer`

    Raises:
        InputError: batch size x accumulation x processes differs from the plan's rows per step; one process would
            drive several GPUs; an unknown weighting or `on_nonfinite`; settings that FSDP or DeepSpeed cannot handle.
        RunError: during training, at a step that is not finite.
    """

    optimizer: torch.optim.Optimizer | None  # of transformers' Trainer

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        plan: Plan,
        *,
        scale_lr_factor: float = 1.0,
        up_lr_factor: float = 1.0,
        down_lr_factor: float = 1.0,
        scale_steps: int | None = None,
        muon: bool = False,
        loss_weighting: weighting.Weighting = "token",
        on_nonfinite: OnNonfinite = "stop",
        **kwargs: Any,
    ) -> None:
        self.lr_factors = {"scale": scale_lr_factor, "up": up_lr_factor, "down": down_lr_factor}
        self.scale_steps = scale_steps
        check_trainer_inputs(model, args, plan, self.lr_factors, scale_steps)
        weighting.check(loss_weighting)
        args = copy.copy(args)  # the caller may use them for another trainer
        args.remove_unused_columns = False
        # transformers would remove an old checkpoint before the new one is complete.
        self.checkpoint_limit, args.save_total_limit = args.save_total_limit, None
        self.compiled = args.torch_compile
        if self.compiled:
            compile_blocks(model, backend=str(args.torch_compile_backend), mode=args.torch_compile_mode)
            args.torch_compile, args.torch_compile_backend = False, None  # else accelerate compiles the whole model
        args.logging_nan_inf_filter = False  # it hides what `health` reports, and synchronizes after every batch
        tokenizer = plan.renderer.tokenizer
        super().__init__(
            model=model,
            args=args,
            train_dataset=plan.dataset(),
            data_collator=collator_for(model, tokenizer, packed=plan.packed),
            processing_class=tokenizer,
            **kwargs,
        )
        self.plan = plan
        self.muon = muon
        self.loss_weighting = loss_weighting
        # compute_loss already divides by a count over all accumulated batches and processes.
        self.model_accepts_loss_kwargs = True
        self._staging: Path | None = None
        self.tally = Tally(len(plan.task_names))
        self.health = Health(plan, self.tally, self.accelerator, on_nonfinite)
        self.add_callback(self.health)
        self.add_callback(_TrainBegin(self))
        self._resumed_from: Path | None = None
        self._stale: set[Path] = set()
        self._sums_restored = False
        check_sharding(self)
        if self.is_fsdp_enabled:
            reduce_in_float32(self.accelerator)

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int]:
        """Return the rows in the order of the plan."""
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(dataset)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Create the optimizer as transformers does, with its groups split by kind of parameter."""
        custom = self.optimizer is not None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if not custom:
            trained = self.model if model is None else model
            split_groups(optimizer, trained, self.lr_factors)
            if self.muon:
                self.optimizer = optimizer = Muon(optimizer, trained)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Create the scheduler as transformers does; it stops the scales after `scale_steps`."""
        custom = self.lr_scheduler is not None
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        return scheduler if custom else train_scales_until(scheduler, self.scale_steps)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute the weighted mean cross-entropy of the trained tokens, normalised over the full batch of the step."""
        batch = dict(inputs)
        model_inputs = {key: value for key, value in batch.items() if key not in ("labels", "task_ids")}
        losses, trained = token_losses(model, model_inputs, batch["labels"])
        total = self._totals(batch) if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        loss = weighting.weighted_loss(self.loss_weighting, losses, batch, total)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # undoes the averaging of gradients over processes
        if model.training:
            self.tally.add(loss, losses, batch["task_ids"][:, 1:][trained])
        return (loss, {}) if return_outputs else loss

    def _totals(self, batch: dict[str, Tensor]) -> Tensor:
        return weighting.totals(self.loss_weighting, batch, len(self.plan.task_names))

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Any:
        """Return the normaliser of the step's loss, over all accumulated batches and processes."""
        if self.loss_weighting == "token" or not batch_samples:
            return super()._get_num_items_in_batch(batch_samples, device)
        total = torch.stack([self._totals(batch) for batch in batch_samples]).sum(dim=0).to(device)
        return self.accelerator.reduce(total, reduction="sum") if self.args.average_tokens_across_devices else total

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Run a training step; if steps may be skipped, keep non-finite losses out of the running sum."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss if self.health.on_nonfinite == "stop" else loss.nan_to_num(0.0, 0.0, 0.0)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Compute the gradient norm and pass it to `health`."""
        self.health.gradient_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        return self.health.gradient_norm

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model; if it is sharded, gather the trained weights, but not a frozen base."""
        if not self.is_sharded:
            super().save_model(output_dir, _internal_call)
        elif not (_internal_call and self.is_fsdp_enabled and self._saves_shards()):  # else the shards are enough
            state = trained_weights(self.model)
            if self.args.should_save:
                folder = output_dir or str(self.args.output_dir)
                self._save(folder, state_dict=state)
                check_written(self.model, Path(folder))

    @property
    def is_sharded(self) -> bool:
        """Whether FSDP2 or DeepSpeed shards the model, its gradients or its optimizer state."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def _saves_shards(self) -> bool:
        return "SHARDED" in str(self.accelerator.state.fsdp_plugin.state_dict_type)

    def write_weights(self, path: Path, complete: Callable[[Path], None]) -> None:
        """Write the trained weights atomically, as `save_pretrained` does; all processes must call it.

        Args:
            path: the folder to write; replaced if it exists
            complete: called on the main process to add files before the folder is moved to `path`
        """
        check_finite(self)
        state = trained_weights(self.model) if self.is_sharded else None
        if self.is_world_process_zero():
            with atomic_folder(path) as folder:
                self.accelerator.unwrap_model(self.model).save_pretrained(
                    str(folder), **({} if state is None else {"state_dict": state})
                )
                complete(folder)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint atomically, with the running sums of the next log entry."""
        check_finite(self)
        folder = Path(self.args.output_dir)
        main_process = self.is_world_process_zero()
        with staged(folder, main_process=main_process, wait=self.accelerator.wait_for_everyone) as self._staging:
            try:
                super()._save_checkpoint(model, trial)
                progress = self._progress()
                if main_process:
                    write_json(self._staging / f"{PREFIX}{self.state.global_step}" / PROGRESS_FILE, progress)
            finally:
                self._staging = None
        if main_process:
            self._stale.discard(folder / f"{PREFIX}{self.state.global_step}")
            keep_newest(folder, self.checkpoint_limit, self._stale)

    def _progress(self) -> dict[str, Any]:
        """Return the running sums over all processes; every process must call it."""

        def reduce(sums: Tensor, reduction: str) -> Tensor:
            reduced: Tensor = self.accelerator.reduce(sums, reduction=reduction)
            return reduced

        return {
            "loss": reduce(self._tr_loss, "mean").tolist(),
            "total_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
            "tally": self.tally.state_dict(reduce),
            "health": self.health.state_dict(),
        }

    def restore_progress(self, checkpoint: Path) -> None:
        """Restore the running sums from `checkpoint`, after transformers has reset them to zero."""
        progress = json.loads((checkpoint / PROGRESS_FILE).read_text(encoding="utf-8"))
        self._tr_loss += progress["loss"]
        self._total_loss_scalar = progress["total_loss"]
        self._sums_restored = True
        self._globalstep_last_logged = progress["last_logged"]
        self.health.load_state_dict(progress["health"])
        self.tally.load_state_dict(progress["tally"], self.args.device, main_process=self.is_world_process_zero())

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train; a resumed run also restores the running sums of its next log entry."""
        checkpoint = resume_from_checkpoint or None
        if checkpoint is True:
            checkpoint = get_last_checkpoint(str(self.args.output_dir))
        self._resumed_from = Path(checkpoint) if isinstance(checkpoint, str) else None
        self._stale = later_checkpoints(Path(self.args.output_dir), self._resumed_from)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log `loss/<task>` (the mean over the task's trained tokens since the last log) and the values of `health`.

        Tasks without trained tokens are omitted. `loss` is the mean over the steps taken; it is omitted if all were
        skipped.
        """
        if "loss" in logs:
            if self.tally.skipped:
                del logs["loss"]
            if self.tally.loss is not None and self.tally.tasks is not None:
                if self.tally.skipped:
                    loss: Any = self.accelerator.reduce(self.tally.loss, reduction="mean")
                    logs["loss"] = loss.item() / self.tally.steps
                sums: Any = self.accelerator.reduce(self.tally.tasks, reduction="sum")
                for name, (total, count) in zip(self.plan.task_names, sums.tolist(), strict=True):
                    if count:
                        logs[f"loss/{name}"] = total / count
            self.tally.clear()
            logs.update(self.health.logs(self.model, self.state.global_step))
        if "train_loss" in logs and self._sums_restored:  # transformers divides by the steps since the resumption
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        super().log(logs, start_time)


class _TrainBegin(TrainerCallback):
    """Tasks for the start of training, after the model is sharded and transformers has reset its sums."""

    def __init__(self, trainer: MultiTaskTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        trainer = self.trainer
        if trainer.plan.packed and trainer.is_sharded:  # before this, the model could not be run
            check_packing(trainer.model, trainer.data_collator)
        if trainer._resumed_from is not None:
            follow_schedule(trainer.lr_scheduler)
            if (trainer._resumed_from / PROGRESS_FILE).is_file():
                trainer.restore_progress(trainer._resumed_from)
