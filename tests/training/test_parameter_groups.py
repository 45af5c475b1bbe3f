"""Parameter groups: every trained parameter is in one group, and `scale_lr_factor` is equivalent to `lora_alpha`."""

from __future__ import annotations

import shutil

import pytest
import torch
from conftest import make_llama
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

import multilora
from multilora import MultiLoraConfig
from multilora.errors import InputError, RecipeError
from multilora.training.parameter_groups import kind_of, split_groups
from multilora.training.schedule import train_scales_until


@pytest.mark.parametrize("config", [MultiLoraConfig, LoraConfig])
def test_every_parameter_is_in_one_group_of_its_kind(config):
    model = get_peft_model(make_llama(), config(r=2, target_modules="all-linear", modules_to_save=["norm"]))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    decayed = [p for p in trained.values() if p.dim() > 1]
    plain = [p for p in trained.values() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}], lr=0.5
    )
    split_groups(optimizer, model, {"scale": 4, "up": 3, "down": 0.25})
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in trained.values())
    by_id = {id(p): name for name, p in trained.items()}
    kinds = set()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = by_id[id(parameter)]
            kind = (
                "scale" if "multilora_scale" in name else "up" if "_B" in name else "down" if "_A" in name else "other"
            )
            kinds.add(kind)
            assert kind_of(name) == kind == group["kind"]
            assert group["lr"] == {"scale": 2.0, "up": 1.5, "down": 0.125, "other": 0.5}[kind]
            assert group["weight_decay"] == (0.0 if kind == "scale" or parameter.dim() == 1 else 0.1)
    assert kinds == {"up", "down", "other"} | ({"scale"} if config is MultiLoraConfig else set())


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
            "alpha": ["adapter.lora_alpha=10", "optimizer.scale_lr_factor=1"],  # alpha / r = 5
            "factor": ["optimizer.scale_lr_factor=5"],
            "plain": ["optimizer.scale_lr_factor=1"],
            "default": [],
        }.items()
    }
    with_alpha, with_factor, plain, default = (factors(run) for run in runs.values())
    assert all(torch.equal(*pair) for pair in zip(default, with_factor, strict=True))
    for actual, expected in zip(with_alpha, with_factor, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)
    assert any((actual - other).abs().max() > 0.05 for actual, other in zip(with_alpha, plain, strict=True))


CHECKPOINTED = [
    "training.max_steps=12",
    "training.weight_decay=0.1",
    "training.save_steps=3",
    "training.save_total_limit=9",
]


def parameters(folder):
    by_kind = {}
    for name, value in load_file(folder / "adapter_model.safetensors").items():
        by_kind.setdefault(kind_of(f"{name}.default"), {})[name] = value
    return by_kind


def all_equal(some, others):
    return {bool(torch.equal(value, others[name])) for name, value in some.items()}


def test_a_factor_of_zero_freezes_the_down_projections(recipe):
    run = multilora.train(recipe, ["optimizer.down_lr_factor=0", *CHECKPOINTED])
    first, last = parameters(run.path / "checkpoints" / "checkpoint-3"), parameters(run.weights)
    assert all_equal(first["down"], last["down"]) == {True}
    assert all_equal(first["up"], last["up"]) == all_equal(first["scale"], last["scale"]) == {False}


@pytest.mark.parametrize("options", [[], ["optimizer.muon=true"]])
def test_scales_stop_after_their_steps_also_in_a_resumed_run(recipe, options):
    options = [*options, "optimizer.scale_steps=4", *CHECKPOINTED]
    run = multilora.train(recipe, options)
    checkpoints = [parameters(run.path / "checkpoints" / f"checkpoint-{step}") for step in (3, 6, 9)]
    assert all_equal(checkpoints[0]["scale"], checkpoints[1]["scale"]) == {False}
    assert all_equal(checkpoints[1]["scale"], checkpoints[2]["scale"]) == {True}
    assert all_equal(checkpoints[1]["up"], checkpoints[2]["up"]) == {False}
    last = parameters(run.weights)
    shutil.rmtree(run.weights)
    for step in (9, 12):
        shutil.rmtree(run.path / "checkpoints" / f"checkpoint-{step}", ignore_errors=True)
    resumed = parameters(multilora.train(recipe, options, resume=True).weights)
    for kind, values in last.items():
        assert all_equal(values, resumed[kind]) == {True}


def test_scale_steps_need_a_schedule_of_steps():
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(torch.optim.AdamW([torch.zeros(1, requires_grad=True)]))
    with pytest.raises(InputError, match="scale_steps is 4, which does not work with the scheduler ReduceLROnPlateau"):
        train_scales_until(scheduler, 4)


def test_the_logged_learning_rate_is_that_of_the_recipe(recipe):
    run = multilora.train(recipe, ["optimizer.scale_lr_factor=8", "training.lr_scheduler_type=constant"])
    assert {line["learning_rate"] for line in run.metrics if "learning_rate" in line} == {0.01}


def test_factors_without_effect_raise(recipe):
    with pytest.raises(RecipeError) as caught:
        multilora.plan(
            recipe,
            [
                "adapter={method: full}",
                "optimizer={scale_lr_factor: 8, up_lr_factor: 2, down_lr_factor: 0, scale_steps: 3}",
            ],
        )
    assert "optimizer.scale_lr_factor: 8.0 has no effect with adapter.method `full`" in str(caught.value)
    for text in ("up_lr_factor: 2.0", "down_lr_factor: 0.0", "scale_steps: 3"):
        assert f"optimizer.{text} has no effect" in str(caught.value)
