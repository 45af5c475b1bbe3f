"""Singular values from factors equal those of the dense update; measures have known values for known spectra."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from conftest import make_gpt2, make_llama, randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import (
    BeftConfig,
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoraConfig,
    TrainableTokensConfig,
    get_peft_model,
)

from multilora import MultiLoraConfig
from multilora.analysis.spectrum import (
    adapter_spectrum,
    difference_spectrum,
    measures,
    singular_values_of_product,
)
from multilora.errors import AdapterError

sizes = st.integers(1, 9)


@settings(max_examples=40, deadline=None)
@given(d_out=sizes, d_in=sizes, k=sizes, seed=st.integers(0, 2**31))
def test_singular_values_from_factors(d_out, d_in, k, seed):
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(d_out, k, generator=generator, dtype=torch.float64)
    down = torch.randn(k, d_in, generator=generator, dtype=torch.float64)
    from_factors = singular_values_of_product(up, down)
    dense = torch.linalg.svdvals(up @ down)
    assert len(from_factors) == min(d_out, d_in, k)
    torch.testing.assert_close(from_factors, dense[: len(from_factors)], rtol=1e-8, atol=1e-8)


def test_measures_of_known_spectra():
    flat = measures(torch.ones(8))
    assert flat.effective_rank == pytest.approx(8)
    assert flat.stable_rank == pytest.approx(8)
    assert flat.participation_ratio == pytest.approx(8)
    assert flat.top4_energy == pytest.approx(0.5)
    one = measures(torch.tensor([3.0, 0.0, 0.0]))
    assert (one.effective_rank, one.stable_rank, one.top1_energy, one.norm) == (1.0, 1.0, 1.0, 3.0)
    two = measures(torch.tensor([1.0, 2.0]))  # p = 0.8, 0.2; the order does not matter
    assert two.effective_rank == pytest.approx(math.exp(-0.8 * math.log(0.8) - 0.2 * math.log(0.2)))
    assert two.participation_ratio == pytest.approx(1 / (0.64 + 0.04))
    assert two.stable_rank == pytest.approx(1.25)


def test_measures_of_a_zero_update_are_nan():
    zero = measures(torch.zeros(4))
    assert zero.norm == 0
    assert math.isnan(zero.effective_rank)


@pytest.mark.parametrize("make", [make_llama, make_gpt2])
@pytest.mark.parametrize(
    "config",
    [
        MultiLoraConfig(r=2, num_branches=3, lora_alpha=5, target_modules="all-linear"),
        LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", init_lora_weights=False),
        LoHaConfig(r=3, target_modules=["q_proj", "up_proj"], init_weights=False),
        LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, use_dora=True),
        HRAConfig(r=2, target_modules=["q_proj", "up_proj"], init_weights=False),
        IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False),
    ],
    ids=["multilora", "lora", "loha", "dora", "hra", "ia3"],
)
def test_adapter_spectra_equal_those_of_the_merged_model(make, config):
    """The spectrum from the factors equals that of the difference between merged and original weights."""
    if make is make_gpt2 and config.target_modules != "all-linear":
        pytest.skip("not for Conv1D, or for other names of modules")
    model = get_peft_model(make(), copy.deepcopy(config))  # PEFT writes the matched module names into it
    randomise(model)
    spectrum = adapter_spectrum(model, "x")
    before = {name: module.weight.double() for name, module in make().named_modules() if hasattr(module, "weight")}
    merged = dict(model.merge_and_unload().named_modules())
    assert spectrum.matrices
    for matrix in spectrum.matrices:
        dense = torch.linalg.svdvals((merged[matrix.name].weight.double() - before[matrix.name]).detach())
        torch.testing.assert_close(
            torch.tensor(matrix.singular_values, dtype=torch.float64),
            dense[: len(matrix.singular_values)],
            rtol=1e-3,
            atol=1e-5,
        )


def test_updates_that_are_no_matrices_raise():
    with pytest.raises(AdapterError, match="adapts no weight matrix"):
        adapter_spectrum(get_peft_model(make_llama(), LNTuningConfig(task_type="CAUSAL_LM")), "ln_tuning")
    with pytest.raises(AdapterError, match="cannot merge bias adapter"):
        adapter_spectrum(get_peft_model(make_llama(), BeftConfig(target_modules=["q_proj"])), "beft")


def test_the_analysis_leaves_the_model_unchanged():
    model = get_peft_model(make_llama(), LoHaConfig(r=3, target_modules=["q_proj"], init_weights=False))
    before = copy.deepcopy(model.state_dict())
    adapter_spectrum(model, "loha")
    after = model.state_dict()
    assert all(torch.equal(after[name], value) and after[name].dtype == value.dtype for name, value in before.items())
    assert not any(getattr(module, "merged_adapters", None) for module in model.modules())


def test_trained_tokens_are_rows_of_the_embedding():
    model = get_peft_model(make_llama(), TrainableTokensConfig(token_indices=[5, 9]))
    with torch.no_grad():
        (delta,) = (value for name, value in model.named_parameters() if "trainable_tokens_delta" in name)
        change = torch.randn(delta.shape)
        delta += change
    (matrix,) = adapter_spectrum(model, "trainable_tokens").matrices
    assert (matrix.name, matrix.shape) == ("model.embed_tokens", (320, 32))
    torch.testing.assert_close(torch.tensor(matrix.singular_values), torch.linalg.svdvals(change), rtol=1e-3, atol=1e-5)


def test_full_fine_tuning_uses_the_matrices_that_adapters_target():
    before, after = make_llama(), make_llama()
    with torch.no_grad():
        for parameter in after.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    spectrum = difference_spectrum(before, after)
    adapted = adapter_spectrum(get_peft_model(make_llama(), LoraConfig(target_modules="all-linear")), "lora")
    assert [m.name for m in spectrum.matrices] == [m.name for m in adapted.matrices]
    assert all(matrix.measures.effective_rank > 10 for matrix in spectrum.matrices)
