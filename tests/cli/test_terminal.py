"""Commands in a real terminal: no value is cut at 80 and 120 columns, text is streamed, Ctrl-C leaves it whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import termios

import pexpect
import pytest
import yaml
from conftest import REPOSITORY
from peft import LoraConfig, get_peft_model
from terminal import output, plain, start

import multilora
from multilora.cli.study_output import show_results
from multilora.files import write_json
from multilora.study.stored import RESULTS_FILE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a run on the embedded base, `run`, its evaluation, a stock LoRA, `lora`, a study file and data."""
    path = tmp_path_factory.mktemp("terminal")
    recipe = {
        "model": {"name_or_path": "nano", "dtype": "float32"},
        "adapter": {"method": "multilora", "r": 2},
        "tasks": [
            {"name": "nano/instructions", "max_examples": 50},
            {"name": "nano/understanding", "max_examples": 50},
            {"name": "nano/arithmetic", "max_examples": 50},
        ],
        "training": {"max_steps": 3, "per_device_train_batch_size": 4, "logging_steps": 1, "learning_rate": 0.01},
        "evaluation": {"max_examples": 12, "max_new_tokens": 8},
        "output_dir": str(path / "run"),
    }
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run = multilora.train(recipe)
    multilora.evaluate(run)
    multilora.analyze(run)
    base = run.load_base()
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear"))
    model.peft_config["default"].base_model_name_or_path = "nano"
    model.save_pretrained(path / "lora")
    methods = {
        name: {"adapter": adapter, "grid": {"training.learning_rate": [0.002, 0.01]}}
        for name, adapter in (("lora r=4", {"method": "lora", "r": 4}), ("multilora 3x2", {"r": 2, "num_branches": 3}))
    }
    study = {"recipe": "recipe.yaml", "methods": methods, "search": {"trials": 2, "seeds": [1000], "metric": "loss"}}
    study |= {"seeds": [0, 1], "reference": "lora r=4", "output_dir": "study"}
    (path / "study.yaml").write_text(yaml.safe_dump(study))
    rows = [f"number {i},{'even' if i % 2 == 0 else 'odd'}" for i in range(40)]
    (path / "numbers.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return path


def cells(text):
    """Numbers and names of an output, without how they are laid out; other programs change how much disk is free."""
    text = re.sub(r"[\d.]+ GiB free", "GiB free", text)
    return set(re.findall(r"[^\s│┃━╇┏┓┡┩└┘┴┬├┤─┳╋╈┼]+", text))


VERBS = [
    ["plan", "recipe.yaml", "--no-measure"],
    ["eval", "run"],
    ["eval", "run", "lora", "--tasks", "recipe.yaml"],
    ["analyze", "run"],
    ["samples", "run", "--limit", "3"],
    ["tasks"],
    ["generate", "run", "--prompt", "one", "--prompt", "two", "--max-new-tokens", "5"],
    ["servers", "lora"],
    ["analyze", "run", "lora"],
    ["study", "study.yaml", "--dry-run"],
    ["study", "study.yaml", "--status"],
    ["prune", "run", "--out", "new"],
    ["init", "new", "--data", "numbers.csv", "--base", "nano", "--goal", "try"],
    ["doctor", "recipe.yaml"],
]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_nothing_is_cut(verb, folder):
    """A terminal shows every word of the piped output; only the times of a progress bar may differ.

    `new` is a path that is not there yet.
    """
    new = folder / "new"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as in the terminal: measured times are cached by it
    command = [sys.executable, "-m", "multilora", *verb]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    assert "…" not in done.stdout
    for columns in (80, 120):
        shutil.rmtree(new) if new.is_dir() else new.unlink(missing_ok=True)
        shown = output(verb, folder, columns=columns)
        assert "…" not in shown
        assert cells(done.stdout) <= cells(shown), columns
        drawn = [line for line in shown.splitlines() if re.search("[│┃━]", line)]
        assert all(len(line) <= columns for line in drawn)
    shutil.rmtree(new) if new.is_dir() else new.unlink(missing_ok=True)


@pytest.mark.parametrize("columns", [80, 120])
def test_nothing_is_cut_in_the_tables_of_a_study(columns, tmp_path, monkeypatch, capsys):
    file = REPOSITORY / "benchmarks" / "results" / "studies" / "nano.json"
    (tmp_path / RESULTS_FILE).parent.mkdir()
    write_json(tmp_path / RESULTS_FILE, json.loads(file.read_text(encoding="utf-8"))["results"])
    show_results(tmp_path, as_json=False)
    piped = capsys.readouterr().out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    show_results(tmp_path, as_json=False)
    shown = plain(capsys.readouterr().out)
    assert cells(piped) <= cells(shown)
    assert all(len(line) <= columns for line in shown.splitlines() if re.search("[│┃━]", line))


MODELS = ["run", "lora", "nano"]


@pytest.mark.parametrize("model", MODELS)
def test_generate_in_a_terminal(model, folder):
    arguments = ["generate", model, "--prompt", "The place", "--prompt", "Two", "--max-new-tokens", "6"]
    shown = output(arguments, folder)
    piped = subprocess.run(
        [sys.executable, "-m", "multilora", *arguments, "--json"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    for answer in json.loads(piped.stdout):
        assert f"> {answer['prompt']}\n{answer['text']}" in shown
    if model != "nano":
        shown = output([*arguments, "--compare"], folder)
        assert "base" in shown
        assert "│" in shown


@pytest.mark.parametrize("model", MODELS)
def test_chat_in_a_terminal(model, folder):
    child = start(["chat", model, "--max-new-tokens", "5"], folder)
    child.expect("lists the commands")
    child.expect("> ")
    child.sendline("one")
    child.expect("maximum length|\n> ")
    child.sendline("/help")
    child.expect("start a new conversation")
    child.sendline("/reset")
    child.sendline("/nothing")
    child.expect("unknown command '/nothing'")
    child.sendline("two")
    child.sendline("/exit")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def terminal_modes(child):
    return termios.tcgetattr(child.child_fd)


def test_ctrl_c_stops_an_answer_and_the_chat_goes_on(folder):
    child = start(["chat", "nano", "--max-new-tokens", "450", "--temperature", "1"], folder)
    child.expect("lists the commands")
    child.expect("> ")
    before = terminal_modes(child)
    child.sendline("one")
    child.expect(r"\w+ \w+ \w+")  # it is being streamed
    child.sendintr()
    child.expect(r"\(stopped\)")
    child.expect("> ")
    assert terminal_modes(child) == before
    child.sendline("/exit")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_ctrl_c_at_the_prompt_leaves(folder):
    child = start(["chat", "nano"], folder)
    child.expect("lists the commands")
    child.expect("> ")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_ctrl_c_stops_generate(folder):
    child = start(["generate", "nano", "--prompt", "one", "--max-new-tokens", "450", "--temperature", "1"], folder)
    before = terminal_modes(child)
    child.expect("prompts raw")
    child.expect(r"\w+ \w+ \w+")
    child.sendintr()
    child.expect("stopped")
    child.expect(pexpect.EOF)
    assert terminal_modes(child) == before
    child.close()
    assert child.exitstatus == 130
    assert "Traceback" not in plain(child.before)


def test_ctrl_c_in_a_progress_bar_shows_the_cursor_again(folder):
    child = start(["train", "recipe.yaml", "--set", "output_dir=stopped", "--set", "training.max_steps=1000"], folder)
    child.expect("training multilora")
    child.expect(r"\d/1000")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus != 0
    assert child.before.rfind("\x1b[?25h") >= child.before.rfind("\x1b[?25l")
