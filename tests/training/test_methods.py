"""Every PEFT method in a recipe works as docs/methods.md says, or is refused at the start."""

from __future__ import annotations

import math

import peft
import pytest
import torch
from conftest import make_llama
from method_table import DOCUMENT, NEEDS, OPTIONS, PINNED_PEFT, dependence_on_other_tokens, document, examine
from peft import LilyConfig, get_peft_model

import multilora
from multilora.errors import RecipeError
from multilora.methods import config_classes, option_names, unsupported_methods, unsupported_options

FAST = ("hira", "ia3", "ln_tuning", "multilora", "shadow")
pinned = pytest.mark.skipif(peft.__version__ != PINNED_PEFT, reason=f"the table is that of peft {PINNED_PEFT}")


def committed_rows() -> dict[str, str]:
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    return {line.split("`")[1]: line for line in lines if line.startswith("| `")}


def check_row(method, folder):
    if method in NEEDS and pytest.importorskip(NEEDS[method]):
        examine(method, folder)  # the committed row is that of an installation without the package
    else:
        assert str(examine(method, folder)) == committed_rows()[method]


@pinned
@pytest.mark.parametrize("method", FAST)
def test_methods_work_as_documented(method, tmp_path):
    check_row(method, tmp_path)


@pinned
@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(set(config_classes()) - set(unsupported_methods()) - set(FAST)))
def test_every_method_works_as_documented(method, tmp_path):
    check_row(method, tmp_path)


@pinned
def test_the_document_has_every_method_and_the_reason_of_every_refusal(tmp_path):
    rows = committed_rows()
    assert list(rows) == sorted(config_classes())
    for method in unsupported_methods():
        assert rows[method] == str(examine(method, tmp_path))
    table = "\n".join(rows.values())
    assert DOCUMENT.read_text(encoding="utf-8") == document([]).rstrip("\n") + "\n" + table + "\n"


@pytest.mark.parametrize("method", sorted(unsupported_methods()))
def test_unsupported_methods_are_refused_at_the_start(recipe, method):
    recipe["adapter"] = {"method": method, **OPTIONS.get(method, {})}
    with pytest.raises(RecipeError) as error:
        multilora.train(recipe)
    assert f"adapter.method: `{method}` {unsupported_methods()[method]}" in str(error.value)


@pytest.mark.parametrize("method", sorted(set(config_classes()) - set(unsupported_methods()) - set(NEEDS)))
def test_supported_methods_are_accepted(recipe, method):
    recipe["adapter"] = {"method": method, **OPTIONS.get(method, {})}
    multilora.Recipe.load(recipe)


def test_lily_depends_on_other_tokens():
    """The reason why it is refused; the same check passes for every supported method."""
    torch.manual_seed(0)
    model = get_peft_model(make_llama(), LilyConfig(target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lily" in name:
                parameter.normal_(std=0.5)
    assert dependence_on_other_tokens(model) > 1e-2


def test_lora_variants_train_and_load(recipe):
    recipe["adapter"] = {"method": "lora", "r": 4, "use_dora": True}
    run = multilora.train(recipe, ["training.max_steps=6", "training.learning_rate=0.05"])
    losses = [line["loss"] for line in run.metrics if "loss" in line]
    assert losses[-1] < losses[0]
    scores = multilora.evaluate(run)
    assert scores.after["echo"].loss < scores.before["echo"].loss
    assert 1 < multilora.analyze(run).mean()["effective_rank"] < math.inf


REFUSED_OPTIONS = [
    ("lora", {"layer_replication": [[0, 2], [0, 2]]}, "share weights"),
    ("lora", {"alora_invocation_tokens": [5, 6]}, "several examples"),
    ("lora", {"arrow_config": {}}, "trained before"),
    ("lora", {"megatron_config": {}}, "Megatron"),
    ("lora", {"use_qalora": True}, "GPTQ"),
    ("lora", {"kasa_config": {}}, "term in the loss"),
    ("lora", {"monteclora_config": {}}, "term in the loss"),
    ("lora", {"init_lora_weights": "eva"}, "pass over the data"),
    ("lora", {"init_lora_weights": "corda"}, "pass over the data"),
    ("lora", {"init_lora_weights": "lora_ga"}, "pass over the data"),
    ("lora", {"init_lora_weights": "pissa_niter_4"}, "random decomposition"),
    ("lora", {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}, "changes the base"),
    ("ia3", {"target_modules": "all-linear"}, "cannot be loaded again"),
]


@pytest.mark.parametrize(("method", "options", "reason"), REFUSED_OPTIONS)
def test_unsupported_options_are_refused_at_the_start(recipe, method, options, reason):
    assert any(reason in text for text in unsupported_options(method, options).values())
    recipe["adapter"] = {"method": method, **options}
    with pytest.raises(RecipeError, match=f"({'|'.join(options)}): .*{reason}"):
        multilora.Recipe.load(recipe)


@pytest.mark.parametrize("method", sorted(config_classes()))
def test_refused_options_exist_and_unset_ones_are_accepted(method):
    assert not unsupported_options(method, {})
    unset = dict.fromkeys(option_names(method))
    assert not unsupported_options(method, unset)
    for _, options, _ in (item for item in REFUSED_OPTIONS if item[0] == method):
        assert set(options) <= set(option_names(method))


@pytest.mark.parametrize("init", [True, False, "gaussian", "orthogonal", "pissa", "olora"])
def test_ways_to_initialise_lora_are_accepted(init):
    assert not unsupported_options("lora", {"init_lora_weights": init})


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_adapter_that_changes_the_base_is_analysed_by_the_difference_of_the_weights(recipe, init):
    recipe["adapter"] = {"method": "lora", "r": 4, "init_lora_weights": init}
    run = multilora.train(recipe)
    spectrum = multilora.analyze(run)
    before = dict(run.load_base().named_modules())
    after = dict(run.load_model().merge_and_unload().named_modules())
    assert spectrum.matrices
    for matrix in spectrum.matrices:
        difference = after[matrix.name].weight.detach().double() - before[matrix.name].weight.detach().double()
        expected = torch.linalg.svdvals(difference)[: len(matrix.singular_values)].tolist()
        assert matrix.singular_values == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("method", "missing"),
    [("adaption_prompt", "adapter_len and adapter_layers"), ("trainable_tokens", "token_indices")],
)
def test_required_options_are_named(recipe, method, missing):
    recipe["adapter"] = {"method": method}
    with pytest.raises(RecipeError, match=missing):
        multilora.Recipe.load(recipe)
