"""Invalid input: one error that lists all problems, exit code 2, no files written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from multilora.cli import main


def run_cli(monkeypatch, capsys, *arguments):
    """Run the command line in this process and return (exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["multilora", *map(str, arguments)])
    try:
        main()
        code = 0
    except SystemExit as system_exit:
        code = system_exit.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def data(recipe, task):
    return Path(recipe["tasks"][task]["path"])


def unknown_keys(recipe):
    recipe["mixtur"] = {}
    recipe["training"]["learning_rat"] = 1
    recipe["adapter"]["num_brnches"] = 3
    recipe["tasks"][0]["prompts"] = "x"
    return [
        "4 problems",
        "mixtur: unknown key (did you mean 'mixture'?)",
        "training.learning_rat: transformers.TrainingArguments has no such option (did you mean 'learning_rate'?)",
        "adapter.num_brnches: method `multilora` has no such option (did you mean 'num_branches'?)",
        "tasks.0.prompts: unknown key (did you mean 'prompt'?)",
    ]


def missing_files(recipe):
    recipe["tasks"][0]["path"] = "nowhere/a.jsonl"
    recipe["tasks"][1]["path"] = "nowhere/b.jsonl"
    recipe["model"]["name_or_path"] = "./nowhere"
    return ["3 problems", "'nowhere/a.jsonl'", "'nowhere/b.jsonl'", "model.name_or_path: no folder './nowhere'"]


def no_examples(recipe):
    data(recipe, 0).write_text("")
    return ["task 'even': no examples", "even.jsonl"]


def no_trained_token(recipe):
    recipe["tasks"][1]["response"] = "{{ word[:0] }}"
    return ["echo.jsonl, line 1: the response is empty, so no token would be trained on"]


def matches_no_module(recipe):
    recipe["adapter"]["target_modules"] = ["attention_query"]
    return ["attention_query", "The linear modules of this model are: down_proj, gate_proj, k_proj"]


def existing_run(recipe):
    folder = Path(recipe["output_dir"])
    folder.mkdir()
    (folder / "recipe.yaml").write_text("model: nano\n")
    return ["already holds a run", str(folder)]


def wrong_types(recipe):
    recipe["data"]["max_length"] = "long"
    recipe["mixture"] = {"strategy": "random"}
    recipe["evaluation"]["batch_tokens"] = 0
    return ["3 problems", "data.max_length:", "'long'", "mixture.strategy:", "evaluation.batch_tokens:"]


def unknown_method_and_task(recipe):
    recipe["adapter"]["method"] = "mutilora"
    recipe["tasks"][0] = {"name": "gsm8"}
    return [
        "2 problems",
        "unknown method 'mutilora' (did you mean 'multilora'?)",
        "not a built-in task (did you mean 'gsm8k'?), so it needs path, prompt, response",
    ]


def broken_json(recipe):
    lines = data(recipe, 0).read_text().splitlines()
    lines[6] = lines[6][:-1]
    data(recipe, 0).write_text("\n".join(lines))
    data(recipe, 1).write_bytes(b'{"word": "\xff"}\n')
    return ["2 problems", "even.jsonl, line 7: broken JSON", "echo.jsonl: byte 10 is not UTF-8"]


def template_of_a_missing_field(recipe):
    recipe["tasks"][0]["prompt"] = "{{ qestion }}"
    recipe["tasks"][1]["response"] = "{{ twice "
    return [
        "2 problems",
        "even.jsonl, line 1: the prompt template: 'qestion' is undefined; the record has 'question', 'answer'",
        "task 'echo': the response template is not valid Jinja2",
    ]


def response_outside_the_choices(recipe):
    recipe["tasks"][0]["choices"] = ["true", "false"]
    return ["even.jsonl, line 1: response 'yes' is not one of the choices ['true', 'false']"]


def weights_without_strategy(recipe):
    recipe["tasks"][0]["weight"] = 2
    recipe["tasks"][1]["name"] = "even"
    return ["2 problems", "weight 2.0 has no effect", "the name 'even' is used 2 times"]


def adapter_options_out_of_range(recipe):
    recipe["adapter"].update(r=0, scaling="matrix")
    return ["r is 0, expected a whole number of at least 1", "scaling is 'matrix'"]


def no_model(recipe):
    del recipe["model"]
    recipe["tasks"][0]["path"] = "nowhere.jsonl"
    return ["2 problems", "model: missing; it has no default", "no such file or folder: 'nowhere.jsonl'"]


def virtual_tokens(recipe):
    recipe["adapter"] = {"method": "prompt_tuning", "num_virtual_tokens": 4}
    return ["`prompt_tuning` puts virtual tokens before the prompt"]


def training_keys_set_by_multilora(recipe):
    recipe["training"].update(max_steps="many", eval_strategy="steps", label_smoothing_factor=0.1)
    return ["training.eval_strategy: set by multilora", "training.label_smoothing_factor: set by multilora"]


def non_numeric_steps(recipe):
    recipe["training"]["max_steps"] = "many"
    return ["training.max_steps is 'many', expected a whole number"]


INVALID = [
    virtual_tokens,
    training_keys_set_by_multilora,
    non_numeric_steps,
    unknown_keys,
    missing_files,
    no_examples,
    no_trained_token,
    matches_no_module,
    existing_run,
    wrong_types,
    unknown_method_and_task,
    broken_json,
    template_of_a_missing_field,
    response_outside_the_choices,
    weights_without_strategy,
    adapter_options_out_of_range,
    no_model,
]


@pytest.mark.parametrize("modify", INVALID, ids=lambda modify: modify.__name__)
def test_invalid_recipes(modify, recipe, tmp_path, monkeypatch, capsys):
    expected = modify(recipe)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run_cli(monkeypatch, capsys, "train", path)
    assert code == 2
    assert out == ""
    assert err.count("error:") == 1
    assert "Traceback" not in err
    for part in expected:
        assert part in err
    assert sorted(tmp_path.rglob("*")) == before


def test_missing_or_malformed_recipe_files(tmp_path, monkeypatch, capsys):
    for text, message in ((None, "cannot be read"), ("a: [", "is not YAML"), ("- a", "is list")):
        path = tmp_path / "r.yaml"
        if text is not None:
            path.write_text(text)
        code, _, err = run_cli(monkeypatch, capsys, "plan", path)
        assert code == 2
        assert message in err


def test_invalid_overrides(recipe, tmp_path, monkeypatch, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    code, _, err = run_cli(monkeypatch, capsys, "train", path, "--set", "tasks.7.name=x", "--set", "seed")
    assert code == 2
    assert "2 problems" in err
    assert "tasks.7 is not one of the 2 items" in err
    assert "expected key=value" in err


@pytest.mark.parametrize("command", ["eval", "analyze"])
def test_a_folder_that_is_not_a_run(command, tmp_path, monkeypatch, capsys):
    code, _, err = run_cli(monkeypatch, capsys, command, tmp_path)
    assert code == 2
    assert "no recipe.yaml here" in err


def test_an_unfinished_run(recipe, tmp_path, monkeypatch, capsys):
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    code, _, err = run_cli(monkeypatch, capsys, "eval", tmp_path / "unfinished")
    assert code == 2
    assert "its training did not finish" in err
