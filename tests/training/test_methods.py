"""Other PEFT methods, set by the fields of their configs, can be trained, saved, loaded and evaluated."""

from __future__ import annotations

import pytest

import multilora
from multilora.errors import RecipeError

LINEAR = {"target_modules": "all-linear"}
METHODS = {
    "lora": LINEAR | {"r": 4, "use_dora": True},
    "loha": LINEAR | {"r": 2},
    "lokr": LINEAR | {"r": 2},
    "oft": LINEAR | {"oft_block_size": 4},
    "hra": LINEAR | {"r": 2},
    "ia3": {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "ln_tuning": {"target_modules": ["input_layernorm", "post_attention_layernorm"]},
    "fourierft": LINEAR | {"n_frequency": 200},
}


@pytest.mark.parametrize("method", METHODS)
def test_other_peft_methods_train_and_load(recipe, method):
    recipe["adapter"] = {"method": method, **METHODS[method]}
    run = multilora.train(recipe, ["training.max_steps=6", "training.learning_rate=0.05"])
    losses = [line["loss"] for line in run.metrics if "loss" in line]
    assert losses[-1] < losses[0]
    scores = multilora.evaluate(run)
    assert scores.after["echo"].loss < scores.before["echo"].loss


UNSUPPORTED = {
    "prompt_tuning": ({"num_virtual_tokens": 4}, "puts virtual tokens before the prompt"),
    "prefix_tuning": ({"num_virtual_tokens": 4}, "puts virtual tokens before the prompt"),
    "adalora": (LINEAR | {"init_r": 4, "target_r": 2, "total_step": 6}, "needs its own training loop"),
}


@pytest.mark.parametrize("method", UNSUPPORTED)
def test_unsupported_methods_raise(recipe, method):
    options, reason = UNSUPPORTED[method]
    recipe["adapter"] = {"method": method, **options}
    with pytest.raises(RecipeError, match=reason):
        multilora.train(recipe)
