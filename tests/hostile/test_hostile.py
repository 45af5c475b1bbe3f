"""Every bad input of the tables is refused with its message and exit code, in time, and leaves nothing behind."""

from __future__ import annotations

import shutil

import data
import models
import pytest
import runs
import yaml
from conftest import write_jsonl
from harness import Case, check, ids

import multilora
import recipes


@pytest.mark.parametrize("row", recipes.ROWS, ids=ids(recipes.ROWS))
def test_recipes(row, recipe, tmp_path, monkeypatch, capsys):
    check(row, Case(recipe, tmp_path), monkeypatch, capsys)


@pytest.mark.parametrize("row", data.ROWS, ids=ids(data.ROWS))
def test_data(row, recipe, tmp_path, monkeypatch, capsys):
    check(row, Case(recipe, tmp_path), monkeypatch, capsys)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, model_folder):
    """A finished run, which the tests copy."""
    folder = tmp_path_factory.mktemp("trained")
    records = [{"question": f"is {number} even", "answer": "yes" if number % 2 == 0 else "no"} for number in range(12)]
    path = write_jsonl(folder / "even.jsonl", records)
    return multilora.train(
        {
            "model": {"name_or_path": str(model_folder), "dtype": "float32"},
            "adapter": {"r": 2},
            "tasks": [{"name": "even", "path": str(path), "prompt": "{{ question }}", "response": "{{ answer }}"}],
            "data": {"max_length": 64},
            "training": {"max_steps": 4, "per_device_train_batch_size": 2, "save_steps": 2, "logging_steps": 2},
            "evaluation": {"max_new_tokens": 4},
            "output_dir": str(folder / "run"),
        }
    )


@pytest.mark.parametrize("row", runs.ROWS, ids=ids(runs.ROWS))
def test_runs(row, trained, tmp_path, monkeypatch, capsys):
    recipe = yaml.safe_load((trained.path / "recipe.yaml").read_text())
    recipe["output_dir"] = str(tmp_path / "run")
    shutil.copytree(trained.path, tmp_path / "run")
    check(row, Case(recipe, tmp_path), monkeypatch, capsys)


@pytest.mark.parametrize("row", models.ROWS, ids=ids(models.ROWS))
def test_models(row, recipe, model_folder, tmp_path, monkeypatch, capsys):
    shutil.copytree(model_folder, tmp_path / "base")
    recipe["model"]["name_or_path"] = str(tmp_path / "base")
    check(row, Case(recipe, tmp_path), monkeypatch, capsys)
