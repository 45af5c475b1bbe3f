"""Parameter groups: every trained parameter is in one group, and `scale_lr_factor` is equivalent to `lora_alpha`."""

from __future__ import annotations

import pytest
import torch
from conftest import make_llama
from peft import LoraConfig, get_peft_model

import multilora
from multilora import MultiLoraConfig
from multilora.errors import RecipeError
from multilora.training.parameter_groups import kind_of, split_groups


@pytest.mark.parametrize("config", [MultiLoraConfig, LoraConfig])
def test_every_parameter_is_in_one_group_of_its_kind(config):
    model = get_peft_model(make_llama(), config(r=2, target_modules="all-linear", modules_to_save=["norm"]))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    decayed = [p for p in trained.values() if p.dim() > 1]
    plain = [p for p in trained.values() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}], lr=0.5
    )
    split_groups(optimizer, model, scale_factor=4, up_factor=3)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in trained.values())
    by_id = {id(p): name for name, p in trained.items()}
    kinds = set()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = by_id[id(parameter)]
            kind = "scale" if "multilora_scale" in name else "up" if "_B" in name else "other"
            kinds.add(kind)
            assert kind_of(name) == kind == group["kind"]
            assert group["lr"] == {"scale": 2.0, "up": 1.5, "other": 0.5}[kind]
            assert group["weight_decay"] == (0.0 if kind == "scale" or parameter.dim() == 1 else 0.1)
    assert kinds == ({"scale", "up", "other"} if config is MultiLoraConfig else {"up", "other"})


def factors(run):
    model = run.load_model()
    layers = [m for m in model.modules() if isinstance(m, multilora.MultiLoraLayer)]
    return [factor.detach() for layer in layers for factor in layer.effective_factors("default")]


def test_lora_alpha_equals_scale_lr_factor(recipe, tmp_path):
    # Adam's second moments are tiny at the start, where epsilon would make a difference.
    common = ["training.max_steps=8", "training.adam_epsilon=1.0e-30"]
    runs = {
        name: multilora.train(recipe, [*common, f"output_dir={tmp_path / name}", *extra])
        for name, extra in {
            "alpha": ["adapter.lora_alpha=10"],  # alpha / r = 5
            "factor": ["optimizer.scale_lr_factor=5"],
            "plain": [],
        }.items()
    }
    with_alpha, with_factor, plain = (factors(runs[name]) for name in ("alpha", "factor", "plain"))
    for actual, expected in zip(with_alpha, with_factor, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)
    assert any((actual - other).abs().max() > 0.05 for actual, other in zip(with_alpha, plain, strict=True))


def test_the_logged_learning_rate_is_that_of_the_recipe(recipe):
    run = multilora.train(recipe, ["optimizer.scale_lr_factor=8", "training.lr_scheduler_type=constant"])
    assert {line["learning_rate"] for line in run.metrics if "learning_rate" in line} == {0.01}


def test_factors_without_effect_raise(recipe):
    with pytest.raises(RecipeError) as caught:
        multilora.plan(recipe, ["adapter={method: full}", "optimizer={scale_lr_factor: 8, up_lr_factor: 2}"])
    assert "optimizer.scale_lr_factor: 8.0 has no effect with adapter.method `full`" in str(caught.value)
    assert "optimizer.up_lr_factor: 2.0 has no effect" in str(caught.value)
