"""transformers' Trainer with our loss (weighted, logged per task), order, batches and watch over every step."""

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
from multilora.errors import InputError
from multilora.files import atomic_folder, write_json
from multilora.loss import weighting
from multilora.loss.tally import Tally
from multilora.loss.token_losses import token_losses
from multilora.training.arguments import check_one_device
from multilora.training.callbacks.health import Health, OnNonfinite
from multilora.training.checkpoint import PREFIX, PROGRESS_FILE, keep_newest, staged
from multilora.training.compile import compile_blocks
from multilora.training.parameter_groups import split_groups
from multilora.training.sharding import check_sharding, check_written, reduce_in_float32, trained_weights


class MultiTaskTrainer(Trainer):
    """Trains on a plan, in its order, and logs `loss/<task>` beside the loss.

    Args:
        model: a causal language model, adapted or not
        args: any `TrainingArguments`; they are copied. `remove_unused_columns` is turned off, because the task ids must
            reach the loss, and `torch_compile` compiles the model's repeated blocks instead of all of it
        plan: from `multilora.plan`; its rows per step must equal what `args` asks for
        scale_lr_factor: learning rate of MultiLoRA's scales over `args.learning_rate`
        up_lr_factor: the same for the up-projections B of MultiLoRA and LoRA
        loss_weighting: what counts the same in a step's loss: every trained `token`, every `example` (the mean over its
            trained tokens), or every `task` of the step (likewise)
        on_nonfinite: `stop` or `skip` a step whose loss or gradient norm is not finite
        **kwargs: passed on to `transformers.Trainer`

    Raises:
        InputError: batch size, accumulation and processes do not multiply to the plan's rows per step, or one
            process would drive several GPUs; an unknown weighting or `on_nonfinite`; what FSDP or DeepSpeed cannot do.
        RunError: while training, at a step that is not finite.
    """

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        plan: Plan,
        *,
        scale_lr_factor: float = 1.0,
        up_lr_factor: float = 1.0,
        loss_weighting: weighting.Weighting = "token",
        on_nonfinite: OnNonfinite = "stop",
        **kwargs: Any,
    ) -> None:
        rows_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        if rows_per_step != plan.rows_per_step:
            raise InputError(
                f"the arguments take {rows_per_step} rows per step ({args.train_batch_size} x "
                f"{args.gradient_accumulation_steps} accumulated x {args.world_size} processes), the plan holds "
                f"{plan.rows_per_step}; make the plan for these arguments"
            )
        check_one_device(args)
        weighting.check(loss_weighting)
        args = copy.copy(args)  # the caller's own may serve another trainer
        args.remove_unused_columns = False
        # transformers would remove an old checkpoint before the new one is whole.
        self.checkpoint_limit, args.save_total_limit = args.save_total_limit, None
        self.compiled = args.torch_compile
        if self.compiled:
            compile_blocks(model, backend=str(args.torch_compile_backend), mode=args.torch_compile_mode)
            args.torch_compile, args.torch_compile_backend = False, None  # accelerate would compile all of it
        args.logging_nan_inf_filter = False  # it hides what `health` reports, and waits for the device every batch
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
        self.lr_factors = {"scale_factor": scale_lr_factor, "up_factor": up_lr_factor}
        self.loss_weighting = loss_weighting
        # The loss below is divided by a count over the whole accumulated batch, over all processes.
        self.model_accepts_loss_kwargs = True
        self._staging: Path | None = None
        self.tally = Tally(len(plan.task_names))
        self.health = Health(plan, self.tally, self.accelerator, on_nonfinite)
        self.add_callback(self.health)
        self.add_callback(_TrainBegin(self))
        self._resumed_from: Path | None = None
        check_sharding(self)
        if self.is_fsdp_enabled:
            reduce_in_float32(self.accelerator)

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
        """The weighted mean cross-entropy over the trained tokens of the (accumulated, gathered) batch."""
        batch = dict(inputs)
        given = {key: value for key, value in batch.items() if key not in ("labels", "task_ids")}
        losses, trained = token_losses(model, given, batch["labels"])
        total = self._totals(batch) if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        loss = weighting.weighted_loss(self.loss_weighting, losses, batch, total)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over processes
        if model.training:
            self.tally.add(loss, losses, batch["task_ids"][:, 1:][trained])
        return (loss, {}) if return_outputs else loss

    def _totals(self, batch: dict[str, Tensor]) -> Tensor:
        return weighting.totals(self.loss_weighting, batch, len(self.plan.task_names))

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Any:
        """What the step's loss is divided by, over all accumulated batches and processes."""
        if self.loss_weighting == "token" or not batch_samples:
            return super()._get_num_items_in_batch(batch_samples, device)
        total = torch.stack([self._totals(batch) for batch in batch_samples]).sum(dim=0).to(device)
        return self.accelerator.reduce(total, reduction="sum") if self.args.average_tokens_across_devices else total

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """transformers' own; a batch that is not finite must not spoil the running sum of a run that skips steps."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss if self.health.on_nonfinite == "stop" else loss.nan_to_num(0.0, 0.0, 0.0)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """transformers' own, shown to `health`."""
        self.health.gradient_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        return self.health.gradient_norm

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """transformers' own; of a model spread over processes what was trained is gathered, not a frozen base."""
        if not self.is_spread:
            super().save_model(output_dir, _internal_call)
        elif not (_internal_call and self.is_fsdp_enabled and self._keeps_shards()):  # there the shards are enough
            state = trained_weights(self.model)
            if self.args.should_save:
                folder = output_dir or str(self.args.output_dir)
                self._save(folder, state_dict=state)
                check_written(self.model, Path(folder))

    @property
    def is_spread(self) -> bool:
        """Whether FSDP2 or DeepSpeed spreads the model, or what belongs to it, over processes."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def _keeps_shards(self) -> bool:
        return "SHARDED" in str(self.accelerator.state.fsdp_plugin.state_dict_type)

    def write_weights(self, path: Path, complete: Callable[[Path], None]) -> None:
        """The trained weights as `save_pretrained` writes them, whole or not at all; all processes must call it.

        Args:
            path: the folder to write; one that is there is replaced
            complete: adds to the folder, on the main process, before it takes its place
        """
        state = trained_weights(self.model) if self.is_spread else None
        if self.is_world_process_zero():
            with atomic_folder(path) as folder:
                self.accelerator.unwrap_model(self.model).save_pretrained(
                    str(folder), **({} if state is None else {"state_dict": state})
                )
                complete(folder)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """transformers' own, made atomic, with the sums behind the next line of the log."""
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
            keep_newest(folder, self.checkpoint_limit)

    def _progress(self) -> dict[str, Any]:
        """The sums of all processes together; each must call it."""

        def reduce(sums: Tensor, how: str) -> Tensor:
            reduced: Tensor = self.accelerator.reduce(sums, reduction=how)
            return reduced

        return {
            "loss": reduce(self._tr_loss, "mean").tolist(),
            "total_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
            "tally": self.tally.state_dict(reduce),
            "health": self.health.state_dict(),
        }

    def restore_progress(self, checkpoint: Path) -> None:
        """Take up the sums that `checkpoint` was written with; transformers has just set them to zero."""
        progress = json.loads((checkpoint / PROGRESS_FILE).read_text(encoding="utf-8"))
        self._tr_loss += progress["loss"]
        self._total_loss_scalar = progress["total_loss"]
        self._globalstep_last_logged = progress["last_logged"]
        self.health.load_state_dict(progress["health"])
        self.tally.load_state_dict(progress["tally"], self.args.device, main_process=self.is_world_process_zero())

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """transformers' own; a resumed run also takes up the sums behind its next log."""
        checkpoint = resume_from_checkpoint or None
        if checkpoint is True:
            checkpoint = get_last_checkpoint(str(self.args.output_dir))
        self._resumed_from = Path(checkpoint) if isinstance(checkpoint, str) else None
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds `loss/<task>`, the mean over the task's trained tokens since the last log, and what `health` knows.

        A task unseen is left out. `loss` is the mean over the steps taken; it is left out if all were skipped.
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
        super().log(logs, start_time)


class _TrainBegin(TrainerCallback):
    """What can be done only when training begins: after a model is split, after transformers has reset its sums."""

    def __init__(self, trainer: MultiTaskTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        trainer = self.trainer
        if trainer.plan.packed and trainer.is_spread:  # earlier no process could run the model alone
            check_packing(trainer.model, trainer.data_collator)
        if trainer._resumed_from is not None and (trainer._resumed_from / PROGRESS_FILE).is_file():
            trainer.restore_progress(trainer._resumed_from)
