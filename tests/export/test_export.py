"""Exported models equal the original, also in a process that does not import multilora."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_gpt2, make_llama, randomise
from peft import IA3Config, PeftModel, get_peft_model

from multilora import MultiLoraConfig, convert_to_lora, export_lora
from multilora.errors import AdapterError, RunDirectoryError

IDS = torch.arange(3, 27).reshape(2, 12)

PEFT_ONLY = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, kind = sys.argv[1:4]
ids = torch.arange(3, 27).reshape(2, 12)
if kind == "lora":
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
else:
    model = AutoModelForCausalLM.from_pretrained(adapter, dtype=torch.float32)
with torch.no_grad():
    logits = model.eval()(ids).logits
assert "multilora" not in sys.modules
torch.save(logits, sys.argv[4])
"""


def peft_only_logits(base: Path, exported: Path, kind: str, tmp_path: Path) -> torch.Tensor:
    out = tmp_path / f"{kind}.pt"
    subprocess.run([sys.executable, "-c", PEFT_ONLY, base, exported, kind, out], check=True, capture_output=True)
    return torch.load(out)


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def test_both_exports_of_a_run_have_the_same_logits(recipe, tmp_path, model_folder):
    import multilora

    run = multilora.train(recipe, ["training.max_steps=20", "training.learning_rate=0.05"])
    expected = logits(run.load_model())
    assert (expected - logits(run.load_base())).abs().max() > 1e-2
    lora = multilora.export_lora(run, tmp_path / "lora")
    merged = multilora.export_merged(run, tmp_path / "merged")
    for kind, folder in (("lora", lora), ("merged", merged)):
        difference = (peft_only_logits(model_folder, folder, kind, tmp_path) - expected).abs().max()
        assert difference < 1e-5, kind


@pytest.mark.parametrize("make", [make_llama, make_gpt2])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scaling": "scalar", "lora_alpha": 3, "use_rslora": True},
        {"rank_pattern": {"q_proj": 2, "c_attn": 2}, "alpha_pattern": {"v_proj": 9, "c_proj": 9}},
        {"bias": "multilora_only"},
    ],
    ids=["plain", "scalar-rslora", "patterns", "bias"],
)
def test_exported_adapter_equals_the_original(tmp_path, make, options):
    model = get_peft_model(
        make(), MultiLoraConfig(**{"r": 4, "num_branches": 3, "target_modules": "all-linear", **options})
    )
    randomise(model)
    if options.get("bias"):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("base_layer.bias"):
                    parameter.add_(0.3)
    folder = export_lora(model, tmp_path / "out")
    torch.testing.assert_close(logits(PeftModel.from_pretrained(make(), folder)), logits(model), rtol=1e-5, atol=1e-5)


def test_modules_to_save_are_exported(tmp_path):
    model = get_peft_model(make_llama(), MultiLoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    randomise(model)
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["default"].weight.mul_(1.5)
    folder = export_lora(model, tmp_path / "out")
    assert torch.equal(logits(PeftModel.from_pretrained(make_llama(), folder)), logits(model))


def test_trained_token_embeddings_are_exported(tmp_path):
    model = get_peft_model(make_llama(), MultiLoraConfig(target_modules=["q_proj"], trainable_token_indices=[3, 4, 5]))
    randomise(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "trainable_tokens_delta" in name:
                parameter.add_(0.5)
    expected = logits(model)
    folder = export_lora(model, tmp_path / "out")
    assert torch.equal(logits(PeftModel.from_pretrained(make_llama(), folder)), expected)


def test_export_of_one_of_several_adapters(tmp_path):
    model = get_peft_model(make_llama(), MultiLoraConfig(target_modules=["q_proj", "v_proj"]))
    model.add_adapter("other", MultiLoraConfig(r=2, num_branches=2, target_modules=["up_proj"]))
    randomise(model, "other")
    model.set_adapter("other")
    folder = export_lora(model, tmp_path / "out", adapter_name="other")
    loaded = PeftModel.from_pretrained(make_llama(), folder)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-5)


def test_converted_adapters_can_be_combined():
    model = get_peft_model(make_llama(), MultiLoraConfig(target_modules="all-linear"))
    model.add_adapter("other", MultiLoraConfig(r=2, num_branches=2, target_modules="all-linear"))
    randomise(model)
    randomise(model, "other", seed=2)
    x = torch.randn(5, 32)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    updates = {name: x @ layer.get_delta_weight(name).T for name in ("default", "other")}
    expected = 0.3 * updates["default"] - 0.5 * updates["other"]
    lora = convert_to_lora(model)
    assert lora.active_adapters == ["default"]
    lora.add_weighted_adapter(["default", "other"], [0.3, -0.5], "mean", combination_type="cat")
    lora.set_adapter("mean")
    layer = lora.base_model.model.model.layers[0].self_attn.q_proj
    torch.testing.assert_close(layer(x) - layer.base_layer(x), expected, rtol=1e-4, atol=1e-5)


def test_conversion_keeps_every_adapter_and_the_base():
    model = get_peft_model(make_llama(), MultiLoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    model.add_adapter("other", MultiLoraConfig(target_modules=["v_proj"], lora_dropout=0.3))
    randomise(model)
    randomise(model, "other", seed=2)
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["default"].weight.mul_(1.5)

    def all_logits(converted):
        results = {}
        for name in ("default", "other"):
            converted.set_adapter(name)
            results[name] = logits(converted)
        with converted.disable_adapter():
            results["base"] = logits(converted)
        return results

    expected = all_logits(model)
    model.set_adapter("other", inference_mode=True)
    lora = convert_to_lora(model)
    assert lora.active_adapter == "other"
    assert not any(parameter.requires_grad for parameter in lora.parameters())
    assert lora.peft_config["other"].lora_dropout == 0.3
    for name, value in all_logits(lora).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5, msg=name)


def test_embeddings_of_a_resized_vocabulary_are_exported(tmp_path):
    make_llama().save_pretrained(tmp_path / "base")
    base = type(make_llama()).from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(330)
    model = get_peft_model(base, MultiLoraConfig(target_modules=["q_proj"]))
    randomise(model)
    expected = logits(model)
    folder = export_lora(model, tmp_path / "out")
    resized = type(make_llama()).from_pretrained(tmp_path / "base")
    resized.resize_token_embeddings(330)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(resized, folder)), expected, rtol=1e-5, atol=1e-5)


def test_converting_a_merged_adapter_raises():
    model = get_peft_model(make_llama(), MultiLoraConfig(target_modules=["q_proj"]))
    model.merge_adapter()
    with pytest.raises(AdapterError, match="unmerge_adapter"):
        convert_to_lora(model)


def test_exporting_another_method_raises(tmp_path):
    model = get_peft_model(make_llama(), IA3Config(target_modules=["q_proj"], feedforward_modules=[]))
    with pytest.raises(AdapterError, match=r"method `ia3` on model.layers.0.self_attn.q_proj.*--to merged"):
        export_lora(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_exporting_to_a_non_empty_folder_raises(tmp_path):
    (tmp_path / "file").write_text("mine")
    model = get_peft_model(make_llama(), MultiLoraConfig(target_modules=["q_proj"]))
    with pytest.raises(RunDirectoryError, match="is not empty"):
        export_lora(model, tmp_path)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["file"]
