"""Adapters of stock PEFT, runs and pairs of checkpoints, analysed by path alone."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
from conftest import make_gpt2, make_llama, make_qwen3_moe, randomise
from peft import LoKrConfig, LoraConfig, PeftModel, TrainableTokensConfig, get_peft_model
from transformers import AutoModelForCausalLM

from multilora import MultiLoraConfig, analyze
from multilora.analysis.analyze import compare_updates
from multilora.analysis.compare import Options
from multilora.analysis.factor_sources import FactorFile
from multilora.analysis.sources import open_updates
from multilora.errors import AdapterError, InputError, RunDirectoryError

LINEAR = ["q_proj", "down_proj"]


def tune(folder, by=0.02):
    """A fine-tuned copy of a saved model."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += by * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Bases `llama` and `gpt2`, a fine-tuned `full`, and adapters made by PEFT."""
    path = tmp_path_factory.mktemp("models")
    make_llama().save_pretrained(path / "llama")
    make_gpt2().save_pretrained(path / "gpt2")
    tune(path / "llama").save_pretrained(path / "full", max_shard_size="20KB")
    plain = {"r": 4, "lora_alpha": 6, "init_lora_weights": False}
    configs = {
        "lora": LoraConfig(
            **plain, target_modules=LINEAR, rank_pattern={"layers.0.*q_proj": 2}, alpha_pattern={"down_proj": 9}
        ),
        "rslora": LoraConfig(**plain, target_modules=LINEAR, use_rslora=True),
        "dora": LoraConfig(**plain, target_modules=LINEAR, use_dora=True),
        "pissa": LoraConfig(r=4, target_modules=LINEAR, init_lora_weights="pissa"),
        "lokr": LoKrConfig(r=4, target_modules=LINEAR, init_weights=False),
        "embedding": LoraConfig(**plain, target_modules=["q_proj", "embed_tokens"]),
        "tokens": TrainableTokensConfig(token_indices=[5, 9]),
        "multilora": MultiLoraConfig(
            r=2, num_branches=3, lora_alpha=5, use_rslora=True, target_modules=LINEAR, alpha_pattern={"q_proj": 7}
        ),
        "scalar": MultiLoraConfig(
            r=2, num_branches=2, scaling="scalar", target_modules=LINEAR, modules_to_save=["lm_head"]
        ),
    }
    for name, config in configs.items():
        save(path / "llama", path / name, config)
    save(path / "gpt2", path / "conv1d", MultiLoraConfig(r=2, num_branches=3, target_modules=["c_attn", "c_proj"]))
    return path


def save(base, out, config):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    randomise(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "multilora" not in name:
                parameter += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(out)


def dense_values(base, adapter, name):
    """Singular values of merged - base, by loading both and merging in float64."""
    before = AutoModelForCausalLM.from_pretrained(base).double()
    if (adapter / "adapter_config.json").exists():
        start = AutoModelForCausalLM.from_pretrained(base)
        after = PeftModel.from_pretrained(start, str(adapter)).double().merge_and_unload()
    else:
        after = AutoModelForCausalLM.from_pretrained(adapter).double()
    weights = [model.get_submodule(name).weight.detach() for model in (after, before)]
    return torch.linalg.svdvals(weights[0] - weights[1])


METHODS = ["lora", "rslora", "dora", "pissa", "lokr", "embedding", "tokens", "multilora", "scalar", "conv1d"]


@pytest.mark.parametrize("name", METHODS)
def test_adapters_by_path_alone_equal_the_dense_difference(name, folder):
    spectrum = analyze(folder / name)
    base = folder / ("gpt2" if name == "conv1d" else "llama")
    changed = [matrix for matrix in spectrum.matrices if matrix.measures.norm > 0]
    assert {m.kind for m in changed} == {
        "tokens": {"embed_tokens"},
        "embedding": {"q_proj", "embed_tokens"},
        "conv1d": {"c_attn", "c_proj"},
    }.get(name, set(LINEAR))
    for matrix in changed:
        dense = dense_values(base, folder / name, matrix.name)
        values = torch.tensor(matrix.singular_values, dtype=torch.float64)
        tolerance = 2e-3 if name == "pissa" else 1e-5  # PiSSA is loaded with a decomposition in float32
        torch.testing.assert_close(values, dense[: len(values)], rtol=tolerance, atol=1e-5 * float(dense[0]))
        weight = AutoModelForCausalLM.from_pretrained(base).get_submodule(matrix.name).weight
        assert matrix.measures.relative_norm == pytest.approx(
            matrix.measures.norm / float(weight.detach().norm()), rel=1e-4
        )


def test_a_lora_is_analysed_without_its_base(folder, tmp_path):
    shutil.copytree(folder / "multilora", tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": str(tmp_path / "gone")})
    )
    alone, usual = analyze(tmp_path / "adapter"), analyze(folder / "multilora")
    values = {m.name: m.singular_values for m in usual.matrices}  # in the order of the model
    assert {m.name: m.singular_values for m in alone.matrices} == values
    assert [m.kind for m in usual.matrices] == ["q_proj", "down_proj"] * 2
    assert all(len(m.branches or ()) == 3 for m in alone.matrices)
    assert alone.mean()["relative_norm"] != alone.mean()["relative_norm"]  # NaN
    with pytest.raises(AdapterError, match="need the weights of the base"):
        analyze(tmp_path / "adapter", options=Options(intruders=True))
    moved = analyze(tmp_path / "adapter", base=str(folder / "llama"), options=Options(intruders=True))
    assert moved.mean()["relative_norm"] == usual.mean()["relative_norm"]
    assert moved.intruders() is not None


def test_only_one_module_is_read_at_a_time(folder, monkeypatch):
    source = open_updates(folder / "lora")
    assert isinstance(source, FactorFile)
    from multilora.export.merged.tensor_files import Slot

    read = []
    monkeypatch.setattr(Slot, "read", lambda slot, original=Slot.read: read.append(slot.shape) or original(slot))
    source.read(source.names[0])
    assert len(read) == 2  # and the weight of the base only when it is asked for


def test_a_pair_of_sharded_checkpoints(folder):
    spectrum = analyze(folder / "full", base=str(folder / "llama"))
    assert len(spectrum.matrices) == 14
    for matrix in spectrum.matrices[:3]:
        dense = dense_values(folder / "llama", folder / "full", matrix.name)
        torch.testing.assert_close(
            torch.tensor(matrix.singular_values, dtype=torch.float64), dense, rtol=1e-5, atol=1e-9
        )


def test_stacks_of_experts(tmp_path):
    make_qwen3_moe().save_pretrained(tmp_path / "moe")
    experts = ["mlp.experts.down_proj"]
    config = LoraConfig(r=2, target_modules=["q_proj"], target_parameters=experts, init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "moe"), config).save_pretrained(tmp_path / "lora")
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "moe"), str(tmp_path / "lora"))
    merged.merge_and_unload().save_pretrained(tmp_path / "merged")
    factors = {m.name: m for m in analyze(tmp_path / "lora").matrices}
    pair = {m.name: m for m in analyze(tmp_path / "merged", base=str(tmp_path / "moe")).matrices}
    assert [m.kind for m in factors.values()].count("down_proj") == 8
    assert len(factors) == 10
    for name, matrix in factors.items():
        values = torch.tensor(matrix.singular_values)
        torch.testing.assert_close(
            values, torch.tensor(pair[name].singular_values[: len(values)]), rtol=1e-3, atol=1e-6
        )
    untouched = [m for m in pair.values() if m.kind == "k_proj"]
    assert all(m.measures.norm == 0 for m in untouched)


def test_several_models_against_another(folder, tmp_path):
    analysis = compare_updates(
        [folder / "lora", folder / "dora"], folder / "full", base=str(folder / "llama"), out=tmp_path / "out"
    )
    assert [(len(item.matrices), item.second) for item in analysis.similarities] == [(4, str(folder / "full"))] * 2
    at = analysis.similarities[0].matrices[0].at(4)
    assert at is None or all(0 <= value <= 1 for value in at)
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files >= {"analysis.json", "matrices.csv", "similarities.csv", "singular_values.csv", "similarity.vl.json"}
    stored = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert list(stored["spectra"]) == [str(folder / name) for name in ("lora", "dora", "full")]
    same = compare_updates([folder / "rslora", copy_of(folder / "rslora", tmp_path / "copy")]).similarities[0]
    assert all(item.at(4)[:2] == pytest.approx((1.0, 1.0)) for item in same.matrices if item.at(4))
    with pytest.raises(RunDirectoryError, match="not empty"):
        compare_updates([folder / "lora", folder / "dora"], out=tmp_path / "out")


def copy_of(folder, target):
    shutil.copytree(folder, target)
    return target


def test_bad_sources(folder, tmp_path):
    with pytest.raises(InputError, match="--base"):
        analyze(folder / "full")
    with pytest.raises(RunDirectoryError, match=r"no recipe\.yaml"):
        analyze(tmp_path / "nothing")
    with pytest.raises(InputError, match="given twice"):
        compare_updates([folder / "lora", folder / "lora"])
    with pytest.raises(InputError, match="other linear layers"):
        analyze(folder / "full", base=str(folder / "gpt2"))
    with pytest.raises(InputError, match="at least two"):
        compare_updates([folder / "lora"])
    with pytest.raises(InputError, match="randomised 0"):
        Options(randomised=0)
    make_llama(hidden_size=64).save_pretrained(tmp_path / "wide")
    save(tmp_path / "wide", tmp_path / "other", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    with pytest.raises(InputError, match="same base"):
        compare_updates([folder / "lora", tmp_path / "other"])


def test_an_incomplete_adapter(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = copy_of(folder / "lora", tmp_path / "broken")
    state = load_file(broken / "adapter_model.safetensors")
    state.pop(next(key for key in state if "lora_B" in key))
    save_file(state, broken / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"has no lora_B\.weight"):
        analyze(broken)


def test_the_model_in_memory_equals_its_files(folder):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "llama"), str(folder / "multilora"))
    memory = {m.name: m for m in analyze(model).matrices}
    for matrix in analyze(folder / "multilora").matrices:
        assert memory[matrix.name].singular_values == pytest.approx(matrix.singular_values, rel=1e-6)
        assert copy.deepcopy(memory[matrix.name].branches) == matrix.branches
