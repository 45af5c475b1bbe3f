"""phi, principal angles and intruder dimensions, against cases worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multilora.analysis.intruders import intruder_dimensions
from multilora.analysis.subspace import expected_phi, phi, principal_angles, similarity
from multilora.analysis.update import Update


def orthonormal(d, k, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, k, generator=generator, dtype=torch.float64))[0]


def rotation(degrees):
    angle = math.radians(degrees)
    return torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)


def test_phi_of_cases_worked_by_hand():
    axes = torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(phi(axes, axes), torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=torch.float64))
    swapped = axes.flip(1)  # the second vector first
    torch.testing.assert_close(phi(axes, swapped), torch.tensor([[0.0, 1.0], [1.0, 1.0]], dtype=torch.float64))
    # cos^2 30 = 3/4; the whole plane contains every line.
    turned = phi(axes, rotation(30.0))
    torch.testing.assert_close(turned, torch.tensor([[0.75, 1.0], [1.0, 1.0]], dtype=torch.float64))


@settings(max_examples=40, deadline=None)
@given(d=st.integers(2, 12), seed=st.integers(0, 2**31), data=st.data())
def test_phi_is_symmetric_and_does_not_depend_on_the_basis(d, seed, data):
    i, j = data.draw(st.integers(1, d)), data.draw(st.integers(1, d))
    first, second = orthonormal(d, i, seed), orthonormal(d, j, seed + 1)
    table = phi(first, second)
    torch.testing.assert_close(table, phi(second, first).mT)
    assert ((table >= 0) & (table <= 1)).all()
    mixed = first @ orthonormal(i, i, seed + 2)  # another basis of the same subspace
    torch.testing.assert_close(phi(mixed, second)[-1, -1], table[-1, -1])
    torch.testing.assert_close(phi(first, first).diagonal(), torch.ones(i, dtype=torch.float64))


def test_phi_of_random_subspaces_has_its_analytic_expectation():
    d, i, j, draws = 20, 3, 5, 600
    values = [float(phi(orthonormal(d, i, 2 * k), orthonormal(d, j, 2 * k + 1))[-1, -1]) for k in range(draws)]
    error = torch.tensor(values).std() / math.sqrt(draws)
    assert expected_phi(i, j, d) == 0.25
    assert abs(sum(values) / draws - 0.25) < 4 * float(error)


def test_principal_angles():
    plane = torch.eye(4, dtype=torch.float64)[:, :2]
    tilted = plane.clone()
    tilted[:, 1] = torch.tensor([0.0, math.cos(1e-9), math.sin(1e-9), 0.0], dtype=torch.float64)
    angles = torch.tensor([0.0, 1e-9], dtype=torch.float64)
    torch.testing.assert_close(principal_angles(plane, tilted), angles, rtol=1e-6, atol=1e-15)
    other = torch.eye(4, dtype=torch.float64)[:, 1:4]
    right_angle = math.pi / 2
    torch.testing.assert_close(principal_angles(plane, other), torch.tensor([0.0, right_angle], dtype=torch.float64))
    turned = torch.zeros(4, 1, dtype=torch.float64)
    turned[0], turned[2] = math.cos(0.3), math.sin(0.3)
    torch.testing.assert_close(principal_angles(turned, plane), torch.tensor([0.3], dtype=torch.float64))


def test_similarity_of_updates():
    left, right = orthonormal(30, 8, 0), orthonormal(20, 8, 1)
    sizes = torch.linspace(2, 1, 8, dtype=torch.float64)
    first = Update("a.q_proj", up=left * sizes, down=right.mT)
    # The same inputs, other outputs.
    second = Update("a.q_proj", dense=orthonormal(30, 8, 2) * sizes @ right.mT)
    found = similarity("model.layers.3.q_proj", first.decompose(vectors=True), second.decompose(vectors=True))
    assert found is not None
    assert (found.kind, found.layer, found.ranks, found.grid) == ("q_proj", 3, (8, 8), [1, 2, 3, 4, 6, 8])
    at = found.at(4)
    assert at is not None
    assert at[1] == pytest.approx(1.0)
    assert at[0] < 0.6
    assert at[2:] == pytest.approx((4 / 30, 4 / 20))
    assert max(found.right_angles) < 0.01
    zero = Update("a.q_proj", dense=torch.zeros(30, 20, dtype=torch.float64)).decompose(vectors=True)
    assert similarity("a.q_proj", first.decompose(vectors=True), zero) is None


@pytest.mark.parametrize("intruders", [0, 1, 3])
def test_constructed_intruders_are_found(intruders):
    """Large outputs outside of everything that the base can produce, on inputs that the base knows."""
    outputs, inputs = orthonormal(40, 30 + intruders, 0), orthonormal(30, 30, 1)
    sizes = torch.linspace(3, 1, 30, dtype=torch.float64)
    before = outputs[:, :30] * sizes @ inputs.mT
    update = 20.0 * outputs[:, 30:] @ inputs[:, :intruders].mT
    found = intruder_dimensions(before, update, top=10, threshold=0.5)
    assert (found.count, found.examined) == (intruders, 10)
    # The tuned output of input i is sizes[i] of the base's vector i, and 20 of a new one.
    expected = [float(size / (size**2 + 400).sqrt()) for size in sizes[:intruders]]
    assert found.cosines[:intruders] == pytest.approx(expected, abs=1e-5)
    assert found.cosines[intruders:] == pytest.approx([1.0] * (10 - intruders), abs=1e-5)
    assert intruder_dimensions(before, update, top=10, threshold=0.0).count == 0


def test_a_scaled_base_has_no_intruders_and_a_rotated_one_has():
    before = orthonormal(12, 12, 0) * torch.linspace(5, 1, 12, dtype=torch.float64) @ orthonormal(12, 12, 1).mT
    assert intruder_dimensions(before, 0.3 * before).cosines == [1.0] * 10
    turn = torch.eye(12, dtype=torch.float64)
    turn[:2, :2] = rotation(45.0)
    vectors = torch.linalg.svd(before)[0]
    rotated = vectors @ turn @ vectors.mT @ before
    found = intruder_dimensions(before, rotated - before, threshold=0.75)
    assert found.count == 2  # both at cos 45 = 0.707
    assert found.cosines[:2] == pytest.approx([math.sqrt(0.5)] * 2, abs=1e-5)


def test_thresholds_out_of_range_raise():
    with pytest.raises(ValueError, match=r"threshold 1\.5"):
        intruder_dimensions(torch.eye(2), torch.eye(2), threshold=1.5)
