"""Every code block of the documentation works: see `doc_pages.py`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from conftest import write_jsonl
from doc_pages import LANGUAGES, Block, blocks, commands, given, missing_lines, page_id, pages

import multilora
from multilora.cli import main
from multilora.cli.app import app
from multilora.recipe.schema import RecipeSchema
from multilora.study.schema import StudySchema

WITH_CODE = [path for path in pages() if blocks(path.read_text(encoding="utf-8"))]
TO_RUN = [
    path
    for path in WITH_CODE
    if any(
        block.language in ("python", "console") and not (block.not_run or block.title)
        for block in blocks(path.read_text(encoding="utf-8"))
    )
]


def check_command(arguments: list[str]) -> None:
    """Parse the options of a `multilora` command without running it."""
    command = typer.main.get_command(app)
    context = command.make_context("multilora", list(arguments), resilient_parsing=False)
    name, member, rest = command.resolve_command(context, context._protected_args + context.args)
    if getattr(member, "commands", None):
        _, member, rest = member.resolve_command(context, rest)
    member.make_context(name, rest, parent=context)


def check_values(values: dict) -> None:
    """Validate a part of a recipe, a whole one, or a study."""
    if "methods" in values:
        StudySchema.model_validate(values)
    else:
        RecipeSchema.model_validate({"model": "nano", "tasks": [{"name": "nano/arithmetic"}], **values})


@pytest.mark.parametrize("path", WITH_CODE, ids=page_id)
def test_blocks_are_well_formed(path):
    for block in blocks(path.read_text(encoding="utf-8")):
        where = f"{page_id(path)}:{block.line}"
        assert block.language in LANGUAGES, where
        if block.language == "python":
            compile(block.code, where, "exec")
        elif block.language == "yaml":
            check_values(yaml.safe_load(block.code))
        elif block.language == "console":
            for command in commands(block.code):
                for arguments in _multilora_commands(command.arguments):
                    try:
                        check_command(arguments)
                    except Exception as error:
                        pytest.fail(f"{where}: {command.line}: {error}")


def _multilora_commands(arguments: list[str]) -> list[list[str]]:
    """What follows `multilora` or `-m multilora` at the start of a command or after a launcher."""
    if arguments[:1] == ["multilora"]:
        return [arguments[1:]]
    for index in range(len(arguments) - 1):
        if arguments[index : index + 2] == ["-m", "multilora"]:
            return [arguments[index + 2 :]]
    return []


def train(folder: Path, name: str, seed: int) -> None:
    """A small finished and evaluated run on the embedded base."""
    recipe = {
        "model": {"name_or_path": "nano", "dtype": "float32"},
        "adapter": {"method": "multilora", "r": 4, "num_branches": 3},
        "tasks": [{"name": "nano/arithmetic", "max_examples": 60}, {"name": "nano/knowledge", "max_examples": 60}],
        "training": {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 5e-3},
        "evaluation": {"max_examples": 8, "max_new_tokens": 8},
        "mixture": {"seed": seed},
        "output_dir": str(folder / name),
    }
    multilora.evaluate(multilora.train(recipe))


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Path:
    """What pages may ask for with `given`: two runs, a LoRA, a base, data."""
    folder = tmp_path_factory.mktemp("shelf")
    train(folder, "runs/first", 0)
    train(folder, "runs/second", 1)
    multilora.export_lora(folder / "runs/first", folder / "adapters/lora")
    (folder / "data").mkdir()
    tickets = [
        {"question": f"Where is order {i}?", "answer": "shipping" if i % 3 else "billing", "id": i} for i in range(60)
    ]
    write_jsonl(folder / "data/tickets.jsonl", tickets)
    (folder / "data/tickets.csv").write_text(
        "question,answer\n" + "".join(f"{row['question']},{row['answer']}\n" for row in tickets)
    )
    chats = [
        {
            "messages": [
                {"role": "system", "content": "Answer in one word."},
                {"role": "user", "content": f"Is {i} even?"},
                {"role": "assistant", "content": "yes" if i % 2 == 0 else "no"},
            ]
        }
        for i in range(40)
    ]
    write_jsonl(folder / "data/chats.jsonl", chats)
    return folder


def put(shelf: Path, names: list[str], folder: Path) -> None:
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        source = shelf / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)


def run_command(line: str, arguments: list[str], monkeypatch, capsys) -> str:
    """Run a command in this process if it is `multilora`, else in a shell; returns what it printed."""
    if arguments[0] != "multilora" or any(sign in arguments for sign in ("|", ">", "&&")):
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr
    monkeypatch.setattr(sys, "argv", arguments)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr()
    assert not end.value.code, f"{line}\n{printed.err}"
    return printed.out + printed.err


def run_block(block: Block, where: str, namespace: dict, monkeypatch, capsys) -> None:
    if block.title:
        Path(block.title).parent.mkdir(parents=True, exist_ok=True)
        Path(block.title).write_text(block.code, encoding="utf-8")
    elif block.language == "python":
        exec(compile(block.code, where, "exec"), namespace)
    elif block.language == "console":
        for command in commands(block.code):
            printed = run_command(command.line, command.arguments, monkeypatch, capsys)
            missing = missing_lines(command.output, printed)
            assert not missing, f"{where}: {command.line}: not printed: {json.dumps(missing, indent=1)}\n{printed}"


@pytest.mark.slow
@pytest.mark.parametrize("path", TO_RUN, ids=page_id)
def test_the_blocks_of_a_page_run(path, shelf, tmp_path, monkeypatch, capsys):
    text = path.read_text(encoding="utf-8")
    put(shelf, given(text), tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    namespace: dict = {"__name__": "__main__"}
    for block in blocks(text):
        if not block.not_run:
            run_block(block, f"{page_id(path)}:{block.line}", namespace, monkeypatch, capsys)
