"""Singular values from factors equal those of the dense update; measures have known values for known spectra."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from conftest import make_gpt2, make_llama, randomise
from hypothesis import example, given, settings
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

from multilora import MultiLoraConfig, analyze, functional
from multilora.analysis.compare import analyze_updates
from multilora.analysis.dense_sources import WeightPair
from multilora.analysis.spectrum import measures
from multilora.analysis.stored_weights import LoadedWeights
from multilora.analysis.update import Branches, Update, randomised_svd
from multilora.errors import AdapterError

CPU = torch.device("cpu")
sizes = st.integers(1, 12)


def difference_spectrum(before, after):
    pair = WeightPair("full", "full", LoadedWeights(before), LoadedWeights(after), CPU)
    return analyze_updates([pair]).spectra["full"]


@settings(max_examples=60, deadline=None)
@given(
    d_out=sizes,
    d_in=sizes,
    n=st.integers(1, 4),
    r=st.integers(1, 6),
    scaling=st.sampled_from(["vector", "scalar"]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 2**31),
)
@example(d_out=3, d_in=4, n=4, r=6, scaling="vector", dtype=torch.float32, seed=0)  # a rank above the size
def test_spectra_from_factors_equal_those_of_the_dense_update(d_out, d_in, n, r, scaling, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(n * r, d_in, generator=generator).to(dtype)
    B = torch.randn(d_out, n * r, generator=generator).to(dtype)
    scale = torch.randn(*((d_out, n) if scaling == "vector" else (n,)), generator=generator).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    A, B, scale = A.to(wide), B.to(wide), scale.to(wide)
    up = functional.effective_up_projection(B, scale, 0.7)
    update = Update("x", up=up, down=A, branches=Branches(n, scale))
    values = update.decompose(vectors=True)
    dense = torch.linalg.svdvals(up.double() @ A.double())
    count = min(d_out, d_in, n * r)
    assert len(values.values) == count
    torch.testing.assert_close(values.values, dense[:count], rtol=1e-5, atol=1e-7 * float(dense[0]))
    assert float(dense[count:].sum()) <= 1e-6 * float(dense[0])
    assert values.left is not None
    assert values.right is not None
    rebuilt = values.left @ torch.diag(values.values) @ values.right.mT
    torch.testing.assert_close(rebuilt, up.double() @ A.double(), rtol=1e-6, atol=1e-6 * float(dense[0]) + 1e-12)
    assert values.norm == pytest.approx(float(torch.linalg.matrix_norm(up.double() @ A.double())), rel=1e-6)


def test_a_zero_update_has_a_spectrum_of_zeros():
    for update in (Update("x", up=torch.zeros(5, 2), down=torch.randn(2, 4)), Update("x", dense=torch.zeros(5, 4))):
        values = update.decompose(vectors=True)
        assert values.rank == 0
        assert not values.values.any()


def test_updates_that_are_not_finite_raise():
    with pytest.raises(AdapterError, match="NaN or infinite"):
        Update("x", dense=torch.tensor([[1.0, math.nan]])).decompose()


def test_the_error_of_a_randomised_decomposition_is_what_it_says():
    generator = torch.Generator().manual_seed(0)
    sizes_of = torch.arange(1, 121, dtype=torch.float64) ** -1.0
    left = torch.linalg.qr(torch.randn(150, 120, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(130, 120, generator=generator, dtype=torch.float64))[0]
    matrix = left * sizes_of @ right.mT
    for k in (1, 8, 20):
        values = Update("x", dense=matrix).decompose(randomised=k)
        assert len(values.values) == k
        torch.testing.assert_close(values.values, sizes_of[:k], rtol=1e-3, atol=0.0)
        assert values.residual == pytest.approx(float(torch.linalg.vector_norm(sizes_of[k:])), rel=1e-3)
        assert (values.values <= sizes_of[:k] + 1e-12).all()
        assert (sizes_of[:k] <= (values.values**2 + values.residual**2).sqrt()).all()
    flat = randomised_svd(torch.eye(100), 5)  # the worst case: no value is larger than another
    assert flat.residual == pytest.approx(math.sqrt(95), rel=1e-6)
    assert (flat.values <= 1 + 1e-6).all()


def test_measures_of_known_spectra():
    flat = measures(torch.ones(8))
    assert flat.effective_rank == pytest.approx(8)
    assert flat.stable_rank == pytest.approx(8)
    assert flat.participation_ratio == pytest.approx(8)
    assert flat.top4_energy == pytest.approx(0.5)
    one = measures(torch.tensor([3.0, 0.0, 0.0]))
    assert (one.effective_rank, one.stable_rank, one.top1_energy, one.norm) == (1.0, 1.0, 1.0, 3.0)
    assert measures(torch.tensor([3.0, 4.0]), base_norm=10.0).relative_norm == pytest.approx(0.5)
    largest = measures(torch.tensor([3.0]), norm=5.0)  # of a randomised decomposition
    assert (largest.norm, largest.top1_energy, largest.stable_rank) == pytest.approx((5.0, 9 / 25, 25 / 9))
    assert math.isnan(largest.effective_rank)
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
    spectrum = analyze(model)
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
        analyze(get_peft_model(make_llama(), LNTuningConfig(task_type="CAUSAL_LM")))
    with pytest.raises(AdapterError, match="cannot merge bias adapter"):
        analyze(get_peft_model(make_llama(), BeftConfig(target_modules=["q_proj"])))


def test_the_analysis_leaves_the_model_unchanged():
    model = get_peft_model(make_llama(), LoHaConfig(r=3, target_modules=["q_proj"], init_weights=False))
    before = copy.deepcopy(model.state_dict())
    analyze(model)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) and after[name].dtype == value.dtype for name, value in before.items())
    assert not any(getattr(module, "merged_adapters", None) for module in model.modules())


def test_trained_tokens_are_rows_of_the_embedding():
    model = get_peft_model(make_llama(), TrainableTokensConfig(token_indices=[5, 9]))
    with torch.no_grad():
        (delta,) = (value for name, value in model.named_parameters() if "trainable_tokens_delta" in name)
        change = torch.randn(delta.shape)
        delta += change
    (matrix,) = analyze(model).matrices
    assert (matrix.name, matrix.shape) == ("model.embed_tokens", (320, 32))
    torch.testing.assert_close(torch.tensor(matrix.singular_values), torch.linalg.svdvals(change), rtol=1e-3, atol=1e-5)


def test_full_fine_tuning_uses_the_matrices_that_adapters_target():
    before, after = make_llama(), make_llama()
    with torch.no_grad():
        for parameter in after.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    spectrum = difference_spectrum(before, after)
    adapted = analyze(get_peft_model(make_llama(), LoraConfig(target_modules="all-linear")))
    assert [m.name for m in spectrum.matrices] == [m.name for m in adapted.matrices]
    assert all(matrix.measures.effective_rank > 10 for matrix in spectrum.matrices)
