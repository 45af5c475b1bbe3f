"""The README is true: its example and the shipped examples run, its tree exists, the recipes are valid."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, make_llama, make_tokenizer, write_jsonl

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def run_script(arguments, folder):
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=folder, check=True, capture_output=True, text=True
    )


def test_the_python_example_runs(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code.splitlines()) <= 20
    script = tmp_path / "readme.py"
    script.write_text(code)
    done = run_script([script], tmp_path)
    for line in done.stdout.splitlines()[:2]:
        before, after = map(float, re.findall(r"\d+\.\d+", line))
        assert after < before
    assert (tmp_path / "runs" / "readme-lora" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("example", sorted((REPOSITORY / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_examples_run(example, tmp_path):
    assert run_script([example], tmp_path).stdout


def test_every_path_of_the_tree_exists():
    (tree,) = re.findall(r"## The tree\n\n(.*)", README, re.DOTALL)
    folder = REPOSITORY
    for line in tree.splitlines():
        if not line.strip():
            continue
        name = line.split()[0]
        inside = line.startswith(" " * 6)
        folder = folder if inside else REPOSITORY / name
        path = folder / name if inside else folder
        assert path.exists(), line


def test_the_tree_names_every_room():
    shown = set(re.findall(r"^ {4,6}(\S+)", README.split("## The tree")[1], re.MULTILINE))
    package = REPOSITORY / "src" / "multilora"
    for item in package.iterdir():
        if item.name.startswith(("_", "py.typed")):
            continue
        assert (f"{item.name}/" if item.is_dir() else item.name) in shown, item.name


def test_the_verbs_of_the_readme_are_the_verbs():
    from multilora.cli.app import app

    (block,) = re.findall(r"## On the command line\n\n(.*?)\n\n", README, re.DOTALL)
    shown = {line.split()[1] for line in block.splitlines()} | set(re.findall(r"\| (\w+)", block.splitlines()[-1]))
    registered = {command.name for command in app.registered_commands} | {group.name for group in app.registered_groups}
    assert shown == registered


DATA = {
    "gsm8k": {"question": "How many?", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"},
    "superglue/RTE": {"premise": "He left.", "hypothesis": "He went.", "label": "entailment"},
    "superglue/WiC": {"word": "bank", "sentence1": "The bank.", "sentence2": "A bank.", "label": True},
    "superglue/CB": {"premise": "He left.", "hypothesis": "He went.", "label": "neutral"},
    "superglue/MultiRC": {
        "passage": {
            "text": "He left.",
            "questions": [{"idx": 0, "question": "Who?", "answers": [{"text": "He", "idx": 0, "label": 1}]}],
        },
        "idx": 0,
    },
    "superglue/WSC": {"text": "He left.", "target": {"span1_text": "He", "span2_text": "left"}, "label": False},
    "superglue/COPA": {"premise": "It rained.", "choice1": "Sun.", "choice2": "Wet.", "question": "effect", "label": 1},
}


def lay_out_data(folder: Path) -> None:
    """Miniatures of the public files where the shipped recipes look for them."""
    for name, record in DATA.items():
        (folder / "data" / name).mkdir(parents=True)
        for split in ("train", "val", "test"):
            write_jsonl(folder / "data" / name / f"{split}.jsonl", [record] * 4)
    (folder / "data" / "dolly15k").mkdir()
    dolly = {"instruction": "Add 1 and 2.", "context": "", "response": "3"}
    write_jsonl(folder / "data" / "dolly15k" / "dolly.jsonl", [{**dolly, "context": str(i)} for i in range(20)])
    for split in ("dev", "val", "test"):
        (folder / "data" / "mmlu" / split).mkdir(parents=True)
        file = folder / "data" / "mmlu" / split / f"anatomy_{split}.csv"
        file.write_text('"What, then?",a,b,c,d,B\n' * 3)
    model = folder / "models" / "small-base"
    make_llama(max_position_embeddings=1024).save_pretrained(model)
    make_tokenizer().save_pretrained(model)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_train(path, tmp_path):
    lay_out_data(tmp_path)
    shutil.copy(path, tmp_path / path.name)
    command = ["-m", "multilora", "train", path.name, "--set", "training.max_steps=2"]
    done = run_script(command, tmp_path)
    output = Path(yaml.safe_load(path.read_text())["output_dir"])
    assert "next: multilora eval" in done.stdout
    assert (tmp_path / output / "train.json").is_file()


@pytest.mark.parametrize("path", sorted((REPOSITORY / "recipes/accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_shipped_configs(path):
    from accelerate.commands.config import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    config = load_config_from_file(str(path))
    options = [action.dest for action in launch_command_parser()._actions]
    for section in ("fsdp_config", "deepspeed_config"):
        assert set(getattr(config, section) or {}) <= set(options), section
    if config.deepspeed_config:  # on several machines torchrun's way, not a launcher of DeepSpeed's
        assert config.deepspeed_config["deepspeed_multinode_launcher"] == "standard"
    assert f"recipes/accelerate/{path.name}" in README
    assert f"recipes/accelerate/{path.name}" in path.read_text(encoding="utf-8")
