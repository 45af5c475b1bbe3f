"""`multilora init` and `multilora doctor`."""

from __future__ import annotations

import json

import pytest
import yaml
from test_bad_input import run_cli

CSV = "text,label,date\n" + "".join(f"number {i},{'even' if i % 2 == 0 else 'odd'},{i}\n" for i in range(30))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "numbers.csv").write_text(CSV)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_init_writes_a_recipe_and_plans_it(folder, model_folder, monkeypatch, capsys):
    arguments = ["init", "--data", "numbers.csv", "--base", model_folder, "--goal", "try"]
    code, out, err = run_cli(monkeypatch, capsys, *arguments)
    assert code == 0, err
    assert "numbers: 30 records, fixed responses" in out
    assert "steps of 8 examples" in out
    assert "next: multilora train recipe.yaml" in out
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recipe["tasks"][0]["choices"] == ["even", "odd"]
    code, out, err = run_cli(monkeypatch, capsys, *arguments)
    assert (code, out) == (2, "")
    assert "there is a file already" in err
    code, out, _ = run_cli(monkeypatch, capsys, *arguments[:1], "second.yaml", *arguments[1:], "--json")
    assert code == 0
    assert json.loads(out)["tasks"]["numbers"]["kind"] == "fixed responses"


def test_init_without_an_answer(folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    code, _, err = run_cli(monkeypatch, capsys, "init")
    assert code == 2
    assert "--data is missing; give it, or run this in a terminal" in err
    assert not (folder / "recipe.yaml").exists()


def test_a_recipe_that_cannot_be_planned_is_kept(folder, monkeypatch, capsys):
    code, _, err = run_cli(monkeypatch, capsys, "init", "--data", "numbers.csv", "--base", "./nowhere")
    assert code == 2
    assert "recipe.yaml is written, but cannot be planned yet" in err
    assert "no folder './nowhere'" in err
    assert (folder / "recipe.yaml").is_file()


def test_init_asks(folder, model_folder, monkeypatch, capsys):
    answers = {"data": "numbers.csv", "base": str(model_folder), "goal": "try"}
    asked = []

    def ask(what, **_):
        asked.append(what.split()[0])
        return answers[asked[-1]]

    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("typer.prompt", ask)
    code, _, err = run_cli(monkeypatch, capsys, "init")
    assert code == 0, err
    assert asked == ["data", "base", "goal"]


def test_doctor(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "secret-token")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, out, _ = run_cli(monkeypatch, capsys, "doctor")
    assert code == 0
    assert "HF_HUB_OFFLINE=1" in out
    assert "secret-token" not in out
    assert len(out.splitlines()) <= 24
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    code, out, _ = run_cli(monkeypatch, capsys, "doctor", file, "--json")
    assert code == 0
    assert json.loads(out)["recipe"]["problems"] == []
    recipe["training"]["report_to"] = "wandb"
    recipe["tasks"][0]["path"] = "nowhere.jsonl"
    file.write_text(yaml.safe_dump(recipe))
    code, out, _ = run_cli(monkeypatch, capsys, "doctor", file)
    assert code == 2
    assert "problem    tasks.0 (even): path: no such file or folder: 'nowhere.jsonl'" in out


def test_doctor_says_what_a_recipe_needs(recipe, monkeypatch):
    from multilora.runs import doctor

    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    recipe["evaluation"]["protocol"] = "harness"
    recipe["model"]["name_or_path"] = "owner/model"
    needs = doctor.diagnose(recipe)["recipe"]
    assert needs["install"] == ["multilora[lm-eval]"]
    assert needs["from_hub"] == ["owner/model"]
