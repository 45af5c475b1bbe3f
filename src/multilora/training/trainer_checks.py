"""Do a model, its arguments and a plan go together, and are the trained weights fit to be saved?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments

from multilora.data.plan import Plan
from multilora.errors import InputError, RunError
from multilora.modeling import max_positions
from multilora.training.arguments import check_one_device
from multilora.training.parameter_groups import kind_of


def check_trainer_inputs(
    model: Any, args: TrainingArguments, plan: Plan, lr_factors: Mapping[str, float], scale_steps: int | None
) -> None:
    """Check what a MultiTaskTrainer is made from; see its arguments. `lr_factors` is kind of parameter -> factor.

    Raises:
        InputError: with every problem: rows per step, number of steps, a plan of another model, learning rate factors
            without parameters to apply to, several GPUs.
    """
    check_one_device(args)
    problems = [*_steps(args, plan), *_model(model, plan), *_factors(model, lr_factors, scale_steps)]
    if problems:
        raise InputError("\n".join(problems))


def _steps(args: TrainingArguments, plan: Plan) -> Iterator[str]:
    rows_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    if rows_per_step != plan.rows_per_step:
        yield (
            f"the arguments use {rows_per_step} rows per step (batch size {args.train_batch_size} x "
            f"{args.gradient_accumulation_steps} accumulation steps x {args.world_size} processes), but the plan "
            f"has {plan.rows_per_step}; make a plan for these arguments"
        )
    elif args.max_steps > plan.steps:
        yield (
            f"max_steps is {args.max_steps}, but the plan has {plan.steps} steps and is not repeated; make a longer "
            "plan, or lower max_steps"
        )
    elif args.max_steps <= 0 and args.num_train_epochs != 1:
        yield (
            f"num_train_epochs is {args.num_train_epochs:g}: it would repeat the plan, which already has the epochs of "
            f"every task; set max_steps={plan.steps}, or num_train_epochs=1"
        )
    if args.ignore_data_skip:
        yield "ignore_data_skip would train on the plan's first rows again after a resume; leave it out"


def _model(model: Any, plan: Plan) -> Iterator[str]:
    vocabulary = getattr(model.config.get_text_config(), "vocab_size", None)
    tokens = len(plan.renderer.tokenizer)
    if vocabulary is not None and tokens > vocabulary:
        yield (
            f"the plan's tokenizer has {tokens:,} tokens, but the model's embedding has {vocabulary:,} rows; make the "
            "plan with the tokenizer of this model, or resize its embeddings"
        )
    positions = max_positions(model.config)
    if positions is not None and plan.max_length > positions:
        yield (
            f"the plan's rows have up to {plan.max_length:,} tokens, but the model has {positions:,} positions; make "
            f"the plan with data.max_length of at most {positions}"
        )


def _factors(model: nn.Module, lr_factors: Mapping[str, float], scale_steps: int | None) -> Iterator[str]:
    kinds = {kind_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    for kind, factor in lr_factors.items():
        if factor != 1 and kind not in kinds:
            yield f"{kind}_lr_factor is {factor:g}, but the model has no parameters of that kind; leave it out"
    if scale_steps is not None and "scale" not in kinds:
        yield f"scale_steps is {scale_steps}, but the model has no scales; leave it out"


def check_finite(trainer: Any) -> None:
    """Refuse to save weights that are NaN or infinite; every process must call it.

    Args:
        trainer: a MultiTaskTrainer

    Raises:
        RunError: names one of them.
    """
    names = [
        name
        for name, parameter in trainer.model.named_parameters()
        if parameter.requires_grad and not torch.isfinite(_local(parameter)).all()
    ]
    count: Any = trainer.accelerator.reduce(torch.tensor(len(names), device=trainer.args.device), reduction="sum")
    if int(count):
        raise RunError(
            f"step {trainer.state.global_step}: {int(count)} trained weights are NaN or infinite "
            f"({names[0] if names else 'in another process'}, ...), so they are not saved; resume from the checkpoint "
            "before, with a lower training.learning_rate or training.max_grad_norm"
        )


def _local(parameter: Tensor) -> Tensor:
    """The part of a parameter that this process holds."""
    if isinstance(parameter, DTensor):
        return parameter.to_local()
    part = getattr(parameter, "ds_tensor", None)
    return parameter if part is None else part
