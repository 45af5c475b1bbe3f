"""The commands from a recipe to an exported adapter; results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_bad_input import run_cli


@pytest.fixture
def recipe_file(recipe, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.parametrize("method", ["multilora", "lora", "full", "vera"])
def test_train_eval_analyze_export(method, recipe, recipe_file, tmp_path, monkeypatch, capsys):
    run = tmp_path / "out"
    options = {"multilora": "{method: multilora, r: 2}", "lora": "{method: lora, r: 6}"}
    adapter = options.get(method, f"{{method: {method}}}")
    code, out, err = run_cli(
        monkeypatch, capsys, "train", recipe_file, "--set", f"adapter={adapter}", "--set", f"output_dir={run}", "--json"
    )
    assert code == 0
    trained = json.loads(out)
    assert trained["steps"] == 4
    assert 0 < trained["trainable_parameters"] <= trained["total_parameters"]
    assert "training" in err

    code, out, _ = run_cli(monkeypatch, capsys, "eval", run, "--json")
    assert code == 0
    scores = json.loads(out)
    assert scores == json.loads((run / "eval.json").read_text())
    assert set(scores["before"]) == set(scores["after"]) == {"even", "echo"}
    assert scores["after"]["even"]["metric"] == "accuracy"
    assert scores["after"]["echo"]["loss"] != scores["before"]["echo"]["loss"]

    code, out, _ = run_cli(monkeypatch, capsys, "analyze", run, "--json")
    assert code == 0
    spectrum = json.loads(out)
    assert len(spectrum["matrices"]) == 14
    assert (run / "analysis" / "singular_values.csv").stat().st_size > 1000
    if method == "multilora":
        assert all(len(matrix["singular_values"]) <= 6 for matrix in spectrum["matrices"])

    code, out, _ = run_cli(monkeypatch, capsys, "export", run, "--to", "merged", "--out", tmp_path / "merged")
    assert code == 0
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    code, _, err = run_cli(monkeypatch, capsys, "export", run, "--to", "lora", "--out", tmp_path / "as_lora")
    low_rank = method in ("multilora", "lora")
    assert code == (0 if low_rank else 2)
    assert (tmp_path / "as_lora").exists() == low_rank


def test_files_of_a_run(recipe_file, recipe, monkeypatch, capsys):
    code, out, _ = run_cli(monkeypatch, capsys, "train", recipe_file)
    assert code == 0
    assert "next: multilora eval" in out
    run = Path(recipe["output_dir"])
    resolved = yaml.safe_load((run / "recipe.yaml").read_text())
    assert Path(resolved["tasks"][0]["path"]).is_absolute()
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["peft"]
    assert json.loads((run / "plan" / "plan.json").read_text())["steps"] == 4
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    import pyarrow.feather

    assert len(pyarrow.feather.read_table(run / "plan" / "plan.arrow")) == 16


def test_eval_shows_all_metrics_of_a_task(recipe_file, recipe, monkeypatch, capsys):
    code, _, _ = run_cli(monkeypatch, capsys, "train", recipe_file, "--set", "tasks.0.metric=f1_macro")
    assert code == 0
    code, out, _ = run_cli(monkeypatch, capsys, "eval", recipe["output_dir"])
    assert code == 0
    rows = [[cell.strip() for cell in line.split("│")[1:4]] for line in out.splitlines() if "│" in line]
    assert [row[:2] for row in rows] == [["even", "f1_macro"], ["", "accuracy"], ["echo", "exact_match"]]
    run_cli(monkeypatch, capsys, "eval", recipe["output_dir"], "--json")
    scores = json.loads((Path(recipe["output_dir"]) / "eval.json").read_text())["after"]["even"]
    assert list(scores["metrics"]) == ["f1_macro", "accuracy"]
    assert scores["value"] == scores["metrics"]["f1_macro"]


def test_plan_shows_the_mixture_and_writes_nothing(recipe_file, recipe, tmp_path, monkeypatch, capsys):
    before = sorted(tmp_path.rglob("*"))
    code, out, _ = run_cli(monkeypatch, capsys, "plan", recipe_file)
    assert code == 0
    assert "4 steps of 4 examples" in out
    assert "⟦" in out
    assert "</s>⟧" in out
    code, out, _ = run_cli(monkeypatch, capsys, "plan", recipe_file, "--json")
    plan = json.loads(out)
    assert [task["examples"] for task in plan["tasks"]] == [10, 6]
    prompt, response = plan["examples"]["echo"]
    assert (prompt["trained"], response["trained"]) == (False, True)
    assert response["text"].endswith("</s>")
    assert plan["cost"]["seconds"] > 0
    assert sorted(tmp_path.rglob("*")) == before


def test_plan_is_cached_until_something_changes(recipe_file, recipe, monkeypatch, capsys):
    from multilora.runs import preview

    def plan(*options):
        code, out, _ = run_cli(monkeypatch, capsys, "plan", recipe_file, "--no-measure", "--json", *options)
        assert code == 0
        return json.loads(out)

    first = plan()
    calls = []
    monkeypatch.setattr(preview, "_make", lambda *a, make=preview._make: calls.append(1) or make(*a))
    assert plan() == first
    assert not calls
    assert plan("--set", "mixture.seed=1")["tasks"][0]["tokens"] != 0
    assert len(calls) == 1
    with open(recipe["tasks"][1]["path"], "a", encoding="utf-8") as file:
        file.write('{"word": "new", "twice": "new new"}\n')
    assert plan() != first
    assert len(calls) == 2


def test_import_does_not_load_heavy_packages():
    script = (
        "import sys, multilora, multilora.cli.app;"
        "print([name for name in ('torch', 'transformers', 'peft', 'datasets', 'pydantic') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_exists():
    import multilora

    assert sorted(multilora.__all__) == multilora.__all__
    for name in multilora.__all__:
        assert getattr(multilora, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = multilora.nothing


def test_help_lists_every_command(monkeypatch, capsys):
    code, out, _ = run_cli(monkeypatch, capsys, "--help")
    assert code == 0
    for command in ("demo", "plan", "train", "eval", "analyze", "export", "tasks", "nano"):
        assert command in out
