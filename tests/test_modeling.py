"""A base is loaded as it was saved, or not at all."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import make_llama
from peft import LoraConfig, get_peft_model
from safetensors.torch import load, save_file
from transformers import BartConfig, BartForCausalLM, BertConfig, BertLMHeadModel

from multilora import base_checks
from multilora.errors import AdapterError, InputError
from multilora.modeling import attach, load_base, load_model_config
from multilora.recipe.schema import AdapterSection, ModelSection

WEIGHTS = "model.safetensors"


def section(folder, **options):
    return ModelSection(name_or_path=str(folder), dtype="float32", **options)


def rewrite(folder, change):
    state = load((folder / WEIGHTS).read_bytes())
    change(state)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def bert(**options):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return BertConfig(vocab_size=320, **sizes, **options)


@pytest.mark.parametrize("tied", [False, True])
def test_a_complete_checkpoint_is_loaded_exactly(tied, tmp_path):
    model = make_llama(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    assert ("lm_head.weight" in load((tmp_path / WEIGHTS).read_bytes())) is not tied
    loaded = load_base(section(tmp_path)).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("trainable", [False, True])
def test_missing_weights_are_named(trainable, tmp_path):
    make_llama().save_pretrained(tmp_path)
    rewrite(tmp_path, lambda state: [state.pop(name) for name in ("lm_head.weight", "model.norm.weight")])
    with pytest.raises(InputError, match=r"lacks 2 weights of LlamaForCausalLM \(lm_head\.weight, model\.norm\.weight"):
        load_base(section(tmp_path), trainable=trainable)


def test_a_config_with_more_layers_than_the_weights(tmp_path):
    make_llama().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_hidden_layers": 3}))
    with pytest.raises(InputError, match=r"lacks 9 weights .*model\.layers\.2\."):
        load_base(section(tmp_path))


def test_weights_of_another_shape_are_named(tmp_path):
    make_llama().save_pretrained(tmp_path)
    rewrite(tmp_path, lambda state: state.update({"model.norm.weight": torch.ones(16)}))
    with pytest.raises(InputError, match=r"1 weights in another .*model\.norm\.weight is \[16\], expected \[32\]"):
        load_base(section(tmp_path))


def test_an_encoder_is_refused(tmp_path):
    BertLMHeadModel(bert()).save_pretrained(tmp_path)
    for load_any in (load_model_config, load_base):
        with pytest.raises(InputError, match=r"is an encoder .*bert with is_decoder: false"):
            load_any(section(tmp_path))


def test_decoders_are_not_encoders(tmp_path):
    BertLMHeadModel(bert(is_decoder=True)).save_pretrained(tmp_path / "bert")
    sizes = {"d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32}
    BartForCausalLM(BartConfig(vocab_size=320, **sizes)).save_pretrained(tmp_path / "bart")
    for name in ("bert", "bart"):
        load_model_config(section(tmp_path / name))
        load_base(section(tmp_path / name))


def test_transformers_must_not_load_an_adapter_with_the_base(tmp_path, model_folder):
    """As it does for an adapter on the hub, which a recipe cannot be checked for."""
    base = load_base(section(model_folder))
    get_peft_model(base, LoraConfig(r=2)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"is an adapter.*adapter\.init_from"):
        load_base(section(tmp_path))


def adapter(**options):
    return AdapterSection.model_validate({"method": "multilora", "r": 2, **options})


@pytest.mark.parametrize("method", ["multilora", "lora"])
def test_modules_to_save_must_exist(method):
    with pytest.raises(AdapterError, match=r"called 'nope', 'lm_haed' \(did you mean 'lm_head'\?\); its modules are "):
        attach(make_llama(), adapter(method=method, modules_to_save=["nope", "lm_head", "lm_haed"]), seed=0)
    model = attach(make_llama(), adapter(method=method, modules_to_save=["lm_head", "model.norm"]), seed=0)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.split(".modules_to_save")[0] for name in trained if "modules_to_save" in name} == {
        "base_model.model.lm_head",
        "base_model.model.model.norm",
    }


@pytest.mark.parametrize(
    ("capabilities", "slow"),
    [
        ({"architecture": "x86_64", "avx2": True}, ["bfloat16", "float16"]),
        ({"architecture": "x86_64", "avx512_bf16": True}, ["float16"]),
        ({"architecture": "x86_64", "amx_bf16": True, "amx_fp16": True}, []),
        ({"architecture": "aarch64"}, []),  # not known
    ],
)
def test_a_dtype_without_instructions_on_this_cpu_is_warned_of(monkeypatch, caplog, capabilities, slow):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    for cached in (base_checks.is_slow_on_cpu, base_checks.warn_of_slow_dtype):
        cached.cache_clear()
    for dtype in ("float32", "bfloat16", "float16", "bfloat16"):
        base_checks.warn_of_slow_dtype(dtype)
    warned = [record.args[0] for record in caplog.records]
    assert warned == slow  # once each
    for cached in (base_checks.is_slow_on_cpu, base_checks.warn_of_slow_dtype):
        cached.cache_clear()
