"""Methods are compared on one plan, one model in memory at a time."""

from __future__ import annotations

import gc
import weakref

from multilora.recipe import Recipe
from multilora.study import compare as compare_module
from multilora.study.compare import compare

METHODS = {
    "lora": {"adapter": {"method": "lora", "r": 2}},
    "multilora": {"adapter": {"method": "multilora", "r": 2, "num_branches": 2}},
}


def test_a_model_is_gone_before_the_next_is_loaded(recipe, tmp_path, monkeypatch):
    models = []

    def loading(function, model_of):
        def load(*args, **kwargs):
            gc.collect()
            assert [ref() for ref in models if ref() is not None] == []
            result = function(*args, **kwargs)
            models.append(weakref.ref(model_of(result)))
            return result

        return load

    monkeypatch.setattr(compare_module, "load_base", loading(compare_module.load_base, lambda model: model))
    monkeypatch.setattr(compare_module, "prepare", loading(compare_module.prepare, lambda prepared: prepared.model))
    recipe["training"]["max_steps"] = 2
    recipe["evaluation"] = {"max_examples": 4, "max_new_tokens": 4}
    comparison = compare(Recipe.load(recipe), METHODS, tmp_path / "out")
    assert len(models) == 3
    assert [result.label for result in comparison.results] == ["lora", "multilora"]
    first, second = (result.run.path / "plan" / "plan.arrow" for result in comparison.results)
    assert first.read_bytes() == second.read_bytes()
