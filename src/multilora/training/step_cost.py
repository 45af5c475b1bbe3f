"""Measure the time and memory of a training step on this machine, without training."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass

import torch

from multilora.data.collate import collator_for
from multilora.loss.token_losses import token_losses
from multilora.modeling import best_device, to_device
from multilora.training.prepare import Prepared


@dataclass(frozen=True)
class StepCost:
    """Cost of a training step on one process.

    seconds: per optimizer step
    peak_bytes: peak memory of the device, including the optimizer state
    """

    seconds: float
    peak_bytes: int
    device: str


def step_cost(prepared: Prepared) -> StepCost:
    """Run two forward and backward passes on the first rows of the plan, and time the second.

    The time of a step is that of one batch times the accumulation steps, without the optimizer itself; its memory
    includes Adam's two moments per trained parameter. Gradients are cleared.
    """
    model, plan, arguments = prepared.model, prepared.plan, prepared.arguments
    device = best_device()
    to_device(model, device).train()
    dataset = plan.dataset()
    collate = collator_for(model, plan.renderer.tokenizer, packed=plan.packed)
    size = min(arguments.train_batch_size, plan.rows)
    seconds = 0.0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for start in (0, min(size, plan.rows - size)):
        batch = {key: value.to(device) for key, value in collate([dataset[start + i] for i in range(size)]).items()}
        labels = batch.pop("labels")
        batch.pop("task_ids")
        start_time = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=bool(arguments.bf16)):
            losses, _ = token_losses(model, batch, labels)
        torch.autograd.backward(losses.mean())
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start_time
        model.zero_grad(set_to_none=True)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    moments = 8 * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return StepCost(seconds * arguments.gradient_accumulation_steps, peak + moments, str(device))
