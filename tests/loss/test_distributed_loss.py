"""Two processes (gloo, CPU): the loss under DDP and FSDP2, and the normaliser of every weighting."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from conftest import make_gpt2, make_llama
from peft import get_peft_model
from processes import WORLD, run_in_two_processes
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import multilora
from multilora import MultiLoraConfig
from multilora.loss.token_losses import token_losses

ROWS = 4
IDS = torch.randint(3, 320, (ROWS, 10), generator=torch.Generator().manual_seed(0))
LABELS = torch.where(torch.rand(IDS.shape, generator=torch.Generator().manual_seed(1)) < 0.5, IDS, -100)
COUNT = (LABELS[:, 1:] != -100).sum()


def adapted():
    return get_peft_model(
        make_llama(), MultiLoraConfig(r=2, target_modules="all-linear", init_weights=False)
    )  # make_llama sets the seed


def sharded(model):
    fully_shard(model, mesh=init_device_mesh("cpu", (WORLD,)))
    return model


CASES = {
    "DDP, trained and tied head": (make_gpt2, DistributedDataParallel),
    "DDP, frozen head": (adapted, DistributedDataParallel),
    "DDP, unused parameters": (make_gpt2, partial(DistributedDataParallel, find_unused_parameters=True)),
    "DDP, static graph": (make_gpt2, partial(DistributedDataParallel, static_graph=True)),
    "FSDP2": (make_llama, sharded),
}


def two_steps(model, rank=0, world=1):
    """Gradients of the second step, by parameter name without wrappers."""
    rows = slice(rank, None, world)
    for _ in range(2):
        model.zero_grad()
        losses, _ = token_losses(model, {"input_ids": IDS[rows]}, LABELS[rows], chunk=3)
        (losses.sum() / COUNT * world).backward()
    grads = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradient = parameter.grad
            grads[name.removeprefix("module.")] = (
                gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
            )
    return grads


def train(recipe, path, weighting, size):
    options = [f"output_dir={path}", f"loss.weighting={weighting}", "training.max_steps=2", "data.num_proc=1"]
    sizes = [f"training.per_device_train_batch_size={size}", "training.gradient_accumulation_steps=2"]
    return multilora.train(recipe, [*options, *sizes, "training.use_cpu=true"])


def process(rank, folder, recipe):
    results = {name: two_steps(wrap(make()), rank, WORLD) for name, (make, wrap) in CASES.items()}
    if rank == 0:
        torch.save(results, folder / "gradients.pt")
    for weighting in ("token", "example", "task"):
        train(recipe, folder / weighting, weighting, size=1)


def test_two_processes_equal_one(recipe, tmp_path):
    multilora.plan(recipe, ["data.num_proc=1"])  # fills the cache for both processes
    run_in_two_processes(process, tmp_path, recipe)
    results = torch.load(tmp_path / "gradients.pt")
    for case, (make, _) in CASES.items():
        expected = two_steps(make())
        assert results[case].keys() == expected.keys(), case
        for name, gradient in expected.items():
            torch.testing.assert_close(results[case][name], gradient, rtol=1e-4, atol=1e-5, msg=f"{case}: {name}")
    for weighting in ("token", "example", "task"):
        one = train(recipe, tmp_path / f"{weighting}-alone", weighting, size=2)
        two = multilora.Run(tmp_path / weighting)
        for expected_line, line in zip(one.metrics, two.metrics, strict=True):
            for key in expected_line.keys() & {"loss", "loss/even", "loss/echo", "scale_norm/branch_0"}:
                assert line[key] == pytest.approx(expected_line[key], rel=1e-4), (weighting, key)
        weights = [load_file(run.weights / "adapter_model.safetensors") for run in (one, two)]
        for key, value in weights[0].items():
            torch.testing.assert_close(weights[1][key], value, rtol=1e-3, atol=1e-4)
