"""A recipe that is saved and read again is the same recipe."""

from __future__ import annotations

import json

import pytest
import yaml

import multilora
from multilora.recipe import Recipe


@pytest.mark.parametrize(
    ("section", "key"), [("adapter", "target_modules"), ("adapter", "layers_pattern"), ("training", "optim_args")]
)
def test_a_null_option_of_another_library_is_kept(section, key, recipe):
    recipe["adapter"] = {"method": "lora", "r": 2}
    recipe[section][key] = None
    loaded = Recipe.load(recipe)
    saved = yaml.safe_load(loaded.dump_yaml())
    assert key in saved[section]
    assert saved[section][key] is None
    again = Recipe.load(loaded)
    assert again == loaded
    assert Recipe.load(saved) == loaded


def test_a_null_option_decides_about_the_adapter(recipe):
    """null leaves the choice of modules to PEFT; it is not our default, all linear layers."""
    recipe["adapter"] = {"method": "lora", "r": 2, "target_modules": None}
    run = multilora.train(recipe, ["training.max_steps=2"])
    config = json.loads((run.weights / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == ["q_proj", "v_proj"]
    assert run.recipe.adapter.options["target_modules"] is None


def test_numbers_that_yaml_reads_as_text(recipe):
    loaded = Recipe.load(recipe, ["training.learning_rate=1e-3", "training.max_steps=3"])
    assert loaded.training["learning_rate"] == "1e-3"  # as written
    from multilora.training.prepare import recipe_arguments

    assert recipe_arguments(loaded).learning_rate == 1e-3
