"""Muon moves every factor of every branch by a matrix with equal singular values."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import make_llama, make_qwen3_moe
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import TrainerCallback

import multilora
from multilora import MultiLoraConfig
from multilora.errors import RecipeError
from multilora.training.muon import ADAMW_RMS, Muon, branch_step, factor_layouts, orthogonalized

EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]


@pytest.mark.parametrize("shape", [(4, 30), (30, 4), (3, 5, 5), (2, 3, 4, 9)])
def test_singular_values_become_equal(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalized(matrices))
    assert values.min() > 0.6
    assert values.max() < 1.3
    # The singular vectors stay: U^T X V is diagonal.
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    inside = left.mT @ orthogonalized(matrices) @ right.mT
    assert (inside - torch.diag_embed(inside.diagonal(dim1=-2, dim2=-1))).abs().max() < 1e-3


@pytest.mark.parametrize("stack", [(), (3,)])
def test_every_branch_is_a_matrix_of_its_own(stack):
    n, r, d_in, d_out = 3, 2, 7, 5
    generator = torch.Generator().manual_seed(0)
    down = torch.randn(*stack, n * r, d_in, generator=generator)
    up = torch.randn(*stack, d_out, n * r, generator=generator)
    for branch in range(n):
        part = slice(branch * r, (branch + 1) * r)
        expected = orthogonalized(down[..., part, :]) * ADAMW_RMS * d_in**0.5
        torch.testing.assert_close(branch_step(down, -2, n)[..., part, :], expected)
        expected = orthogonalized(up[..., part]) * ADAMW_RMS * d_out**0.5
        torch.testing.assert_close(branch_step(up, -1, n)[..., part], expected)


@pytest.mark.parametrize("config", [MultiLoraConfig, LoraConfig])
def test_everything_else_gets_adamw(config):
    def after_steps(make_optimizer):
        torch.manual_seed(0)
        model = get_peft_model(make_llama(), config(r=2, target_modules="all-linear", modules_to_save=["norm"]))
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        optimizer = make_optimizer(torch.optim.AdamW(trained.values(), lr=0.01, weight_decay=0.1), model)
        generator = torch.Generator().manual_seed(1)
        for _ in range(3):
            for parameter in trained.values():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
        return trained, factor_layouts(model)

    (expected, _), (actual, factors) = after_steps(lambda adamw, model: adamw), after_steps(Muon)
    by_muon = [name for name, parameter in actual.items() if id(parameter) in factors]
    assert by_muon == [name for name in actual if "_A" in name or "_B" in name]
    for name in actual:
        if name in by_muon:
            assert not torch.allclose(actual[name], expected[name], atol=1e-3)
        else:
            torch.testing.assert_close(actual[name], expected[name])


def test_branches_of_stacked_experts():
    config = MultiLoraConfig(r=2, num_branches=3, target_parameters=EXPERTS, target_modules=["q_proj"])
    model = get_peft_model(make_qwen3_moe(), config)
    layouts = factor_layouts(model)
    sizes = {(p.dim(), *layouts[id(p)]) for _, p in model.named_parameters() if id(p) in layouts}
    assert sizes == {(2, -2, 3), (2, -1, 3), (3, -2, 3), (3, -1, 3)}


@pytest.mark.parametrize("method", ["multilora", "lora"])
def test_a_recipe_with_muon_learns_and_resumes_bit_for_bit(recipe, tmp_path, method):
    options = [f"adapter={json.dumps({'method': method, 'r': 2})}", "optimizer.muon=true", "training.save_steps=3"]
    options += ["training.max_steps=12", "training.learning_rate=0.1"]
    run = multilora.train(recipe, options)
    losses = [line["loss"] for line in run.metrics if "loss" in line]
    assert sum(losses[-3:]) < 0.99 * sum(losses[:3])

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 8:
                raise RuntimeError("stopped")

    again = [*options, f"output_dir={tmp_path / 'again'}"]
    with pytest.raises(multilora.errors.RunError):
        multilora.train(recipe, again, callbacks=[Stop()])
    resumed = multilora.train(recipe, again, resume=True)
    weights = [load_file(item.path / "adapter" / "adapter_model.safetensors") for item in (run, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_what_muon_cannot_be_used_with(recipe):
    with pytest.raises(RecipeError, match=r"optimizer.muon is for adapter.method `multilora` and `lora`, not `full`"):
        multilora.plan({**recipe, "adapter": {"method": "full"}}, ["optimizer.muon=true"])
    with pytest.raises(RecipeError, match=r"optimizer.muon and training.optim"):
        multilora.plan(recipe, ["optimizer.muon=true", "training.optim=sgd"])
