"""The update of stacked experts, written as one LoRA per expert and projection."""

from __future__ import annotations

import pytest
import torch
from conftest import make_gpt_oss, randomise
from families import deltas, make_adapted, make_base
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

from multilora import MultiLoraConfig, export_lora
from multilora.errors import AdapterError
from multilora.export.factors import adapter_factors
from multilora.export.lora.unstack import unstack

EXPERTS = "model.layers.1.mlp.experts"


def test_every_expert_has_the_rows_of_its_stack():
    model = make_adapted("qwen3_moe")
    expected = deltas(model)
    factors = unstack(adapter_factors(model))
    assert not factors.experts
    for expert in range(4):
        parts = {
            name: factors.modules[f"{EXPERTS}.{expert}.{name}"].delta()
            for name in ("gate_proj", "up_proj", "down_proj")
        }
        gate_up = torch.cat([parts["gate_proj"], parts["up_proj"]])
        torch.testing.assert_close(gate_up, expected[f"{EXPERTS}.gate_up_proj"][expert], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(parts["down_proj"], expected[f"{EXPERTS}.down_proj"][expert], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", ["down_proj", "gate_up_proj"])
def test_projections_without_an_update_are_zero(target):
    """Readers need all projections of a layer."""
    model = make_adapted("qwen3_moe", target_modules=[], target_parameters=[f"experts.{target}"])
    base = dict(make_base("qwen3_moe").named_parameters())
    factors = unstack(adapter_factors(model))
    gate_up = torch.cat([factors.modules[f"{EXPERTS}.3.{name}_proj"].delta() for name in ("gate", "up")])
    down = factors.modules[f"{EXPERTS}.3.down_proj"].delta()
    assert gate_up.shape == base[f"{EXPERTS}.gate_up_proj"][3].shape
    assert down.shape == base[f"{EXPERTS}.down_proj"][3].shape
    assert bool(gate_up.any()) == (target == "gate_up_proj")
    assert bool(down.any()) == (target == "down_proj")


def test_names_are_those_of_the_published_checkpoint():
    """Mixtral calls the block and its projections otherwise than transformers does."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=2,
    )  # fmt: skip
    targets = ["experts.gate_up_proj", "experts.down_proj"]
    model = get_peft_model(MixtralForCausalLM(config), MultiLoraConfig(target_modules=[], target_parameters=targets))
    names = set(unstack(adapter_factors(model)).modules)
    prefix = "model.layers.0.block_sparse_moe.experts"
    assert names == {f"{prefix}.{expert}.w{part}" for expert in (0, 1) for part in (1, 2, 3)}


def test_stock_peft_reads_one_lora_per_expert(tmp_path):
    model = make_adapted("qwen3_moe")
    folder = export_lora(model, tmp_path / "out", per_expert=True)
    names = load_file(folder / "adapter_model.safetensors")
    assert f"base_model.model.{EXPERTS}.3.gate_proj.lora_A.weight" in names
    loaded = PeftModel.from_pretrained(make_base("qwen3_moe"), str(folder))
    ids = torch.arange(3, 27)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=0, atol=1e-4)


def test_interleaved_stacks_are_refused():
    model = get_peft_model(
        make_gpt_oss(), MultiLoraConfig(target_modules=[], target_parameters=["experts.gate_up_proj"])
    )
    randomise(model)
    with pytest.raises(AdapterError, match=r"gate_up_proj.*`gpt_oss`.*--to merged"):
        unstack(adapter_factors(model))
