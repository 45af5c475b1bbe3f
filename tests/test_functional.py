"""The stacked and folded form equals the paper's sum over branches, in values and gradients."""

from __future__ import annotations

import math

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multilora import functional

sizes = st.integers(1, 7)


def draw_parameters(d_in, d_out, n, r, scaling, seed):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    return random(n * r, d_in), random(d_out, n * r), random(d_out, n) if scaling == "vector" else random(n)


def branches(A, B, scale, n):
    """The same parameters as lists of branches."""
    return list(A.chunk(n, dim=0)), list(B.chunk(n, dim=1)), [scale[..., i] for i in range(n)]


@settings(max_examples=40, deadline=None)
@given(
    d_in=sizes,
    d_out=sizes,
    n=st.integers(1, 4),
    r=st.integers(1, 4),
    tokens=sizes,
    seed=st.integers(0, 2**31),
    scaling=st.sampled_from(["vector", "scalar"]),
    alpha=st.floats(0.1, 10),
    bias=st.booleans(),
)
def test_forward_and_gradients_equal_the_loops(d_in, d_out, n, r, tokens, seed, scaling, alpha, bias):
    A, B, scale = draw_parameters(d_in, d_out, n, r, scaling, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    x = torch.randn(tokens, d_in, generator=generator, dtype=torch.float64).requires_grad_()
    W = torch.randn(d_out, d_in, generator=generator, dtype=torch.float64)
    b = torch.randn(d_out, generator=generator, dtype=torch.float64) if bias else None
    weights = torch.randn(tokens, d_out, generator=generator, dtype=torch.float64)
    c = functional.scaling_constant(alpha, r)

    up = functional.effective_up_projection(B, scale, c)
    output = torch.nn.functional.linear(x, W, b) + functional.low_rank_forward(x, A, up)
    expected = reference.forward(x, W, b, *branches(A, B, scale, n), alpha / r)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
    parameters = (A, B, scale, x)
    for gradient, expected_gradient in zip(
        torch.autograd.grad((output * weights).sum(), parameters),
        torch.autograd.grad((expected * weights).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    d_in=st.integers(1, 5),
    d_out=st.integers(1, 5),
    n=st.integers(1, 3),
    r=st.integers(1, 3),
    seed=st.integers(0, 2**31),
    scaling=st.sampled_from(["vector", "scalar"]),
)
def test_delta_weight_equals_the_loops(d_in, d_out, n, r, seed, scaling):
    A, B, scale = (p.detach() for p in draw_parameters(d_in, d_out, n, r, scaling, seed))
    delta = functional.delta_weight(A, B, scale, 0.7)
    torch.testing.assert_close(delta, reference.delta_weight(*branches(A, B, scale, n), 0.7), rtol=1e-10, atol=1e-10)


def test_each_branch_has_its_own_scale():
    """A single scale shared by all branches would pass tests that check shapes only."""
    A, B, scale = (p.detach() for p in draw_parameters(5, 4, 3, 2, "vector", 0))
    only_second = torch.zeros_like(scale)
    only_second[:, 1] = scale[:, 1]
    expected = scale[:, 1:2] * (B[:, 2:4] @ A[2:4])
    torch.testing.assert_close(functional.delta_weight(A, B, only_second, 1.0), expected)


@pytest.mark.parametrize("n", [1, 3])
def test_initialisation(n):
    r, d_in, d_out = 16, 400, 300
    A, B, scale = torch.empty(n * r, d_in), torch.empty(d_out, n * r), torch.full((d_out, n), 9.0)
    torch.manual_seed(0)
    functional.init_branches_(A, B, scale, n)
    # The fan-in of a branch's B is r; with n * r the bound would be smaller by a factor of sqrt(n).
    for matrix, bound in ((A, 1 / math.sqrt(d_in)), (B, 1 / math.sqrt(r))):
        assert matrix.abs().max() <= bound
        assert matrix.abs().max() > 0.99 * bound
        assert abs(matrix.std().item() - bound / math.sqrt(3)) < 0.02 * bound
    assert (scale == 0).all()


def test_scaling_constants():
    assert functional.scaling_constant(16, 4) == 4
    assert functional.scaling_constant(16, 4, rank_stabilized=True) == 8
