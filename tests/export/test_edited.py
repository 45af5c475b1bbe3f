"""Truncated, pruned and combined adapters: the reported errors are the measured ones."""

from __future__ import annotations

import json

import pytest
import torch
from architectures import make_base, outputs, scramble
from conftest import make_gpt2, make_llama, make_qwen3_moe, make_tokenizer
from peft import LoraConfig, PeftModel, get_peft_model

import multilora
from multilora import MultiLoraConfig, combine_adapters, export_lora, prune_adapter
from multilora.errors import AdapterError, InputError
from multilora.export.edit.edited import truncated
from multilora.export.edit.prune import prune
from multilora.export.edit.truncate import truncate
from multilora.export.factors import adapter_factors
from multilora.export.lora.export_lora import write_lora
from multilora.export.sources.source import open_source
from multilora.low_rank import truncated_product

EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
BASES = {"llama": (make_llama, {}), "gpt2": (make_gpt2, {}), "moe": (make_qwen3_moe, {"target_parameters": EXPERTS})}


def adapted(name="llama", **options):
    make, more = BASES[name]
    config = MultiLoraConfig(**{"r": 2, "num_branches": 3, "target_modules": "all-linear", **more, **options})
    return scramble(get_peft_model(make(), config))


@pytest.fixture
def base_folder(tmp_path):
    make_base("llama").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def on_base(folder):
    return type(make_base("llama")).from_pretrained(folder, dtype=torch.float32)


def saved(folder, base_folder, config=None, seed=3):
    """Save an adapter of the base; returns the model."""
    config = config or MultiLoraConfig(r=2, num_branches=3, target_modules="all-linear", task_type="CAUSAL_LM")
    model = scramble(get_peft_model(on_base(base_folder), config), seed)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("shape", [(7, 5, 3), (4, 9, 6), (3, 4, 8)])
def test_truncation_is_the_best_approximation(shape):
    d_out, d_in, k = shape
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(2, d_out, k, generator=generator), torch.randn(2, k, d_in, generator=generator)
    left, values, right = torch.linalg.svd((up @ down).double(), full_matrices=False)
    for rank in range(1, k + 2):
        new_up, new_down = truncated_product(up, down, rank)
        best = left[..., :rank] * values[..., None, :rank] @ right[..., :rank, :]
        torch.testing.assert_close((new_up @ new_down).double(), best, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("rank", [1, 4, 6, 40])
def test_the_reported_error_of_a_truncation_is_the_measured_one(name, rank):
    factors = adapter_factors(adapted(name))
    shorter, report = truncate(factors, rank=rank)
    assert report.rank == min(rank, 6) == shorter.largest_rank
    after = dict(shorter.matrices())
    assert report.errors.keys() == after.keys()
    for key, item in factors.matrices():
        delta = item.delta().double()
        measured = float((after[key].delta().double() - delta).norm() / delta.norm())
        assert report.errors[key] == pytest.approx(measured, abs=1e-5)
    if rank >= 6:
        assert report.largest == 0
        assert all(torch.equal(after[key].up, item.up) for key, item in factors.matrices())


@pytest.mark.parametrize("name", BASES)
def test_energy_gives_the_smallest_rank_that_keeps_it(name):
    factors = adapter_factors(adapted(name))
    for energy in (0.3, 0.9, 0.99, 1.0):
        _, report = truncate(factors, energy=energy)
        stacked = dict(factors.experts)
        kept = [1 - error**2 for key, error in report.errors.items() if key not in stacked]
        assert min(kept) >= energy - 1e-6
        if report.rank > 1:
            _, smaller = truncate(factors, rank=report.rank - 1)
            assert smaller.largest**2 > 1 - energy or stacked


@pytest.mark.parametrize("name", BASES)
def test_a_truncated_export_is_compared_with_the_truncated_model(tmp_path, name):
    model = adapted(name)
    written = write_lora(open_source(model), tmp_path / "out", rank=2)
    assert written.rank == 2
    assert written.proof.difference <= written.proof.tolerance
    exported = outputs(PeftModel.from_pretrained(BASES[name][0](), tmp_path / "out"))
    change = (exported - outputs(model)).abs().max()
    assert change > 100 * written.proof.tolerance
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 2
    assert written.effect.difference > 10 * written.proof.tolerance
    assert model.training is False
    # exact from the total rank on
    whole = export_lora(model, tmp_path / "whole", rank=6)
    assert (outputs(PeftModel.from_pretrained(BASES[name][0](), whole)) - outputs(model)).abs().max() < 1e-5


def test_the_measured_effect_is_that_of_the_export(tmp_path):
    model = adapted()
    source, _ = truncated(open_source(model), rank=3)
    folder = export_lora(model, tmp_path / "out", rank=3)
    exported = PeftModel.from_pretrained(make_llama(), folder)
    torch.testing.assert_close(outputs(source.load_model()), outputs(exported), rtol=1e-5, atol=1e-5)
    assert (outputs(model) - outputs(exported)).abs().max() > 1e-2


@pytest.mark.parametrize(
    "options", [{"rank": 0}, {"rank": -1}, {"energy": 0}, {"energy": 1.1}, {"rank": 2, "energy": 0.9}]
)
def test_impossible_sizes_are_refused(tmp_path, options):
    with pytest.raises(InputError, match=r"expected|set one of them"):
        export_lora(adapted(), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def weaken(model, branch, factor):
    """Scale one branch of every module."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "multilora_scale" in name:
                parameter[..., branch] *= factor
    return model


@pytest.mark.parametrize("name", BASES)
def test_shares_are_norms_of_branches(name):
    model = adapted(name)
    factors = adapter_factors(model)
    _, pruning = prune(factors, 0.5)
    for key, item in factors.matrices():
        total = item.delta().norm()
        for branch in range(3):
            ranks = slice(2 * branch, 2 * branch + 2)
            share = (item.up[..., ranks] @ item.down[..., ranks, :]).norm() / total
            assert pruning.shares[key][branch] == pytest.approx(float(share), rel=1e-4)
        large = [branch for branch, share in enumerate(pruning.shares[key]) if share >= 0.5]
        assert pruning.kept[key] == (large or [pruning.shares[key].index(max(pruning.shares[key]))])


@pytest.mark.parametrize("scaling", ["vector", "scalar"])
@pytest.mark.parametrize("kind", ["multilora", "lora"])
def test_a_branch_without_effect_is_dropped(tmp_path, base_folder, kind, scaling):
    config = MultiLoraConfig(
        r=2, num_branches=3, target_modules="all-linear", scaling=scaling, task_type="CAUSAL_LM", lora_alpha=3
    )
    model = weaken(saved(tmp_path / "adapter", base_folder, config), 1, 1e-4)
    model.save_pretrained(tmp_path / "adapter")
    pruned = prune_adapter(tmp_path / "adapter", tmp_path / "out", below=0.01, to=kind)
    assert (pruned.pruning.dropped, pruned.pruning.total) == (14, 42)
    assert pruned.proof.difference <= pruned.proof.tolerance
    loaded = PeftModel.from_pretrained(on_base(base_folder), tmp_path / "out")
    config = loaded.active_peft_config
    assert (config.r, getattr(config, "num_branches", None)) == ((2, 2) if kind == "multilora" else (4, None))
    change = float((outputs(loaded) - outputs(model)).abs().max())
    assert 0 < change < 0.1
    assert pruned.effect.difference < 0.1


def test_places_of_dropped_branches_can_be_trained_again(tmp_path, base_folder):
    model = saved(tmp_path / "adapter", base_folder)
    with torch.no_grad():  # one matrix loses two branches, the others none
        model.base_model.model.model.layers[0].self_attn.q_proj.multilora_scale["default"][:, 1:] *= 1e-6
    model.save_pretrained(tmp_path / "adapter")
    prune_adapter(tmp_path / "adapter", tmp_path / "out", below=0.01)
    loaded = PeftModel.from_pretrained(on_base(base_folder), tmp_path / "out", is_trainable=True)
    layer = loaded.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.num_branches["default"] == 3
    assert (layer.multilora_scale["default"][:, 1:] == 0).all()
    loaded(input_ids=torch.arange(3, 27)[None]).logits.sum().backward()
    assert (layer.multilora_scale["default"].grad[:, 1:] != 0).any(0).all()
    torch.testing.assert_close(outputs(loaded), outputs(model), rtol=1e-4, atol=1e-4)


def test_ranks_of_a_lora_are_dropped(tmp_path, base_folder):
    model = saved(tmp_path / "adapter", base_folder, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter[:, 2] *= 1e-6
    model.save_pretrained(tmp_path / "adapter")
    pruned = prune_adapter(tmp_path / "adapter", tmp_path / "out", below=0.001)
    assert (pruned.kind, pruned.pruning.unit, pruned.pruning.dropped) == ("lora", "rank", 2)
    loaded = PeftModel.from_pretrained(on_base(base_folder), tmp_path / "out")
    assert loaded.active_peft_config.r == 3
    torch.testing.assert_close(outputs(loaded), outputs(model), rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="prune by branches"):
        prune_adapter(tmp_path / "adapter", tmp_path / "other", to="multilora")
    with pytest.raises(InputError, match="expected a share"):
        prune_adapter(tmp_path / "adapter", tmp_path / "other", below=2)
    assert not (tmp_path / "other").exists()


def test_a_combination_is_the_weighted_sum(tmp_path, base_folder):
    first = saved(tmp_path / "first", base_folder)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    second = saved(tmp_path / "second", base_folder, lora, seed=5)
    folder = combine_adapters({tmp_path / "first": 0.3, tmp_path / "second": -0.5}, tmp_path / "sum")
    loaded = PeftModel.from_pretrained(on_base(base_folder), folder)
    parts = [(0.3, adapter_factors(first)), (-0.5, adapter_factors(second))]
    total = dict(adapter_factors(loaded).matrices())
    assert total.keys() == {name for _, part in parts for name in part.modules}
    for name, item in total.items():
        expected = sum(weight * part.modules[name].delta() for weight, part in parts if name in part.modules)
        torch.testing.assert_close(item.delta(), expected, rtol=1e-4, atol=1e-5)
    assert loaded.active_peft_config.r == 10
    short = combine_adapters({tmp_path / "first": 0.3, tmp_path / "second": -0.5}, tmp_path / "short", rank=3)
    assert json.loads((short / "adapter_config.json").read_text())["r"] == 3


def test_adapters_that_cannot_be_summed_are_refused(tmp_path, base_folder):
    saved(tmp_path / "first", base_folder)
    head = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    saved(tmp_path / "second", base_folder, head)
    with pytest.raises(AdapterError, match=r"second: has trained weights that are no LoRA \(lm_head.weight\)"):
        combine_adapters({tmp_path / "first": 1.0, tmp_path / "second": 1.0}, tmp_path / "out")
    make_llama(hidden_size=64).save_pretrained(tmp_path / "wide")
    saved(tmp_path / "third", tmp_path / "wide")
    with pytest.raises(AdapterError, match="of different bases"):
        combine_adapters({tmp_path / "first": 1.0, tmp_path / "third": 1.0}, tmp_path / "out")
    for weights in ({}, {tmp_path / "first": float("nan")}, {tmp_path / "first": "1"}):
        with pytest.raises(InputError, match="expected"):
            combine_adapters(weights, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_lora_to_multilora_and_back_is_the_same_function_and_training_goes_on(tmp_path, base_folder, recipe):
    """LoRA -> `init_from` -> run -> export -> `init_from`: nothing changes without a step, and the loss goes on."""
    model = saved(tmp_path / "lora", base_folder, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    make_tokenizer().save_pretrained(base_folder)
    recipe["model"] = {"name_or_path": str(base_folder), "dtype": "float32"}

    def run(name, start, rate):
        values = {
            **recipe,
            "adapter": {"method": "multilora", "r": 2, "init_from": str(start)},
            "training": {"max_steps": 2, "learning_rate": rate, "per_device_train_batch_size": 4, "logging_steps": 1},
            "output_dir": str(tmp_path / name),
        }
        return multilora.train(values)

    still = run("still", tmp_path / "lora", 0.0)
    there_and_back = export_lora(still, tmp_path / "back")
    torch.testing.assert_close(
        outputs(PeftModel.from_pretrained(on_base(base_folder), there_and_back)), outputs(model), rtol=0, atol=1e-4
    )
    first, second = run("first", tmp_path / "lora", 0.01), run("second", there_and_back, 0.01)
    losses = [[line["loss"] for line in item.metrics if "loss" in line] for item in (first, second)]
    assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-4)


@pytest.mark.parametrize("as_json", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_command_line(tmp_path, base_folder, monkeypatch, capsys, as_json):
    from multilora.cli import main

    saved(tmp_path / "adapter", base_folder)

    def run(*words):
        arguments = ["multilora", *map(str, words), *(["--json"] if as_json else [])]
        monkeypatch.setattr("sys.argv", arguments)
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        return capsys.readouterr().out

    shown = run("export", tmp_path / "adapter", "--to", "lora", "--energy", "0.9", "--out", tmp_path / "lora")
    pruned = run("prune", tmp_path / "adapter", "--below", "0.4", "--out", tmp_path / "pruned")
    if as_json:
        values = json.loads(shown)
        assert values["rank"] == values["truncation"]["rank"] < 6
        assert max(values["truncation"]["errors"].values()) ** 2 < 0.1
        assert values["effect"]["difference"] > 0
        assert json.loads(pruned)["pruning"]["kept"].keys() == values["truncation"]["errors"].keys()
    else:
        assert "the relative error of an update is" in shown
        assert "effect of the truncation" in shown
        assert "branches: share of the update below 0.4" in pruned
