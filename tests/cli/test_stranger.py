"""A stranger with a wheel and a CSV file, in a fresh environment without the repository: from data to an export."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
from itertools import permutations

import pytest
from conftest import REPOSITORY

WORDS = ("red", "cat", "wolf", "owl", "plum", "blue", "dog", "cup", "lamp", "hat", "frog", "jam")


@pytest.fixture(scope="module")
def multilora_command(tmp_path_factory):
    """The command in a new environment with the wheel, and nothing of the repository on its path."""
    folder = tmp_path_factory.mktemp("stranger")
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", folder / "dist", REPOSITORY]
    subprocess.run(list(map(str, build)), check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    constraints = REPOSITORY / "constraints.txt"
    torch = re.search(r"^torch==.*$", constraints.read_text(encoding="utf-8"), re.MULTILINE)[0]
    for what in ([torch], ["-c", str(constraints), str(wheel)]):
        subprocess.run([python, "-m", "pip", "install", "--quiet", *what], check=True, capture_output=True)
    return folder / "venv" / "bin" / "multilora"


@pytest.mark.slow
def test_from_a_csv_file_to_an_export(multilora_command, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["HF_HOME"] = str(tmp_path / "cache")
    environment.pop("HF_DATASETS_CACHE", None)

    def run(*arguments, text=None):
        done = subprocess.run(
            [multilora_command, *arguments], cwd=tmp_path, env=environment, input=text, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    rows = [f"{first} and {second},{second} and {first}" for first, second in permutations(WORDS, 2)]
    (tmp_path / "pairs.csv").write_text("\n".join(["question,answer", *rows]) + "\n")

    done = run("init", "--data", "pairs.csv", "--base", "nano", "--goal", "try")
    assert "pairs: 132 records, " in done.stdout
    done = run("train", "recipe.yaml", "--set", "training.learning_rate=1e-2")
    assert "base nano, device " in done.stderr
    assert "next: multilora eval" in done.stdout
    scores = json.loads(run("eval", "runs/first", "--json").stdout)
    assert scores["before"]["pairs"]["value"] == 0
    assert scores["after"]["pairs"]["value"] > 0.8  # on held-out pairs
    done = run("generate", "runs/first", "--prompt", "owl and cup", "--compare", "--json", "--max-new-tokens", "16")
    before, after = json.loads(done.stdout)
    assert before["text"] != after["text"] == "cup and owl"
    said = run("chat", "runs/first", "--max-new-tokens", "16", text="owl and cup\n/exit\n").stdout
    assert said == after["text"] + "\n"
    done = run("export", "runs/first", "--to", "lora", "--out", "lora")
    assert "verified with" in done.stdout
    options = ["--base", "nano", "--dtype", "float32", "--template", "instruction", "--json", "--max-new-tokens", "16"]
    answer = run("generate", "lora", "--prompt", "owl and cup", *options)
    assert json.loads(answer.stdout)[0]["text"] == after["text"]
    assert "multilora" in run("doctor", "recipe.yaml").stdout
