"""A merged model has the logits of the unmerged one, and the files of its base."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import make_gpt2, make_gpt_oss, make_llama, make_qwen3_moe, make_tokenizer
from peft import IA3Config, LoHaConfig, LoraConfig, OFTConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from multilora import MultiLoraConfig, export_merged
from multilora.errors import AdapterError, InputError, RunError
from multilora.export.merged.tensor_files import read_layout

IDS = torch.arange(3, 27).reshape(2, 12)
SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
DECODER = {**SIZES, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
T5_SIZES = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2, "vocab_size": 320}
T5_SIZES |= {"decoder_start_token_id": 0}
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]


def make(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    return cls(cls.config_class(**options)).eval()


def make_tied(**options: Any) -> Any:
    return make("Qwen2ForCausalLM", **DECODER, tie_word_embeddings=True, **options)


BASES: dict[str, Any] = {
    "gpt2": make_gpt2,
    "tied qwen2": make_tied,
    "gemma3": lambda: make("Gemma3ForCausalLM", **DECODER, head_dim=8),
    "phi3": lambda: make("Phi3ForCausalLM", **DECODER),
    "mixtral": lambda: make("MixtralForCausalLM", **DECODER, num_local_experts=4),
    "qwen3 moe": make_qwen3_moe,
    "gpt oss": make_gpt_oss,
    "bert": lambda: make("BertForSequenceClassification", **SIZES, num_labels=3),
    "t5": lambda: make("T5ForConditionalGeneration", **T5_SIZES),
}
TASKS = {"bert": "SEQ_CLS", "t5": "SEQ_2_SEQ_LM"}


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    decoder = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    return model.eval()(input_ids=IDS, **decoder).logits


@torch.no_grad()
def train(model: Any, size: float = 0.3) -> Any:
    """Give every trainable parameter another value, as training does."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += size * torch.randn(parameter.shape, generator=generator).to(parameter)
    return model


def save_base(base: Any, folder: Path, **options: Any) -> Any:
    base.save_pretrained(folder, **options)
    make_tokenizer().save_pretrained(folder)
    return type(base).from_pretrained(folder, dtype="auto")


def save_adapter(base: Any, folder: Path, config: Any) -> Any:
    """Adapt a base, save the adapter, and return the adapted model."""
    model = train(get_peft_model(base, config))
    model.save_pretrained(folder)
    return model


def merged_and_expected(base: Any, config: Any, tmp_path: Path, **options: Any) -> tuple[Any, torch.Tensor]:
    """Export a new adapter of a saved base; returns the loaded export, and the logits of the unmerged model."""
    model = save_adapter(save_base(base, tmp_path / "base", **options), tmp_path / "adapter", config)
    export_merged(tmp_path / "adapter", tmp_path / "out")
    merged = type(base).from_pretrained(tmp_path / "out", dtype="auto")
    expected = logits(model)
    assert (logits(base) - expected).abs().max() > 5e-3
    return merged, expected


def check(base: Any, config: Any, tmp_path: Path) -> Any:
    merged, expected = merged_and_expected(base, config, tmp_path)
    # Of the largest logit: the unmerged T5 itself is 1.7e-5 from its logits in float64.
    tolerance = 1e-5 * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=tolerance)
    return merged


@pytest.fixture
def by_shards(caplog):
    """Fails if the model was merged in memory."""
    yield
    assert "merged in memory" not in caplog.text


@pytest.mark.usefixtures("by_shards")
@pytest.mark.parametrize("scaling", ["vector", "scalar"])
@pytest.mark.parametrize("name", BASES)
def test_merged_equals_unmerged(tmp_path, name, scaling):
    base = BASES[name]()
    experts = EXPERTS if any("experts" in key for key in base.state_dict()) else None
    config = MultiLoraConfig(
        r=2,
        scaling=scaling,
        lora_alpha=5,
        target_modules="all-linear",
        target_parameters=experts,
        task_type=TASKS.get(name, "CAUSAL_LM"),
    )
    check(base, config, tmp_path)
    files = read_layout(tmp_path / "base" / "model.safetensors")
    assert read_layout(tmp_path / "out" / "model.safetensors").header == files.header


@pytest.mark.usefixtures("by_shards")
def test_shards_have_the_tensors_of_the_base_and_those_without_an_update_its_bytes(tmp_path):
    config = MultiLoraConfig(target_modules=["q_proj"], layers_to_transform=[1], task_type="CAUSAL_LM")
    base = make_llama(torch.bfloat16)
    base.generation_config.max_new_tokens = 7
    for name in ("LICENSE", "README.md", "chat_template.jinja"):
        (tmp_path / "base").mkdir(exist_ok=True)
        (tmp_path / "base" / name).write_text(name)
    merged, expected = merged_and_expected(base, config, tmp_path, max_shard_size="30KB")
    assert (logits(merged).float() - expected.float()).abs().max() < 0.05
    before, after = (
        {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()} for folder in ("base", "out")
    )
    assert after.pop("README.md") != before.pop("README.md")  # the card of the base does not describe the export
    assert set(before) == set(after)
    changed = {name for name in after if before[name] != after[name]}
    index = json.loads(before["model.safetensors.index.json"])
    assert len(set(index["weight_map"].values())) >= 3
    adapted = "model.layers.1.self_attn.q_proj.weight"
    assert changed == {index["weight_map"][adapted]}
    (shard,) = changed
    old, new = (load_file(tmp_path / folder / shard) for folder in ("base", "out"))
    assert {name for name in old if not torch.equal(old[name], new[name])} == {adapted}
    assert merged.generation_config.max_new_tokens == 7


def test_the_sum_is_rounded_once(tmp_path):
    base = save_base(make_llama(torch.bfloat16), tmp_path / "base")
    model = save_adapter(base, tmp_path / "adapter", MultiLoraConfig(target_modules="all-linear"))
    export_merged(tmp_path / "adapter", tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    for name, module in model.get_base_model().named_modules():
        if hasattr(module, "multilora_A"):
            exact = module.get_base_weight().float() + module.get_delta_weight("default").float()
            assert torch.equal(weights[f"{name}.weight"], exact.bfloat16())


LORA_ON_HEAD_AND_TOKENS: dict[str, Any] = {
    "head": MultiLoraConfig(target_modules=["lm_head"]),
    "embeddings": LoraConfig(target_modules=["embed_tokens", "q_proj"]),
    "both": LoraConfig(target_modules=["embed_tokens", "lm_head"]),
    "saved head": LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "both saved": LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"]),
    "tokens of the head": LoraConfig(target_modules=["q_proj"], trainable_token_indices={"lm_head": [3, 4, 5]}),
}


@pytest.mark.usefixtures("by_shards")
@pytest.mark.parametrize("name", LORA_ON_HEAD_AND_TOKENS)
def test_a_tie_that_the_adapter_breaks_is_untied(tmp_path, name):
    config = LORA_ON_HEAD_AND_TOKENS[name]
    config.task_type = "CAUSAL_LM"
    merged = check(make_tied(), config, tmp_path)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert merged.config.tie_word_embeddings is False
    assert not torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])


@pytest.mark.usefixtures("by_shards")
@pytest.mark.parametrize("tokens", [None, [3, 4, 5]])
def test_a_tie_that_the_adapter_keeps_stays(tmp_path, tokens):
    config = LoraConfig(target_modules=["q_proj"], trainable_token_indices=tokens, task_type="CAUSAL_LM")
    merged = check(make_tied(), config, tmp_path)
    assert merged.config.tie_word_embeddings is True
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")


@pytest.mark.usefixtures("by_shards")
def test_a_broken_tie_adds_its_weight_to_the_index(tmp_path):
    base = save_base(make_tied(), tmp_path / "base", max_shard_size="30KB")
    model = save_adapter(base, tmp_path / "adapter", LoraConfig(target_modules=["lm_head"], task_type="CAUSAL_LM"))
    export_merged(tmp_path / "adapter", tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"]["lm_head.weight"] == index["weight_map"]["model.embed_tokens.weight"]
    shards = set(index["weight_map"].values())
    weights = {key: value for name in shards for key, value in load_file(tmp_path / "out" / name).items()}
    assert weights.keys() == index["weight_map"].keys()
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in weights.values())
    merged = type(base).from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(merged), logits(model), rtol=1e-5, atol=1e-5)


METHODS: dict[str, Any] = {
    "rslora": LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules="all-linear"),
    "dora": LoraConfig(r=4, use_dora=True, target_modules="all-linear"),
    "lora with biases": LoraConfig(target_modules=["q_proj"], bias="all", lora_bias=False),
    "lora bias": LoraConfig(target_modules=["q_proj"], lora_bias=True),
    "loha": LoHaConfig(r=4, target_modules=["q_proj", "down_proj"]),
    "ia3": IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "oft": OFTConfig(oft_block_size=4, r=0, target_modules=["q_proj", "v_proj"]),
    "biases": MultiLoraConfig(target_modules=["q_proj", "k_proj"], bias="multilora_only"),
    "saved modules": MultiLoraConfig(target_modules=["q_proj"], modules_to_save=["norm", "lm_head"]),
    "trained tokens": MultiLoraConfig(target_modules=["q_proj"], trainable_token_indices=[3, 4, 5]),
}


@pytest.mark.usefixtures("by_shards")
@pytest.mark.parametrize("name", METHODS)
def test_methods_merge_layer_by_layer(tmp_path, name):
    config = METHODS[name]
    config.task_type = "CAUSAL_LM"
    check(make_llama(attention_bias=True), config, tmp_path)


def test_a_method_that_needs_the_base_when_it_is_loaded_is_merged_in_memory(tmp_path, caplog):
    base = save_base(make_llama(), tmp_path / "base")
    config = LoraConfig(init_lora_weights="pissa", target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    train(model, 0.02).save_pretrained(tmp_path / "adapter")
    expected = logits(model)
    export_merged(tmp_path / "adapter", tmp_path / "out")
    assert "merged in memory" in caplog.text
    merged = type(base).from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)


def test_a_method_without_an_update_of_the_weights_is_refused(tmp_path):
    base = save_base(make_llama(), tmp_path / "base")
    save_adapter(base, tmp_path / "adapter", PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    with pytest.raises(AdapterError, match="'prompt_tuning' cannot be merged into the base"):
        export_merged(tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("by_shards")
@pytest.mark.parametrize("tied", [False, True])
def test_a_resized_vocabulary_is_exported(tmp_path, tied):
    base = save_base(make_tied() if tied else make_llama(), tmp_path / "base")
    torch.manual_seed(3)
    base.resize_token_embeddings(331, mean_resizing=False)
    model = save_adapter(base, tmp_path / "adapter", MultiLoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<{number}>" for number in range(11)])
    tokenizer.save_pretrained(tmp_path / "adapter")
    expected = logits(model)
    export_merged(tmp_path / "adapter", tmp_path / "out")
    merged = type(base).from_pretrained(tmp_path / "out")
    assert merged.config.vocab_size == 331
    torch.testing.assert_close(logits(merged), expected, rtol=1e-5, atol=1e-5)
    assert "<10>" in transformers.AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()


@pytest.mark.usefixtures("by_shards")
def test_a_head_that_the_base_does_not_have_is_added(tmp_path):
    make("BertForMaskedLM", **SIZES).save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    base = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    with torch.no_grad():  # transformers initialises a missing pooler with the head
        for parameter in base.bert.pooler.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape))
    config = LoraConfig(target_modules=["query"], modules_to_save=["classifier", "pooler"], task_type="SEQ_CLS")
    model = save_adapter(base, tmp_path / "adapter", config)
    export_merged(tmp_path / "adapter", tmp_path / "out")
    merged = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert merged.config.architectures == ["BertForSequenceClassification"]
    torch.testing.assert_close(logits(merged), logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "tied qwen2", "mixtral", "bert"])
def test_a_model_in_memory_is_merged_and_unchanged(tmp_path, name):
    base = BASES[name]()
    experts = EXPERTS if name == "mixtral" else None
    model = train(get_peft_model(base, MultiLoraConfig(target_modules="all-linear", target_parameters=experts)))
    expected = logits(model)
    before = {key: (value, value.clone()) for key, value in model.state_dict(keep_vars=True).items()}
    export_merged(model, tmp_path / "out")
    merged = type(base).from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(merged), expected, rtol=1e-5, atol=1e-5)
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(before)
    for key, (value, copy) in before.items():
        assert after[key] is value
        assert torch.equal(value, copy)


@pytest.fixture
def adapter(tmp_path):
    """An adapter of a LLaMA in at least three shards."""
    base = save_base(make_llama(), tmp_path / "base", max_shard_size="60KB")
    save_adapter(base, tmp_path / "adapter", MultiLoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    return tmp_path / "adapter"


def damage(folder: Path, kind: str) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    shards = sorted(set(index.values()))
    path = folder / shards[1]
    weights = load_file(path)
    first = next(name for name in weights if "proj" in name)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    elif kind == "shard elsewhere":
        path.rename(folder.parent / "stray.safetensors")
        moved = {name: "../stray.safetensors" if shard == path.name else shard for name, shard in index.items()}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": moved}))
    elif kind == "missing shard":
        path.unlink()
    elif kind == "wrong shape":
        save_file({**weights, first: weights[first][:-1].contiguous()}, path, {"format": "pt"})
    elif kind == "missing tensor":
        save_file({name: value for name, value in weights.items() if name != first}, path, {"format": "pt"})
    elif kind == "integers":
        save_file({**weights, first: weights[first].to(torch.int8)}, path, {"format": "pt"})
    elif kind == "infinite":
        weights[first][0, 0] = torch.inf
        save_file(weights, path, {"format": "pt"})


@pytest.mark.parametrize(
    "kind", ["truncated", "missing shard", "shard elsewhere", "wrong shape", "missing tensor", "integers", "infinite"]
)
def test_a_damaged_base_is_refused_and_nothing_is_left(adapter, tmp_path, kind):
    damage(tmp_path / "base", kind)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises((InputError, RunError)) as caught:
        export_merged(adapter, tmp_path / "new" / "out")
    assert "bug" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_full_disk_is_noticed_before_the_work_or_leaves_nothing(adapter, tmp_path, monkeypatch):
    import shutil

    from multilora.export.merged.tensor_files import TensorWriter

    def full(self, position, data):
        raise OSError(28, "No space left on device", str(self.path))

    before = sorted(path.name for path in tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 9, 9))
        with pytest.raises(RunError, match=r"needs .* GB and the disk has 0.00 GB free; free some space"):
            export_merged(adapter, tmp_path / "out")
    monkeypatch.setattr(TensorWriter, "_write", full)
    with pytest.raises(RunError, match="No space left on device; free some space"):
        export_merged(adapter, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_merged_weight_that_overflows_is_refused(tmp_path):
    base = save_base(make_llama(torch.float16), tmp_path / "base")
    model = get_peft_model(base, MultiLoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    train(model, 200.0).save_pretrained(tmp_path / "adapter")
    with pytest.raises(AdapterError, match=r"q_proj.weight: the merged weight is not finite in float16"):
        export_merged(tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_quantized_checkpoint_is_dequantized(tmp_path, caplog):
    pytest.importorskip("bitsandbytes")
    make_llama(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "float")
    make_tokenizer().save_pretrained(tmp_path / "base")
    quantization = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    base = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "float", quantization_config=quantization)
    base.save_pretrained(tmp_path / "base")
    base = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    config = MultiLoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = save_adapter(base, tmp_path / "adapter", config)
    caplog.set_level(logging.WARNING)
    export_merged(tmp_path / "adapter", tmp_path / "out")
    assert "dequantized" in caplog.text
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    merged = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    torch.testing.assert_close(logits(merged), logits(model).float(), rtol=0.05, atol=0.05)
