"""What a step of a plan costs on this machine, measured on two batches; nothing is kept."""

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
    """seconds: of one optimizer step on this process; peak_bytes: of memory on its device, optimizer state included."""

    seconds: float
    peak_bytes: int
    device: str


def step_cost(prepared: Prepared) -> StepCost:
    """Run forward and backward of the plan's first rows twice, and time the second.

    The time of a whole step is that of one device batch times the accumulated ones; the optimizer's own time is left
    out, its two moments per trained parameter (Adam's) are counted into the memory. The model's gradients are cleared.
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
        begin = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=bool(arguments.bf16)):
            losses, _ = token_losses(model, batch, labels)
        torch.autograd.backward(losses.mean())
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
        model.zero_grad(set_to_none=True)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    moments = 8 * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return StepCost(seconds * arguments.gradient_accumulation_steps, peak + moments, str(device))
