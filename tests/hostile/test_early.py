"""What is known before loading is said before loading: without importing torch, or before any model is loaded."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from safetensors import SafetensorError

import multilora
from multilora.errors import InputError, RecipeError, RunError
from multilora.runs.directory import Run

LIGHT = """
import sys
from multilora.cli import main
sys.argv = ["multilora", *sys.argv[1:]]
try:
    main()
finally:
    print("imported:", *sorted({"torch", "transformers", "peft", "datasets"} & set(sys.modules)))
"""


def light(*arguments, cwd):
    """Run the command line in a process of its own; returns (exit code, stdout, stderr)."""
    command = [sys.executable, "-c", LIGHT, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan", "nope.yaml"), "nope.yaml: 1 problem"),
        (("train", "nope.yaml"), "nope.yaml: 1 problem"),
        (("eval", "nope"), "no recipe.yaml here"),
        (("analyze", "nope"), "no recipe.yaml here"),
        (("export", "nope", "--to", "lora", "--out", "out"), "no recipe.yaml here"),
        (("export", "nope", "--to", "merged", "--out", "out"), "no recipe.yaml here"),
        (("eval", "started"), "so its training did not finish"),
        (("export", "finished", "--to", "lora", "--out", "started"), "already holds a run"),
        (("train", "broken.yaml"), "broken.yaml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_torch_is_not_imported(arguments, message, recipe, tmp_path):
    (tmp_path / "broken.yaml").write_text("tasks: [")
    for name in ("started", "finished"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    (tmp_path / "finished" / "adapter").mkdir()
    code, out, err = light(*arguments, cwd=tmp_path)
    assert message in err
    assert code == 2
    assert out.endswith("imported:\n"), out


@pytest.mark.parametrize(
    ("key", "value", "package"),
    [
        ("report_to", "wandb", "wandb"),
        ("report_to", ["none", "wandb"], "wandb"),
        ("report_to", ["tensorboard"], "tensorboard"),
        ("optim", "adamw_8bit", "bitsandbytes"),
        ("optim", "paged_adamw_32bit", "bitsandbytes"),
        ("optim", "adamw_torch_4bit", "torchao"),
        ("optim", "galore_adamw_8bit", "galore_torch"),
        ("use_liger_kernel", True, "liger_kernel"),
    ],
)
def test_missing_package(key, value, package, recipe, monkeypatch):
    monkeypatch.setattr("multilora.recipe.training_keys.find_spec", lambda name: None)
    recipe["training"][key] = value
    with pytest.raises(RecipeError, match=rf"training.{key}: \w+ needs {package}; pip install "):
        multilora.Recipe.load(recipe)


def test_installed_package(recipe, monkeypatch):
    """Either of two packages is enough."""
    monkeypatch.setattr(
        "multilora.recipe.training_keys.find_spec", lambda name: object() if name == "tensorboardX" else None
    )
    multilora.Recipe.load({**recipe, "training": {"max_steps": 1, "report_to": ["tensorboard"]}})


@contextmanager
def unprivileged():
    """Drop the rights of root, for which every folder can be written."""
    if os.geteuid() != 0:
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setresgid(65534, 65534, 0)
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(groups)


@pytest.fixture
def read_only(recipe):
    """A finished run that cannot be written, in a folder that every user can reach."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = multilora.train(recipe, ["training.max_steps=1", f"output_dir={folder / 'run'}"])
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield run.path
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)


def refuse(*_, **__):
    raise AssertionError("this is the work")


@pytest.mark.parametrize("verb", ["evaluate", "analyze", "export_lora", "export_merged", "train"])
def test_what_cannot_be_written_is_refused_before_the_work(verb, read_only, monkeypatch):
    for name in ("load_model", "load_base", "load_tokenizer"):
        monkeypatch.setattr(Run, name, refuse)
    folder = read_only.parent
    new = {"model": "nano", "tasks": [{"name": "nano/knowledge"}], "output_dir": str(folder / "new")}
    actions = {
        "evaluate": lambda: multilora.evaluate(read_only),
        "analyze": lambda: multilora.analyze(read_only),
        "export_lora": lambda: multilora.export_lora(read_only, folder / "out"),
        "export_merged": lambda: multilora.export_merged(read_only, folder / "out"),
        "train": lambda: multilora.Recipe.load(new, check_writable=True),
    }
    before = sorted(folder.rglob("*"))
    with unprivileged(), pytest.raises(InputError, match=r"Permission denied|cannot be written"):
        actions[verb]()
    assert sorted(folder.rglob("*")) == before


def full_disk(error):
    def fail(*args, **_):
        for folder in (argument for argument in args if isinstance(argument, str | Path)):
            target = Path(folder) / "half" if Path(folder).is_dir() else Path(folder)
            target.write_text("half of it")
        raise error

    return fail


NO_SPACE = [
    OSError(errno.ENOSPC, "No space left on device"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
]


def test_full_disk_at_export(recipe, tmp_path, monkeypatch):
    run = multilora.train(recipe, ["training.max_steps=1"])
    monkeypatch.setattr(Path, "write_bytes", full_disk(NO_SPACE[0]))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunError, match="No space left"):
        multilora.export_lora(run, tmp_path / "new" / "out")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("error", NO_SPACE, ids=lambda error: type(error).__name__)
def test_full_disk_at_the_first_checkpoint(error, recipe, monkeypatch):
    run = Path(recipe["output_dir"])
    with monkeypatch.context() as patch:
        patch.setattr("torch.save", full_disk(error))
        with pytest.raises(RunError, match=r"(?s)training failed at step 2: .*(No space|disk is full).*no complete"):
            multilora.train(recipe, ["training.save_steps=2"])
    assert list((run / "checkpoints").iterdir()) == []
    assert not list(run.rglob("*.partial"))
    assert multilora.train(recipe, ["training.save_steps=2"], resume=True).training["steps"] == 4
