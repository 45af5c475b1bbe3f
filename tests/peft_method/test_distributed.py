"""Two processes (gloo, CPU) train like one: with DDP, FSDP2, and FSDP2 resumed from a sharded checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from conftest import make_llama, randomise
from peft import get_peft_model
from processes import WORLD, run_in_two_processes
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from multilora import MultiLoraConfig

STEPS = 6
BATCHES = torch.randint(3, 320, (STEPS, 4, 16), generator=torch.Generator().manual_seed(0))


def make_model(scaling="vector"):
    model = get_peft_model(make_llama(), MultiLoraConfig(r=2, target_modules="all-linear", scaling=scaling))
    randomise(model)
    return model.train()


def take_steps(model, optimizer, steps, rank=0, world=1):
    """Train; returns the loss of each step, averaged over processes, each of which has its own rows of the batch."""
    losses = []
    for step in steps:
        rows = BATCHES[step].chunk(world)[rank]
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        value = loss.detach().clone()
        if world > 1:
            dist.all_reduce(value, dist.ReduceOp.AVG if dist.get_backend() == "nccl" else dist.ReduceOp.SUM)
            value /= world
        losses.append(value.item())
    return losses


def make_optimizer(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


def adapter(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if "multilora_" in name}


def sharded(model):
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in model.get_base_model().model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def with_ddp(rank, folder, scaling):
    model = make_model(scaling)
    optimizer = make_optimizer(model)
    losses = take_steps(DistributedDataParallel(model), optimizer, range(STEPS), rank, WORLD)
    return losses, adapter(model)


def gathered(model):
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, ignore_frozen_params=True))
    return {name: value for name, value in state.items() if "multilora_" in name}


def with_fsdp2(rank, folder, scaling):
    model = sharded(make_model(scaling))
    optimizer = make_optimizer(model)
    losses = take_steps(model, optimizer, range(STEPS), rank, WORLD)
    return losses, gathered(model)


def with_fsdp2_resumed(rank, folder, scaling):
    model = sharded(make_model(scaling))
    optimizer = make_optimizer(model)
    losses = take_steps(model, optimizer, range(STEPS // 2), rank, WORLD)
    model_state, optimizer_state = get_state_dict(model, optimizer)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=folder / "sharded")

    model = sharded(make_model(scaling))  # as in a new process
    optimizer = make_optimizer(model)
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state = {"model": model_state, "optimizer": optimizer_state}
    dcp.load(state, checkpoint_id=folder / "sharded")
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    losses += take_steps(model, optimizer, range(STEPS // 2, STEPS), rank, WORLD)
    return losses, gathered(model)


def process(rank, folder, work, scaling):
    losses, parameters = work(rank, folder, scaling)
    if rank == 0:
        torch.save((losses, parameters), folder / "result.pt")


@pytest.mark.parametrize("scaling", ["vector", pytest.param("scalar", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "work",
    [
        pytest.param(with_ddp, marks=pytest.mark.slow),
        pytest.param(with_fsdp2, marks=pytest.mark.slow),
        with_fsdp2_resumed,
    ],
)
def test_two_processes_equal_one(tmp_path: Path, work, scaling):
    run_in_two_processes(process, tmp_path, work, scaling)
    losses, parameters = torch.load(tmp_path / "result.pt")
    model = make_model(scaling)
    before = adapter(model)
    expected = take_steps(model, make_optimizer(model), range(STEPS))
    assert losses == pytest.approx(expected, abs=1e-5)
    after = adapter(model)
    assert parameters.keys() == after.keys()
    for name, parameter in after.items():
        assert not torch.equal(parameter, before[name]), name
        # Adam divides by the size of the gradient; where it is nearly zero, the step depends on rounding.
        torch.testing.assert_close(parameters[name], parameter, rtol=1e-3, atol=1e-3, msg=name)
