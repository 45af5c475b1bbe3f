"""Whatever is done to a recipe, nothing but an error of ours comes out."""

from __future__ import annotations

import copy
import json
import math
from contextlib import contextmanager

import pytest
from conftest import write_jsonl
from harness import time_limit
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import multilora
from multilora.errors import MultiLoraError
from multilora.recipe import Recipe
from multilora.recipe.schema import RecipeSchema

FUZZ = settings(
    derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
SCALARS = [
    *(None, True, False, 0, 1, -1, 2.5, 1e308, -0.0, math.nan, math.inf, 2**31, 10**30),
    *("", " ", "x", "nano", "hub:", "hub:a/b", "a:b", "a.py:B", "{{ x }}", "{{", "\0", "\ud800", "[/]", "~", "/", "."),
    *("none", "text", "macro", "1e-3", "nan", "x" * 300, "/dev/null", b"x", object, 1j),
]
VALUES = st.recursive(
    st.sampled_from(SCALARS),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["x", "r", "name", 1, None]), inner, max_size=2)
    ),
    max_leaves=3,
)
# Values that often fit somewhere, so that many mutated recipes are valid.
PLAUSIBLE = [
    *(1, 2, 3, 8, 16, 64, 0.5, 2.0, True, False, "1e-2", "equal", "weights", "proportional", "tokens", "shuffled"),
    *("lora", "full", "float32", "even", "free", "drop", "none", "accuracy", "contains", "instruction", "question"),
    *("all", "example", "yes", "{{ answer }}", "{{ question }} {{ answer }}", ["yes", "no"], ["no", "yes", "maybe"]),
]
SECTIONS = RecipeSchema.model_json_schema()
KEYS = sorted(
    {key for section in [SECTIONS, *SECTIONS["$defs"].values()] for key in section["properties"]}
    | {"r", "lora_alpha", "target_modules", "max_steps", "learning_rate", "num_train_epochs", "seed", "warmup_steps"}
)


@pytest.fixture(scope="module", autouse=True)
def _offline():
    """Names on the hub are not looked up."""
    import datasets
    import huggingface_hub

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="module")
def base_recipe(tmp_path_factory, model_folder):
    folder = tmp_path_factory.mktemp("fuzz")
    records = [{"question": f"is {number} even", "answer": "yes" if number % 2 == 0 else "no"} for number in range(12)]
    path = str(write_jsonl(folder / "even.jsonl", records))
    return {
        "model": {"name_or_path": str(model_folder), "dtype": "float32"},
        "adapter": {"method": "multilora", "r": 2, "num_branches": 3, "target_modules": ["q_proj"]},
        "tasks": [
            {
                "name": "even",
                "path": path,
                "prompt": "{{ question }}",
                "response": "{{ answer }}",
                "choices": ["yes", "no"],
            },
            {"name": "free", "path": path, "prompt": "{{ question }}", "response": "{{ answer }}"},
        ],
        "mixture": {"strategy": "temperature", "temperature": 2.0, "unit": "examples"},
        "data": {"max_length": 64, "packing": False, "num_proc": 1},
        "training": {"max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 0.01},
        "optimizer": {"scale_lr_factor": 2.0},
        "loss": {"weighting": "task"},
        "evaluation": {"max_examples": 4},
        "output_dir": str(folder / "run"),
    }


@contextmanager
def refused_or_used():
    """Allow errors of ours, except that which reports a bug."""
    try:
        with time_limit():
            yield
    except MultiLoraError as error:
        event("refused")
        if "bug in multilora" in str(error):
            raise AssertionError(error) from error
    else:
        event("used")


def places(value, path=()):
    """Every path to a value inside `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def mutate(recipe, draw):
    """Delete, replace or insert one to three values."""
    values = draw(st.sampled_from([VALUES, st.sampled_from(PLAUSIBLE)]))
    for _ in range(draw(st.integers(1, 3))):
        paths = list(places(recipe))
        if not paths:
            return
        *parents, last = draw(st.sampled_from(paths))
        node = recipe
        for key in parents:
            node = node[key]
        action = draw(st.sampled_from(["delete", "replace", "replace", "insert"]))
        if action == "delete":
            del node[last]
        elif action == "replace" or isinstance(node, list):
            node[last] = copy.deepcopy(draw(values))
        else:
            node[draw(st.sampled_from(KEYS) | st.sampled_from([1, None, "", "x", ("a",)]))] = copy.deepcopy(
                draw(values)
            )


def changed(data, base_recipe):
    recipe = copy.deepcopy(base_recipe)
    mutate(recipe, data.draw)
    return recipe


@settings(FUZZ, max_examples=400)
@given(data=st.data())
def test_loading(data, base_recipe):
    recipe = changed(data, base_recipe)
    with refused_or_used():
        loaded = Recipe.load(recipe)
        assert Recipe.load(json.loads(json.dumps(loaded.values()))) == loaded


@settings(FUZZ, max_examples=120)
@given(data=st.data())
def test_planning(data, base_recipe):
    recipe = changed(data, base_recipe)
    with refused_or_used():
        multilora.plan(recipe)


@settings(FUZZ, max_examples=300)
@given(text=st.text(alphabet="ab:-[]{}&*!<>|#'\"\\ \n\t0.1~%@`,?\u2028\x85", max_size=60), data=st.data())
def test_yaml(text, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("yaml") / "recipe.yaml"
    path.write_text(text)
    with refused_or_used():
        Recipe.load(path)


@settings(FUZZ, max_examples=200)
@given(data=st.data())
def test_overrides(data, base_recipe):
    parts = st.sampled_from([*KEYS, "0", "1", "7", "-1", "", " "])
    key = ".".join(data.draw(st.lists(parts, min_size=1, max_size=3)))
    value = data.draw(
        st.sampled_from(["", "1", "x", "[", "{a: 1, a: 2}", "null", ".nan", "!!int x", "*a", "2024-99-99"])
    )
    with refused_or_used():
        Recipe.load(base_recipe, [f"{key}={value}"])
