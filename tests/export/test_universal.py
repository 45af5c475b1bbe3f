"""One LoRA that every reader understands: one rank, alpha equal to it, no patterns, the function of the original."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, make_base, outputs, scramble
from conftest import make_gpt2, make_gpt_oss, make_llama, make_tokenizer
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from multilora import MultiLoraConfig, export_lora
from multilora.errors import AdapterError
from multilora.export.lora.export_lora import write_lora
from multilora.export.sources.source import open_source

FEW = 1e-5  # of the largest logit: float32 rounding


def saved_base(name: str, folder: Path) -> Path:
    make_base(name).save_pretrained(folder / "base")
    make_tokenizer().save_pretrained(folder / "base")
    return folder / "base"


def load_saved(name: str, folder: Path):
    return type(make_base(name)).from_pretrained(folder, dtype=torch.float32)


def multilora_config(name: str, **options) -> MultiLoraConfig:
    task_type, _, more = ARCHITECTURES[name]
    values = {"r": 2, "num_branches": 3, "target_modules": "all-linear", "task_type": task_type, **more, **options}
    return MultiLoraConfig(**values)


def check_universal(folder: Path, rank: int) -> None:
    """What the readers need, see docs/hand_over.md."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], type(config["lora_alpha"])) == (rank, rank, int)
    assert not any(config[key] for key in ("rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias"))
    assert config["target_modules"] == sorted(config["target_modules"])
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        if "lora_" in name and ".experts." not in name:
            assert rank in tensor.shape[-2:] or rank == tensor.shape[0], name
        assert tensor.dtype == torch.float32
    for file in folder.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) & 0o444 == 0o444, file


@pytest.mark.parametrize("scaling", ["vector", "scalar"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_saved_adapter_of_every_architecture(tmp_path, name, scaling):
    base = saved_base(name, tmp_path)
    model = scramble(get_peft_model(load_saved(name, base), multilora_config(name, scaling=scaling)))
    model.save_pretrained(tmp_path / "adapter")
    expected = outputs(model)
    assert (expected - outputs(load_saved(name, base))).abs().max() > 0.1
    written = write_lora(open_source(tmp_path / "adapter"), tmp_path / "out")
    assert written.rank == 6
    assert written.proof.difference <= written.proof.tolerance
    check_universal(tmp_path / "out", 6)
    loaded = PeftModel.from_pretrained(load_saved(name, base), tmp_path / "out")
    limit = FEW * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(outputs(loaded), expected, rtol=0, atol=limit)
    assert (tmp_path / "out" / "tokenizer.json").is_file()


@pytest.mark.usefixtures("new_process")
def test_a_classifier_is_proved_in_a_process_of_its_own(tmp_path):
    base = saved_base("bert classifier", tmp_path)
    model = scramble(get_peft_model(load_saved("bert classifier", base), multilora_config("bert classifier")))
    model.save_pretrained(tmp_path / "adapter")
    proof = write_lora(open_source(tmp_path / "adapter"), tmp_path / "out").proof
    assert proof.reader.startswith("transformers")
    assert proof.difference <= proof.tolerance


@pytest.mark.parametrize("num_branches", [1, 3, 5])
@pytest.mark.parametrize("make", [make_llama, make_gpt2])
def test_any_number_of_branches_patterns_and_rslora(tmp_path, make, num_branches):
    config = MultiLoraConfig(
        r=2,
        num_branches=num_branches,
        lora_alpha=3,
        use_rslora=True,
        target_modules="all-linear",
        rank_pattern={"q_proj": 4, "c_attn": 4, "down_proj": 1},
        alpha_pattern={"v_proj": 9, "c_proj": 9},
    )
    model = scramble(get_peft_model(make(), config))
    folder = export_lora(model, tmp_path / "out")
    check_universal(folder, 4 * num_branches)
    assert json.loads((folder / "adapter_config.json").read_text())["fan_in_fan_out"] is (make is make_gpt2)
    torch.testing.assert_close(outputs(PeftModel.from_pretrained(make(), folder)), outputs(model), rtol=1e-5, atol=1e-5)
    ragged = export_lora(model, tmp_path / "ragged", ragged=True)
    assert json.loads((ragged / "adapter_config.json").read_text())["rank_pattern"]
    sizes = [(item / "adapter_model.safetensors").stat().st_size for item in (ragged, folder)]
    assert sizes[0] < sizes[1]
    torch.testing.assert_close(outputs(PeftModel.from_pretrained(make(), ragged)), outputs(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"lora_alpha": 3, "use_rslora": True, "rank_pattern": {"q_proj": 5}, "alpha_pattern": {"v_proj": 7}},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [3, 4, 5]},
        {"target_modules": ["q_proj"], "layers_to_transform": [1]},
        {"target_modules": r".*\.1\..*\.(q|v)_proj"},
    ],
    ids=["rslora and patterns", "embeddings", "saved head", "tokens", "one layer", "regular expression"],
)
def test_a_lora_made_elsewhere(tmp_path, options):
    base = saved_base("llama", tmp_path)
    config = LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **options})
    model = scramble(get_peft_model(load_saved("llama", base), config))
    model.save_pretrained(tmp_path / "adapter")
    expected = outputs(model)
    for source, out in ((tmp_path / "adapter", "from folder"), (model, "from memory")):
        folder = export_lora(source, tmp_path / out)
        check_universal(folder, 5 if "rank_pattern" in options else 4)
        loaded = PeftModel.from_pretrained(load_saved("llama", base), folder)
        assert {name for name, _ in loaded.named_modules() if name.endswith("lora_A")} == {
            name for name, _ in model.named_modules() if name.endswith("lora_A")
        }
        torch.testing.assert_close(outputs(loaded), expected, rtol=1e-5, atol=1e-5)


def test_embeddings_of_a_resized_vocabulary_of_a_saved_adapter(tmp_path):
    base = saved_base("llama", tmp_path)
    larger = load_saved("llama", base)
    larger.resize_token_embeddings(330)
    model = scramble(get_peft_model(larger, multilora_config("llama", target_modules=["q_proj"])))
    model.save_pretrained(tmp_path / "adapter")
    source = open_source(tmp_path / "adapter")
    assert set(source.factors().saved) == {"model.embed_tokens.weight", "lm_head.weight"}
    torch.testing.assert_close(outputs(source.load_model()), outputs(model), rtol=1e-5, atol=1e-5)
    folder = export_lora(source.saved.folder, tmp_path / "out")
    resized = load_saved("llama", base)
    resized.resize_token_embeddings(330)
    torch.testing.assert_close(
        outputs(PeftModel.from_pretrained(resized, folder)), outputs(model), rtol=1e-5, atol=1e-5
    )


def test_weights_of_the_base_in_the_file_are_not_exported_if_they_are_the_base_s(tmp_path):
    base = saved_base("llama", tmp_path)
    model = scramble(get_peft_model(load_saved("llama", base), multilora_config("llama")))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    assert any("embed_tokens" in name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    assert open_source(tmp_path / "adapter").factors().saved == {}


def test_factors_of_a_saved_adapter_do_not_load_the_base(tmp_path, monkeypatch):
    base = saved_base("llama", tmp_path)
    scramble(get_peft_model(load_saved("llama", base), multilora_config("llama"))).save_pretrained(tmp_path / "adapter")
    (base / "model.safetensors").unlink()
    factors = open_source(tmp_path / "adapter").factors()
    assert len(factors.modules) == 14
    assert factors.largest_rank == 6


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LoraConfig(target_modules=["q_proj"], use_dora=True), "use_dora: True.*--to merged"),
        (LoraConfig(target_modules=["q_proj"], lora_bias=True), "lora_bias.*--to merged"),
    ],
)
def test_an_update_that_is_no_product_is_refused(tmp_path, config, message):
    base = saved_base("llama", tmp_path)
    config.task_type = "CAUSAL_LM"
    model = scramble(get_peft_model(load_saved("llama", base), config))
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(AdapterError, match=message):
        export_lora(tmp_path / "adapter", tmp_path / "out")
    with pytest.raises(AdapterError, match="--to merged"):
        export_lora(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_matrix_and_a_stack_of_one_module(tmp_path):
    """PEFT nests their wrappers; which is inside depends on the module, not on the shapes."""
    names = ["experts.gate_up_proj", "experts.gate_up_proj_bias", "experts.down_proj"]
    model = get_peft_model(make_gpt_oss(), MultiLoraConfig(r=2, target_modules=["q_proj"], target_parameters=names))
    scramble(model)
    assert sorted(map(str, open_source(model).factors().parameters)) == [
        f"model.layers.{layer}.mlp.experts.gate_up_proj_bias" for layer in range(2)
    ]
    loaded = PeftModel.from_pretrained(make_gpt_oss(), export_lora(model, tmp_path / "out"))
    torch.testing.assert_close(outputs(loaded), outputs(model), rtol=1e-5, atol=1e-5)
