"""The estimate of a step equals what a real step of the same model uses, and its parts add up."""

from __future__ import annotations

import gc
import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from multilora.cli import main
from multilora.errors import InputError
from multilora.estimate import trace as tracing
from multilora.estimate.needs import needs
from multilora.estimate.trace import traces
from multilora.modeling import attach, parameter_counts
from multilora.recipe import Recipe

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "vocab_size": 64}
CONFIGS = {
    "llama": {**SMALL, "num_hidden_layers": 7, "max_position_embeddings": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 64, "n_positions": 64},
    "gemma3_text": {
        **SMALL,
        "num_hidden_layers": 7,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "sliding_window": 8,
        "max_position_embeddings": 64,
    },
}


def recipe_of(folder, name="llama", **sections):
    config = AutoConfig.for_model(name, **CONFIGS[name])
    config.save_pretrained(folder)
    values = {
        "model": {"name_or_path": str(folder), "dtype": "float32"},
        "adapter": {"method": "multilora", "r": 2, "num_branches": 3, "target_modules": "all-linear"},
        "tasks": [{"name": "nano/arithmetic"}],
        "data": {"max_length": 16},
        "training": {"per_device_train_batch_size": 3},
        "output_dir": str(folder / "run"),
    }
    return Recipe.load({**values, **sections})


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """The traces of the llama recipe."""
    return traces(recipe_of(tmp_path_factory.mktemp("llama")))


@pytest.fixture
def traced(llama, monkeypatch):
    """Make `needs` use the traces of the llama recipe, whatever the recipe is."""
    monkeypatch.setattr("multilora.estimate.needs.traces", lambda recipe: llama)


def test_the_experts_of_a_token_are_counted(tmp_path):
    def operations(experts):
        sizes = {**SMALL, "num_hidden_layers": 1, "num_key_value_heads": 2, "max_position_embeddings": 64}
        config = AutoConfig.for_model("mixtral", **sizes, num_local_experts=4, num_experts_per_tok=experts)
        config.save_pretrained(tmp_path)
        kept, _ = traces(recipe)
        return kept.operations

    # torch's meta implementation of grouped products has bfloat16 only.
    recipe = recipe_of(tmp_path, model={"name_or_path": str(tmp_path), "dtype": "bfloat16"})
    tokens, matrices = 3 * 16, 3 * 32 * 48  # products of the forward pass and of the gradient of the input
    assert operations(3) - operations(2) == 2 * (2 * tokens * matrices)


def real_step(recipe, checkpointing):
    """Peak and operations of a step with real tensors; parameters of the model."""
    config = AutoConfig.from_pretrained(recipe.model.name_or_path)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    model = attach(model, recipe.adapter, seed=0).train()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.get_base_model().enable_input_require_grads()
    gc.collect()
    with tracing._Counter() as count:
        tracing._step(model, recipe.training["per_device_train_batch_size"], recipe.data.max_length)
    return count, parameter_counts(model)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_equals_a_real_step(name, tmp_path):
    recipe = recipe_of(tmp_path, name)
    for checkpointing, found in enumerate(traces(recipe)):
        real, (trained, total) = real_step(recipe, bool(checkpointing))
        # Where recomputing a block stops differs by one small product.
        assert found.operations == pytest.approx(real.operations, rel=0.01 if checkpointing else 0)
        assert found.working_bytes == pytest.approx(real.peak, rel=0.15)
        assert (found.trained_parameters, found.frozen_parameters) == (trained, total - trained)


def test_a_deep_model_is_extrapolated_exactly(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(tracing, "_shapes", id)  # no two blocks are alike
    assert traces(recipe_of(tmp_path)) == llama


def test_recomputing_saves_memory_and_costs_operations(llama):
    kept, recomputed = llama
    assert recomputed.working_bytes < kept.working_bytes
    assert kept.operations < recomputed.operations < 1.5 * kept.operations


def test_eager_attention_needs_more_memory(tmp_path, llama):
    eager = {"name_or_path": str(tmp_path), "dtype": "float32", "attn_implementation": "eager"}
    kept, _ = traces(recipe_of(tmp_path, model=eager))
    assert kept.working_bytes > llama[0].working_bytes


@pytest.mark.usefixtures("traced")
def test_the_parts_of_a_machine(tmp_path):
    recipe = recipe_of(tmp_path, training={"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2})
    one, four = needs(recipe), needs(recipe, processes=4, tflops=0.5, utilization=0.2)
    assert [(item.sharded, item.checkpointing) for item in one.memory] == [(False, False), (False, True)]
    assert [item.sharded for item in four.memory] == [False, False, True, True]
    assert four.memory[:2] == one.memory
    for whole, share in zip(four.memory[:2], four.memory[2:], strict=True):
        assert (share.base, share.trained) == (round(whole.base / 4), round(whole.trained / 4))
        assert share.gathered > 0 == whole.gathered
        assert share.total == share.base + share.trained + share.gathered + share.working
    assert four.tokens == 4 * one.tokens == 4 * 2 * 3 * 16
    assert one.seconds is None
    assert four.seconds is not None
    assert four.seconds[0] == pytest.approx(4 * one.operations[0] / (4 * 0.5e12 * 0.2))


def test_full_fine_tuning(tmp_path, llama):
    full = needs(recipe_of(tmp_path, adapter={"method": "full"}))
    assert (full.frozen_parameters, full.memory[0].base) == (0, 0)
    assert full.memory[0].trained == 16 * llama[0].frozen_parameters


@pytest.mark.usefixtures("traced")
def test_quantization(tmp_path):
    adapted = needs(recipe_of(tmp_path))
    quantized = needs(recipe_of(tmp_path, model={"name_or_path": str(tmp_path), "quantization": "4bit"}))
    assert quantized.memory[0].base < 2 * adapted.frozen_parameters < adapted.memory[0].base


def test_bad_arguments_are_reported_together(tmp_path):
    with pytest.raises(InputError, match=r"processes is 0, expected at least 1; tflops is -1, .*; utilization is 2"):
        needs(recipe_of(tmp_path), processes=0, tflops=-1, utilization=2)


def run(arguments, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["multilora", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code, capsys.readouterr()


@pytest.mark.usefixtures("traced")
def test_the_command(tmp_path, monkeypatch, capsys):
    recipe = recipe_of(tmp_path)
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe.model_dump(mode="json", exclude_defaults=True)))
    arguments = ["estimate", str(tmp_path / "recipe.yaml"), "--gpus", "2", "--tflops", "1"]
    code, printed = run([*arguments, "--memory", "0.0001"], monkeypatch, capsys)
    assert not code
    assert printed.out.count("too large") == 4
    code, printed = run([*arguments, "--json"], monkeypatch, capsys)
    values = json.loads(printed.out)
    assert values["processes"] == 2
    assert {row["total"] for row in values["memory"]} == {item.total for item in needs(recipe, processes=2).memory}
    code, printed = run([*arguments, "--memory", "0"], monkeypatch, capsys)
    assert code
    assert "--memory is 0, expected more than 0" in printed.err


@pytest.mark.usefixtures("traced")
def test_plan_prints_the_same_estimate(tmp_path, monkeypatch, capsys):
    (tmp_path / "recipe.yaml").write_text("model: nano\ntasks: [{name: nano/arithmetic}]\n")
    recipe, options = str(tmp_path / "recipe.yaml"), ["--gpus", "2", "--memory", "80", "--tflops", "1"]
    code, estimated = run(["estimate", recipe, *options], monkeypatch, capsys)
    assert not code
    code, planned = run(["plan", recipe, "--no-measure", *options], monkeypatch, capsys)
    assert not code
    assert planned.out.endswith(estimated.out)
    code, planned = run(["plan", recipe, "--no-measure", "--json", *options], monkeypatch, capsys)
    code, estimated = run(["estimate", recipe, "--json", *options], monkeypatch, capsys)
    assert json.loads(planned.out)["estimate"] == json.loads(estimated.out)
    for option in (["--memory", "80"], ["--tflops", "1"], ["--utilization", "0.5"]):
        code, planned = run(["plan", recipe, *option], monkeypatch, capsys)
        assert code
        assert "give their number with --gpus" in planned.err
