"""`adapter.init_from`: training starts exactly at the function of a saved adapter, or an error says why not."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import jsonschema
import pytest
import torch
from conftest import make_llama, make_qwen3_moe, randomise
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load, load_file, save_file

import multilora
from multilora import functional
from multilora.errors import AdapterError, RecipeError
from multilora.methods import adapter_config
from multilora.modeling import attach
from multilora.peft_method.from_lora import branches_from_lora
from multilora.recipe import Recipe
from multilora.recipe.json_schema import recipe_json_schema
from multilora.recipe.schema import AdapterSection

WEIGHTS = "adapter_model.safetensors"
INPUT = torch.arange(3, 40).reshape(1, -1)


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=INPUT).logits


def scramble(model, seed=3):
    """Give every trainable parameter random values, as after training; scales of random size too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def save(method, folder, base=make_llama, **options):
    """Save a trained adapter of stock PEFT or MultiLoRA; returns its logits."""
    model = scramble(get_peft_model(base(), adapter_config(method, options)))
    model.save_pretrained(folder)
    return logits(model)


def start(folder, method="multilora", base=make_llama, **options):
    section = AdapterSection.model_validate({"method": method, "init_from": str(folder), **options})
    return attach(base(), section, seed=0)


def gradients(model):
    loss = model.train()(input_ids=INPUT, labels=INPUT).loss
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("rank", "r", "num_branches", "scalar", "stack"),
    [(5, 2, 3, False, ()), (6, 2, 3, True, ()), (2, 4, 3, False, ()), (1, 1, 1, True, ()), (5, 3, 2, False, (4,))],
)
def test_branches_have_the_update_of_the_lora(rank, r, num_branches, scalar, stack):
    d_in, d_out, c, scaling = 7, 6, 0.5, 3.0
    generator = torch.Generator().manual_seed(0)
    lora_A = torch.randn(*stack, rank, d_in, generator=generator)
    lora_B = torch.randn(*stack, d_out, rank, generator=generator)
    A, B = torch.empty(*stack, num_branches * r, d_in), torch.empty(*stack, d_out, num_branches * r)
    scale = torch.empty(num_branches) if scalar else torch.empty(*stack, d_out, num_branches)
    functional.init_branches_(A, B, scale, num_branches)
    before = [value.clone() for value in (A, B, scale)]
    branches = branches_from_lora(lora_A, lora_B, scaling / c, (A, B, scale))
    torch.testing.assert_close(functional.delta_weight(*branches, c), scaling * lora_B @ lora_A, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(old, new) for old, new in zip(before, (A, B, scale), strict=True))
    used = branches[2].reshape(-1, num_branches).ne(0)
    assert torch.equal(used, (torch.arange(num_branches) < rank).expand_as(used))


@pytest.mark.parametrize(
    "options",
    [
        {"r": 2, "num_branches": 3},
        {"r": 3, "num_branches": 2, "scaling": "scalar", "lora_alpha": 7, "use_rslora": True},
        {"r": 2, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"v_proj": 3}, "target_modules": ["q_proj", "v_proj"]},
        {"r": 2, "bias": "all", "modules_to_save": ["embed_tokens"], "target_modules": ["down_proj"]},
        {"r": 2, "trainable_token_indices": [3, 5], "target_modules": ["up_proj"]},
    ],
    ids=["plain", "scalar", "patterns", "modules_to_save", "tokens"],
)
def test_multilora_continues_from_multilora(options, tmp_path):
    expected = save("multilora", tmp_path, **options)
    assert not torch.allclose(expected, logits(make_llama()), atol=1e-2)
    model = start(tmp_path)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    config = model.active_peft_config
    assert {key: getattr(config, key) for key in ("r", "num_branches", "scaling", "lora_alpha", "bias")} == {
        key: saved[key] for key in ("r", "num_branches", "scaling", "lora_alpha", "bias")
    }
    assert all(gradient is not None for gradient in gradients(model).values())


@pytest.mark.parametrize(
    "options",
    [
        {"r": 6, "lora_alpha": 12},
        {"r": 4, "lora_alpha": 3, "use_rslora": True},
        {"r": 2, "target_modules": ["q_proj", "v_proj"], "bias": "lora_only"},
        {
            "r": 2,
            "lora_alpha": 5,
            "rank_pattern": {"q_proj": 5, r"layers\.0\.self_attn\.v_proj": 1},
            "alpha_pattern": {"v_proj": 9},
            "target_modules": ["q_proj", "v_proj"],
        },
        {"r": 3, "modules_to_save": ["lm_head"], "target_modules": "all-linear", "lora_dropout": 0.1},
        {"r": 3, "target_modules": ["lm_head", "q_proj"]},
    ],
    ids=["plain", "rslora", "bias", "patterns", "modules_to_save", "head"],
)
@pytest.mark.parametrize("scaling", ["vector", "scalar"])
def test_multilora_continues_from_a_plain_lora(options, scaling, tmp_path):
    expected = save("lora", tmp_path, **options)
    model = start(tmp_path, r=2, num_branches=3, scaling=scaling, lora_alpha=3)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
    assert model.active_peft_config.target_modules != "all-linear"
    parameters = gradients(model)
    assert all(parameters[name].abs().sum() > 0 for name in parameters if "multilora_B" in name or "lm_head" in name)


def test_every_branch_of_a_plain_lora_is_trained(tmp_path):
    """With ranks to spare in a branch, and with a branch without ranks."""
    for rank, folder in ((2, tmp_path / "two"), (4, tmp_path / "four")):
        save("lora", folder, r=rank, target_modules=["q_proj"])
        model = start(folder, r=2, num_branches=3)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        reached: dict[str, torch.Tensor] = {}
        for _ in range(2):  # the first step moves the scale of an empty branch, the second its matrices
            optimizer.zero_grad()
            for name, gradient in gradients(model).items():
                per_rank = gradient.ne(0).any(dim=1 if "multilora_A" in name else 0)
                reached[name] = per_rank | reached.get(name, torch.tensor(False))
            optimizer.step()
        assert len(reached) == 6
        assert all(per_rank.all() for per_rank in reached.values()), reached


def test_multilora_continues_from_a_lora_on_stacked_experts(tmp_path):
    names = ["experts.gate_up_proj", "experts.down_proj"]
    expected = save("lora", tmp_path, make_qwen3_moe, r=3, target_modules=["q_proj"], target_parameters=names)
    model = start(tmp_path, base=make_qwen3_moe, r=2, num_branches=2)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("lora", {"r": 3, "lora_alpha": 5, "use_rslora": True}),
        ("lora", {"r": 3, "use_dora": True}),
        ("lora", {"r": 4, "init_lora_weights": "orthogonal"}),
        ("ia3", {"target_modules": ["v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
        ("vera", {"target_modules": ["q_proj"], "r": 4}),
        ("loha", {"r": 2, "target_modules": ["q_proj"]}),
        ("oft", {"oft_block_size": 4, "target_modules": ["q_proj"]}),
        ("ln_tuning", {}),
    ],
    ids=["lora", "dora", "orthogonal", "ia3", "vera", "loha", "oft", "ln_tuning"],
)
def test_other_methods_continue_from_their_own(method, options, tmp_path):
    if method == "ln_tuning":
        options = {"target_modules": ["input_layernorm", "norm"]}
    expected = save(method, tmp_path, **options)
    model = start(tmp_path, method)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients(model).values())


def test_a_lora_without_task_type_from_stock_peft(tmp_path):
    model = scramble(get_peft_model(make_llama(), LoraConfig(r=4, target_modules=["q_proj", "k_proj"])))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] is None
    continued = start(tmp_path, r=2, num_branches=2)
    torch.testing.assert_close(logits(continued), logits(model), rtol=0, atol=1e-5)
    assert continued.active_peft_config.task_type == TaskType.CAUSAL_LM


def test_a_lora_saved_as_bin(tmp_path):
    expected = save("lora", tmp_path, r=2)
    torch.save(load_file(tmp_path / WEIGHTS), tmp_path / "adapter_model.bin")
    (tmp_path / WEIGHTS).unlink()
    torch.testing.assert_close(logits(start(tmp_path, r=2)), expected, rtol=0, atol=1e-5)


@pytest.fixture
def run(recipe):
    """A finished run with an effect."""
    return multilora.train({**recipe, "training": {**recipe["training"], "max_steps": 3, "learning_rate": 0.3}})


def test_a_run_continues_from_a_run(run, recipe, tmp_path):
    """Without a step of any size, the continued run ends where the first ended; 'before' stays the bare base."""
    values = {
        **recipe,
        "adapter": {"method": "multilora", "init_from": str(run.path)},
        "training": {"max_steps": 1, "learning_rate": 0.0, "per_device_train_batch_size": 4},
        "output_dir": str(tmp_path / "second"),
    }
    second = multilora.train(values)
    assert second.recipe.adapter.init_from == str(run.path)
    assert second.recipe.adapter.options == {}
    torch.testing.assert_close(logits(second.load_model()), logits(run.load_model()), rtol=0, atol=1e-5)
    first_scores, scores = (multilora.evaluate(item, max_examples=8) for item in (run, second))
    for task in first_scores.before:
        assert scores.before[task].loss == pytest.approx(first_scores.before[task].loss, abs=1e-6)
        assert scores.after[task].loss == pytest.approx(first_scores.after[task].loss, abs=1e-4)
        assert scores.before[task].loss != pytest.approx(scores.after[task].loss, abs=1e-3)
    assert multilora.train(values, resume=True).path == second.path


def test_a_run_continues_from_its_export(run, recipe, tmp_path):
    folder = multilora.export_lora(run, tmp_path / "lora")
    model = start(folder, r=2, num_branches=3, base=run.load_base)
    torch.testing.assert_close(logits(model), logits(run.load_model()), rtol=0, atol=1e-5)


def problem(recipe, **adapter):
    with pytest.raises(RecipeError) as caught:
        Recipe.load({**recipe, "adapter": adapter})
    assert len(caught.value.problems) == 1
    return caught.value.problems[0]


def test_paths_become_absolute_and_the_key_is_no_option(recipe, tmp_path, monkeypatch):
    save("lora", tmp_path / "lora", r=4)
    monkeypatch.chdir(tmp_path)
    loaded = Recipe.load({**recipe, "adapter": {"method": "multilora", "r": 2, "init_from": "lora"}})
    assert loaded.adapter.init_from == str(tmp_path / "lora")
    assert loaded.adapter.options == {"r": 2}
    assert Recipe.load(loaded.values()) == loaded
    schema = jsonschema.Draft202012Validator(recipe_json_schema())
    assert list(schema.iter_errors(loaded.values())) == []
    assert "init_from" not in Recipe.load(recipe).values()["adapter"]


def test_a_path_without_an_adapter(recipe, tmp_path, model_folder):
    assert "no such folder" in problem(recipe, init_from=str(tmp_path / "nope"))
    assert "expected a run directory" in problem(recipe, init_from=str(tmp_path))
    assert "is a model, not an adapter" in problem(recipe, init_from=str(model_folder))
    assert "is a file" in problem(recipe, init_from=str(tmp_path / "even.jsonl"))
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "recipe.yaml").write_text("model: nano\n")
    assert "did not finish" in problem(recipe, init_from=str(unfinished))
    (unfinished / "model").mkdir()
    assert f"set model.name_or_path to {unfinished / 'model'}" in problem(recipe, init_from=str(unfinished))


def test_a_damaged_config(recipe, tmp_path):
    save("lora", tmp_path / "a", r=2)
    config = tmp_path / "a" / "adapter_config.json"
    for text in ("{", "[]", "{}", '{"peft_type": null}', '{"peft_type": "NEXT_YEAR"}'):
        config.write_text(text)
        message = problem(recipe, init_from=str(tmp_path / "a"))
        assert "adapter_config.json: " in message


def test_without_weights(recipe, tmp_path):
    save("lora", tmp_path / "a", r=2)
    (tmp_path / "a" / WEIGHTS).unlink()
    assert f"no {WEIGHTS} here" in problem(recipe, init_from=str(tmp_path / "a"))


def test_full_has_no_adapter(recipe, tmp_path):
    save("lora", tmp_path / "a", r=2)
    assert "`full` trains all weights" in problem(recipe, method="full", init_from=str(tmp_path / "a"))


def test_conflicts_name_both_values(recipe, tmp_path):
    folder = str(tmp_path / "a")
    save("multilora", folder, r=2, num_branches=3)
    message = problem(recipe, init_from=folder, r=4, num_branches=3, scaling="scalar", lora_alpha=2)
    assert "r is 4 in the recipe and 2 in the adapter" in message
    assert "scaling is 'scalar' in the recipe and 'vector' in the adapter" in message
    assert "num_branches" not in message
    assert "lora_alpha" not in message  # the adapter's default is r
    Recipe.load({**recipe, "adapter": {"init_from": folder, "r": 2, "lora_dropout": 0.2}})


def test_other_target_modules_name_both_values(tmp_path):
    save("multilora", tmp_path, r=2, target_modules=["q_proj", "v_proj"])
    with pytest.raises(
        AdapterError, match=r"weights for .*q_proj.*target_modules is \['v_proj'\] in the recipe and \["
    ):
        start(tmp_path, target_modules=["v_proj"])
    with pytest.raises(AdapterError, match=r"no weights for .*down_proj.*'all-linear' in the recipe and \['.*_proj'\]"):
        start(tmp_path, target_modules="all-linear")
    start(tmp_path, target_modules=r".*\.(q|v)_proj")


def test_too_small_a_rank_says_which_would_do(recipe, tmp_path):
    save("lora", tmp_path / "a", r=8)
    message = problem(recipe, init_from=str(tmp_path / "a"), r=2, num_branches=3)
    assert "total rank of 6, less than the rank 8" in message
    assert "set r to 3 or more" in message
    Recipe.load({**recipe, "adapter": {"init_from": str(tmp_path / "a"), "r": 3, "num_branches": 3}})
    save("lora", tmp_path / "b", r=2, rank_pattern={"v_proj": 7})
    with pytest.raises(AdapterError, match=r"layers\.0\.self_attn\.v_proj: .*less than the rank 7 .*set r to 3"):
        start(tmp_path / "b", r=2, num_branches=3)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"use_dora": True}, "use_dora: True"), ({"lora_bias": True}, "lora_bias: True")],
)
def test_variants_of_lora_are_refused(options, named, recipe, tmp_path):
    save("lora", tmp_path / "a", r=2, target_modules=["q_proj"], **options)
    message = problem(recipe, init_from=str(tmp_path / "a"))
    assert "variant of LoRA" in message
    assert named in message


@pytest.mark.parametrize("method", ["lora", "multilora"])
def test_an_initialisation_that_changed_the_base_is_refused(method, recipe, tmp_path):
    save("lora", tmp_path / "a", r=2, target_modules=["q_proj"], init_lora_weights="pissa")
    message = problem(recipe, method=method, init_from=str(tmp_path / "a"))
    assert "'pissa', which changes the base" in message


def test_an_adapter_of_another_method(recipe, tmp_path):
    save("ia3", tmp_path / "a", target_modules=["v_proj"], feedforward_modules=[])
    assert "method `ia3`, which `multilora` cannot continue; set adapter.method to ia3" in problem(
        recipe, init_from=str(tmp_path / "a")
    )
    save("multilora", tmp_path / "b", r=2)
    assert "multilora export RUN --to lora" in problem(recipe, method="lora", init_from=str(tmp_path / "b"))


@pytest.mark.parametrize("method", ["lora", "multilora", "ia3"])
def test_damaged_weights(method, tmp_path):
    options = {"target_modules": ["q_proj", "v_proj"], **({"feedforward_modules": []} if method == "ia3" else {"r": 2})}
    save(method, tmp_path, **options)
    path = tmp_path / WEIGHTS
    whole = path.read_bytes()
    state = load(whole)  # `load_file` maps the file, which is overwritten below

    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AdapterError, match=r"weights cannot be read .*damaged"):
        start(tmp_path, method)

    key = sorted(state)[0]
    for value in (float("nan"), float("inf")):
        broken = {name: tensor.clone() for name, tensor in state.items()}
        broken[key].view(-1)[0] = value
        save_file(broken, path)
        with pytest.raises(AdapterError, match=r"1 of .* NaN or infinite values .*q_proj"):
            start(tmp_path, method)

    save_file({name: tensor for name, tensor in state.items() if name != key}, path)
    with pytest.raises(AdapterError, match=r"no weights for .*layers\.0\.self_attn\.q_proj.*save the adapter again"):
        start(tmp_path, method)

    path.write_bytes(whole)
    start(tmp_path, method)


@pytest.mark.parametrize(("source", "method"), [("lora", "lora"), ("lora", "multilora"), ("multilora", "multilora")])
def test_an_adapter_of_another_base(source, method, tmp_path):
    save(source, tmp_path / "deep", lambda: make_llama(num_hidden_layers=6), r=2)
    with pytest.raises(AdapterError, match=r"28 modules that this base does not have \(model\.layers\.2\.mlp"):
        start(tmp_path / "deep", method)
    save(source, tmp_path / "wide", lambda: make_llama(intermediate_size=64), r=2)
    with pytest.raises(AdapterError, match=r"(64.*48|48.*64).*use the base it was trained on"):
        start(tmp_path / "wide", method)


def test_another_recorded_base_is_a_warning(recipe, tmp_path, model_folder, caplog):
    base = multilora.modeling.load_base(Recipe.load(recipe).model)
    scramble(get_peft_model(base, LoraConfig(r=2))).save_pretrained(tmp_path / "a")
    with caplog.at_level(logging.WARNING, logger="multilora"):
        start(tmp_path / "a", r=2, base=lambda: multilora.modeling.load_base(Recipe.load(recipe).model))
        assert caplog.text == ""
        config = tmp_path / "a" / "adapter_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "owner/other"}))
        start(tmp_path / "a", r=2, base=lambda: multilora.modeling.load_base(Recipe.load(recipe).model))
    assert "trained on the base owner/other" in caplog.text
    assert str(model_folder) in caplog.text


def test_changed_weights_of_the_base(tmp_path):
    """An adapter on a base with added tokens contains the embeddings, which are not the bare base's."""
    model = get_peft_model(make_llama(), adapter_config("lora", {"r": 2, "target_modules": ["q_proj"]}))
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    start(tmp_path, r=2)  # the embeddings are those of the base
    state = load((tmp_path / WEIGHTS).read_bytes())
    key = next(key for key in state if "embed_tokens" in key)
    state[key] = state[key] + 1
    save_file(state, tmp_path / WEIGHTS)
    with pytest.raises(AdapterError, match=r"weights of the base that differ .*embed_tokens"):
        start(tmp_path, r=2)


def test_an_adapter_as_the_base_is_refused(run, recipe, tmp_path, model_folder):
    for path in (run.path, run.path / "adapter"):
        with pytest.raises(RecipeError) as caught:
            Recipe.load({**recipe, "model": str(path)})
        (message,) = caught.value.problems
        assert f"`model.name_or_path: {model_folder}` and `adapter: {{init_from: {path}}}`" in message
    full = tmp_path / "full"
    (full / "model").mkdir(parents=True)
    (full / "recipe.yaml").write_text("model: nano\n")
    with pytest.raises(RecipeError, match=f"model.name_or_path: {full / 'model'}"):
        Recipe.load({**recipe, "model": str(full)})


def test_the_start_does_not_depend_on_peft_loading(tmp_path):
    """The saved adapter, loaded by PEFT itself, has the logits that training starts with."""
    model = get_peft_model(make_llama(), adapter_config("multilora", {"r": 2}))
    randomise(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_llama(), Path(tmp_path))
    torch.testing.assert_close(logits(start(tmp_path)), logits(loaded), rtol=0, atol=1e-5)
