"""The stacked experts of a mixture of experts, in both layouts of transformers."""

from __future__ import annotations

import pytest
import reference
import torch
from conftest import make_gpt_oss, make_qwen3_moe, randomise
from peft import LoraConfig, PeftModel, get_peft_model

from multilora import MultiLoraConfig, convert_to_lora, export_lora
from multilora.analysis.analyze import spectrum_of
from multilora.errors import AdapterError
from multilora.peft_method import ParamWrapper

IDS = torch.arange(3, 27).reshape(2, 12)
STACKS = ["experts.gate_up_proj", "experts.down_proj"]


@pytest.fixture(params=[make_qwen3_moe, make_gpt_oss], ids=["qwen3_moe", "gpt_oss"])
def make(request):
    return request.param


def config(**options):
    return MultiLoraConfig(**{"r": 2, "target_modules": ["q_proj"], "target_parameters": STACKS, **options})


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("scaling", ["vector", "scalar"])
def test_starts_at_the_base_and_every_expert_gets_gradients(make, scaling):
    before = logits(make())
    model = get_peft_model(make(), config(scaling=scaling))
    assert torch.equal(logits(model), before)
    randomise(model)
    assert (logits(model) - before).abs().max() > 1e-2
    model.train()(torch.arange(320)[None], labels=torch.arange(320)[None]).loss.backward()
    wrappers = [module for module in model.modules() if isinstance(module, ParamWrapper)]
    assert len(wrappers) == 4
    for wrapper in wrappers:
        for part in wrapper.adapter_layer_names:
            gradient = getattr(wrapper, part)["default"].grad
            assert gradient.shape[0] == 4
            assert (gradient.flatten(1).abs().amax(1) > 0).all()


@pytest.mark.parametrize("scaling", ["vector", "scalar"])
def test_each_expert_has_its_own_branches(make, scaling):
    model = get_peft_model(make(), config(scaling=scaling, lora_alpha=6))
    randomise(model)
    model = model.double()
    untouched = make().double()
    for name, module in model.get_base_model().named_modules():
        if not isinstance(module, ParamWrapper):
            continue
        A, B, scale = (getattr(module, part)["default"].detach() for part in module.adapter_layer_names)
        update = module.get_delta_weight("default")
        assert update.shape == untouched.get_parameter(module.full_name(name)).shape
        for expert in range(4):
            scales = [scale[expert, :, i] if scaling == "vector" else scale[expert, 0, i] for i in range(3)]
            expected = reference.delta_weight(list(A[expert].chunk(3)), list(B[expert].chunk(3, dim=1)), scales, 3.0)
            delta = update[expert].T if module.transposed else update[expert]
            torch.testing.assert_close(delta, expected, rtol=1e-9, atol=1e-9)


def test_saved_merged_and_unloaded_models_are_equal(tmp_path, make):
    model = get_peft_model(make(), config())
    randomise(model)
    expected = logits(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(make(), tmp_path)), expected)
    assert torch.equal(logits(PeftModel.from_pretrained(make(), tmp_path, low_cpu_mem_usage=True)), expected)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(make()))
    model.merge_adapter()
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    merged = model.merge_and_unload(safe_merge=True)
    assert not any(isinstance(module, ParamWrapper) for module in merged.modules())
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-5)


def test_checkpointing_changes_no_gradient(make):
    gradients = []
    for checkpointing in (False, True):
        model = get_peft_model(make(), config())
        randomise(model)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()(IDS, labels=IDS).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.equal(plain, checkpointed)


def test_two_adapters_exported_as_lora(tmp_path, make):
    model = get_peft_model(make(), config())
    model.add_adapter("other", config(r=3, num_branches=2, scaling="scalar"))
    randomise(model)
    randomise(model, "other", seed=2)
    expected = {}
    for name in ("other", "default"):
        model.set_adapter(name)
        expected[name] = logits(model)
        folder = export_lora(model, tmp_path / name, adapter_name=name)
        torch.testing.assert_close(logits(PeftModel.from_pretrained(make(), folder)), expected[name])
    lora = convert_to_lora(model)
    assert all(isinstance(config, LoraConfig) for config in lora.peft_config.values())
    for name, expected_logits in expected.items():
        lora.set_adapter(name)
        torch.testing.assert_close(logits(lora), expected_logits)


def test_the_spectrum_of_each_expert_equals_that_of_the_dense_update(tmp_path, make):
    model = get_peft_model(make(), config())
    randomise(model)
    matrices = {m.name: m for m in spectrum_of(model).matrices}
    assert len(matrices) == 2 * (1 + 2 * 4)
    experts = model.get_base_model().model.layers[0].mlp.experts
    dense = torch.linalg.svdvals(experts.get_delta_weight("default")[1].double())
    spectrum = matrices[f"model.layers.0.mlp.experts.{experts.parameter_name}[1]"]
    assert spectrum.kind == experts.parameter_name
    torch.testing.assert_close(torch.tensor(spectrum.singular_values), dense[:6].float(), rtol=1e-4, atol=1e-5)
    lora = PeftModel.from_pretrained(make(), export_lora(model, tmp_path / "lora"))
    for matrix in spectrum_of(lora).matrices:
        assert matrix.singular_values == pytest.approx(matrices[matrix.name].singular_values, rel=1e-4, abs=1e-6)


def test_unsupported_options_of_stacks_are_refused(make):
    with pytest.raises(AdapterError, match="lora_dropout cannot be used with target_parameters"):
        config(lora_dropout=0.1)
    model = get_peft_model(make(), config())
    with pytest.raises(AdapterError, match=r"adapter 'default' has .*must name the same parameters"):
        model.add_adapter("other", config(target_parameters=STACKS[:1]))
    with pytest.raises(AdapterError, match=r"run one batch per adapter"):
        model.eval()(IDS, adapter_names=["default", "__base__"])
    with pytest.raises(AdapterError, match=r"Norm.*of shape \[32\], expected a floating-point matrix"):
        get_peft_model(make(), config(target_parameters=["input_layernorm.weight"]))
