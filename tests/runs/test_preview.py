"""A shown plan is found again only where it would be the same."""

from __future__ import annotations

import pytest

from multilora.runs.preview import preview_key


@pytest.mark.parametrize(
    ("variable", "value"),
    [("WORLD_SIZE", "4"), ("CUDA_VISIBLE_DEVICES", "0"), ("ACCELERATE_USE_FSDP", "true"), ("OMP_NUM_THREADS", "7")],
)
def test_processes_and_devices_are_part_of_the_key(variable, value, recipe, monkeypatch):
    monkeypatch.delenv(variable, raising=False)
    before = preview_key(recipe, [], measured=True)
    assert before == preview_key(recipe, [], measured=True) is not None
    monkeypatch.setenv(variable, value)
    assert preview_key(recipe, [], measured=True) != before


def test_what_cannot_be_told_from_files_is_not_cached(recipe):
    assert preview_key({**recipe, "tasks": [{"name": "gsm8k"}]}, [], measured=True) is None
    assert preview_key({**recipe, "tasks": []}, [], measured=True) is None
    recipe["tasks"][1]["metric"] = "my_metrics:rouge"
    assert preview_key(recipe, [], measured=True) is None
