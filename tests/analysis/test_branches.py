"""Measures of branches, against branches made to be redundant, orthogonal, opposed or zero."""

from __future__ import annotations

import math

import pytest
import torch

from multilora import functional
from multilora.analysis.branches import measure_branches
from multilora.analysis.update import Branches, Update


def update_of(A, B, scale):
    scale = torch.as_tensor(scale, dtype=torch.float64)
    up = functional.effective_up_projection(B, scale, 1.0)
    return Update("x", up=up, down=A, branches=Branches(scale.shape[-1], scale))


def test_branches_equal_their_dense_updates():
    torch.manual_seed(0)
    A, B = torch.randn(6, 7, dtype=torch.float64), torch.randn(9, 6, dtype=torch.float64)
    scale = torch.randn(9, 3, dtype=torch.float64)
    found = measure_branches(update_of(A, B, scale))
    assert found is not None
    parts = [(scale[:, [i]] * B[:, 2 * i : 2 * i + 2]) @ A[2 * i : 2 * i + 2] for i in range(3)]
    whole = sum(parts)
    energies = [float((part**2).sum()) for part in parts]
    for index, (branch, part) in enumerate(zip(found, parts, strict=True)):
        assert branch.norm == pytest.approx(math.sqrt(energies[index]))
        assert branch.energy == pytest.approx(energies[index] / sum(energies))
        assert branch.change_if_dropped == pytest.approx(float(part.norm() / whole.norm()))
        assert branch.energy_lost == pytest.approx(1 - float((whole - part).norm() ** 2 / whole.norm() ** 2))
        assert branch.scale_mean_abs == pytest.approx(float(scale[:, index].abs().mean()))
        assert branch.row_overlap[index] == pytest.approx(1)
        assert branch.column_overlap[index] == pytest.approx(1)


def test_redundant_and_orthogonal_branches():
    torch.manual_seed(0)
    A1, B1 = torch.randn(2, 8, dtype=torch.float64), torch.randn(8, 2, dtype=torch.float64)
    mixed = torch.randn(2, 2, dtype=torch.float64) @ A1  # other rows of the same space
    other = torch.linalg.qr(torch.cat([A1, torch.randn(2, 8, dtype=torch.float64)]).mT)[0][:, 2:].mT
    found = measure_branches(update_of(torch.cat([A1, mixed, other]), torch.cat([B1, B1, B1], 1), [1.0, 1.0, 1.0]))
    assert found is not None
    assert found[0].row_overlap == pytest.approx([1.0, 1.0, 0.0], abs=1e-9)
    assert found[0].column_overlap == pytest.approx([1.0, 1.0, 1.0])


def test_opposed_branches_lose_negative_energy():
    A, B = torch.eye(2, 4, dtype=torch.float64)[:1], torch.eye(4, 2, dtype=torch.float64)[:, :1]
    found = measure_branches(update_of(torch.cat([A, A]), torch.cat([B, B], 1), [3.0, -1.0]))
    assert found is not None
    assert found[1].energy_lost == pytest.approx(1 - 9 / 4)
    assert found[1].change_if_dropped == pytest.approx(0.5)


def test_a_branch_that_is_zero_has_no_overlap():
    torch.manual_seed(0)
    found = measure_branches(
        update_of(torch.randn(4, 5, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64), [1.0, 0.0])
    )
    assert found is not None
    assert (found[1].energy, found[1].change_if_dropped) == (0.0, 0.0)
    assert math.isnan(found[0].column_overlap[1])
    assert found[0].row_overlap[1] < 1


def test_an_update_without_branches_has_no_measures_of_them():
    assert measure_branches(Update("x", up=torch.ones(3, 1), down=torch.ones(1, 2))) is None
