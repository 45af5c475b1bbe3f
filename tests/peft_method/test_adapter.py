"""The usual PEFT operations on an adapter, with tiny transformers models."""

from __future__ import annotations

import pytest
import torch
from conftest import make_gpt2, make_llama, randomise
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from multilora import MultiLoraConfig
from multilora.errors import AdapterError
from multilora.peft_method import MultiLoraLayer

IDS = torch.arange(3, 27).reshape(2, 12)
MODELS = {"llama": make_llama, "gpt2": make_gpt2}


def config(**options):
    return MultiLoraConfig(**{"r": 4, "num_branches": 3, "target_modules": "all-linear", **options})


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.fixture(params=MODELS)
def base(request):
    return MODELS[request.param]()


@pytest.mark.parametrize("scaling", ["vector", "scalar"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_untrained_adapter_does_not_change_the_model(dtype, scaling):
    base = make_llama(dtype)
    before = logits(base)
    assert torch.equal(logits(get_peft_model(base, config(scaling=scaling))), before)


def test_the_adapter_changes_the_model(base):
    before = logits(base)
    model = get_peft_model(base, config())
    randomise(model)
    assert (logits(model) - before).abs().max() > 1e-2


@pytest.mark.parametrize("scaling", ["vector", "scalar"])
def test_a_loaded_adapter_equals_the_saved_one(tmp_path, base, scaling):
    model = get_peft_model(base, config(scaling=scaling, lora_alpha=7))
    randomise(model)
    expected = logits(model)
    model.save_pretrained(tmp_path)
    fresh = make_llama() if base.config.model_type == "llama" else make_gpt2()
    assert torch.equal(logits(PeftModel.from_pretrained(fresh, tmp_path)), expected)


def test_merged_equals_unmerged(base):
    model = get_peft_model(base, config())
    randomise(model)
    expected = logits(model)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    merged = model.merge_and_unload(safe_merge=True)
    assert not any(isinstance(module, MultiLoraLayer) for module in merged.modules())
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)


def test_safe_merge_refuses_non_finite_weights():
    model = get_peft_model(make_llama(), config(target_modules=["q_proj"]))
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "multilora_scale" in n).fill_(float("nan"))
    layer = next(module for module in model.modules() if isinstance(module, MultiLoraLayer))
    before = layer.get_base_layer().weight.clone()
    with pytest.raises(AdapterError, match="NaNs detected"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.get_base_layer().weight, before)


def test_safe_merge_of_several_adapters_is_atomic():
    model = get_peft_model(make_llama(), config(target_modules=["q_proj"]))
    model.add_adapter("other", config(target_modules=["q_proj"]))
    randomise(model)
    layer = next(module for module in model.modules() if isinstance(module, MultiLoraLayer))
    with torch.no_grad():
        layer.multilora_scale["other"].fill_(float("nan"))
    before = layer.get_base_layer().weight.clone()
    with pytest.raises(AdapterError, match="The adapter other seems to be broken"):
        layer.merge(safe_merge=True, adapter_names=["default", "other"])
    assert torch.equal(layer.get_base_layer().weight, before)
    assert not layer.merged_adapters


def test_a_disabled_adapter_does_not_change_the_model(base):
    before = logits(base)
    model = get_peft_model(base, config())
    randomise(model)
    after = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)
    assert torch.equal(logits(model), after)


def test_two_adapters_of_different_shape(base):
    before = logits(base)
    model = get_peft_model(base, config())
    randomise(model)
    first = logits(model)
    model.add_adapter("other", config(r=2, num_branches=2, scaling="scalar"))
    model.set_adapter("other")
    assert torch.equal(logits(model), before)
    randomise(model, "other", seed=2)
    second = logits(model)
    assert not torch.equal(first, second)
    assert {n.rsplit(".", 1)[-1] for n, p in model.named_parameters() if p.requires_grad} == {"other"}
    model.set_adapter("default")
    assert torch.equal(logits(model), first)
    model.base_model.set_adapter(["default", "other"])
    layer = next(m for m in model.modules() if isinstance(m, MultiLoraLayer))
    x = torch.randn(3, layer.in_features)
    both = layer(x) - layer.get_base_layer()(x)
    dense = sum(delta_weight(layer, name) for name in ("default", "other"))
    torch.testing.assert_close(both, x @ dense.T, rtol=1e-4, atol=1e-4)
    model.delete_adapter("other")
    model.set_adapter("default")
    assert torch.equal(logits(model), first)


def delta_weight(layer, name):
    """The update as [d_out, d_in], whatever the layout of the base weight."""
    delta = layer.get_delta_weight(name)
    return delta if delta.shape == (layer.out_features, layer.in_features) else delta.T


@pytest.mark.parametrize("missing", ["multilora_scale", "multilora_A", "multilora_B"])
def test_a_checkpoint_with_a_missing_parameter_is_refused(tmp_path, missing):
    """PEFT alone would only warn, and an adapter without its scales has no effect."""
    model = get_peft_model(make_llama(), config())
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    state = load_file(file)
    missing_key = next(key for key in state if missing in key)
    save_file({key: value for key, value in state.items() if key != missing_key}, file, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match=r"lacks 1 of 42 parameters.*" + missing):
        PeftModel.from_pretrained(make_llama(), tmp_path)


@pytest.mark.parametrize("part", ["multilora_scale", "multilora_A", "multilora_B"])
def test_a_checkpoint_with_another_shape_is_refused(tmp_path, part):
    model = get_peft_model(make_llama(), config())
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    state = load_file(file)
    key = next(key for key in state if part in key)
    save_file({**state, key: state[key][:-1].clone()}, file, metadata={"format": "pt"})
    with pytest.raises(
        AdapterError, match=rf"1 of 42 parameters in another shape .*{part}.* is \[\d+, \d+\], expected"
    ):
        PeftModel.from_pretrained(make_llama(), tmp_path)


def test_a_checkpoint_of_another_base_is_refused(tmp_path):
    get_peft_model(make_llama(), config()).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="parameters in another shape"):
        PeftModel.from_pretrained(make_llama(hidden_size=64), tmp_path)


@pytest.mark.parametrize(
    "module", [torch.nn.Embedding(4, 8), torch.nn.Conv1d(4, 8, 1), torch.nn.Conv2d(4, 8, 1), torch.nn.LayerNorm(8)]
)
def test_other_modules_are_refused(module):
    model = torch.nn.Sequential()
    model.add_module("part", module)
    with pytest.raises(AdapterError, match=rf"'part': it is a {type(module).__name__}, .*modules_to_save"):
        get_peft_model(model, MultiLoraConfig(target_modules=["part"]))


def test_the_first_step_changes_only_scales_and_the_second_changes_all():
    model = get_peft_model(make_llama(), config())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    changed = []
    for _ in range(2):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()
        changed.append({n.split(".")[-2] for n, p in model.named_parameters() if not torch.equal(p, before[n])})
    assert changed == [{"multilora_scale"}, {"multilora_A", "multilora_B", "multilora_scale"}]


def test_alpha_and_patterns_reach_the_layers():
    model = get_peft_model(
        make_llama(),
        config(
            r=4,
            lora_alpha=8,
            target_modules=["q_proj", "k_proj", "v_proj"],
            rank_pattern={"q_proj": 2},
            alpha_pattern={"k_proj": 1},
        ),
    )
    layers = {name.rsplit(".", 1)[-1]: m for name, m in model.named_modules() if isinstance(m, MultiLoraLayer)}
    assert layers["q_proj"].multilora_A["default"].shape == (6, 32)
    constants = {name: layer.scaling_constant["default"] for name, layer in layers.items()}
    assert constants == {"q_proj": 4.0, "k_proj": 0.25, "v_proj": 2.0}


def test_default_alpha_is_the_rank_of_each_module():
    model = get_peft_model(make_llama(), config(target_modules=["q_proj", "v_proj"], rank_pattern={"q_proj": 2}))
    assert {m.scaling_constant["default"] for m in model.modules() if isinstance(m, MultiLoraLayer)} == {1.0}


def test_dropout_is_active_only_in_training():
    model = get_peft_model(make_llama(), config(lora_dropout=0.5))
    randomise(model)
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))


def test_an_embedding_is_refused():
    with pytest.raises(AdapterError, match=r"embed_tokens.*Embedding.*linear modules"):
        get_peft_model(make_llama(), config(target_modules=["embed_tokens"]))


def test_all_invalid_options_are_reported_together():
    with pytest.raises(AdapterError) as caught:
        MultiLoraConfig(r=0, num_branches=-1, scaling="matrix", lora_dropout=1.5)
    for part in ("r is 0", "num_branches is -1", "scaling is 'matrix'", "lora_dropout is 1.5"):
        assert part in str(caught.value)


def test_float32_parameters_over_a_bfloat16_base():
    model = get_peft_model(make_llama(torch.bfloat16), config())
    trained = {p.dtype for p in model.parameters() if p.requires_grad}
    assert trained == {torch.float32}
    assert model(IDS).logits.dtype == torch.bfloat16
