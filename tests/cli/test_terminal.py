"""Commands in a real terminal: no value is cut at 80 and 120 columns, text is streamed, Ctrl-C leaves it whole."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import termios

import pexpect
import pytest
import yaml
from peft import LoraConfig, get_peft_model
from terminal import output, plain, start

import multilora

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a run on the embedded base, called `run`, an evaluation of it and a stock LoRA, `lora`."""
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
    return path


def cells(text):
    """Numbers and names of an output, without how they are laid out."""
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
]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_nothing_is_cut(verb, folder):
    """A terminal shows every word of the piped output; only the times of a progress bar may differ."""
    done = subprocess.run(
        [sys.executable, "-m", "multilora", *verb], cwd=folder, capture_output=True, text=True, check=True
    )
    assert "…" not in done.stdout
    for columns in (80, 120):
        shown = output(verb, folder, columns=columns)
        assert "…" not in shown
        assert cells(done.stdout) <= cells(shown), columns
        drawn = [line for line in shown.splitlines() if re.search("[│┃━]", line)]
        assert all(len(line) <= columns for line in drawn)


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
