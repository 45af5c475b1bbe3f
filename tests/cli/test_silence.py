"""A normal command prints its result and notes of its own; lines of other libraries appear with --debug."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from importlib.util import find_spec

import pytest
import yaml
from test_bad_input import run_cli

from multilora.cli.silence import silent_libraries


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a recipe on the embedded base."""
    path = tmp_path_factory.mktemp("silence")
    recipe = {
        "model": {"name_or_path": "nano", "dtype": "float32"},
        "adapter": {"method": "lora", "r": 2},
        "tasks": [{"name": "nano/instructions", "max_examples": 20}],
        "training": {"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1},
        "evaluation": {"max_examples": 2, "max_new_tokens": 4},
        "output_dir": "run",
    }
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return path


def lines_of(folder, *arguments):
    """Lines on stdout and stderr of a new process; progress bars count."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": ""}
    done = subprocess.run(
        [sys.executable, "-m", "multilora", *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr.splitlines()


COMMANDS = [
    # arguments -> lines on stdout, and on stderr: the start line, one per progress bar, notes
    (["plan", "recipe.yaml", "--no-measure"], 14, 1),
    (["train", "recipe.yaml"], 10, 3),
    (["eval", "run"], None, 4),
    (["generate", "run", "--prompt", "Repeat: nut", "--max-new-tokens", "3"], None, 2),
    (["export", "run", "--to", "merged", "--out", "merged"], None, 1),
]


@pytest.mark.slow
def test_commands_are_silent(folder):
    for arguments, result, notes in COMMANDS:
        out, err = lines_of(folder, *arguments)
        assert len(err) == notes, "\n".join(err)
        assert result in (None, len(out)), "\n".join(out)
    out, err = lines_of(folder, "generate", "run", "--prompt", "Repeat: nut", "--max-new-tokens", "3", "--quiet")
    assert err == []
    assert out != []
    if find_spec("torchao") is not None:  # PEFT imports it, and it says that it cannot load its extensions
        _, err = lines_of(folder, "generate", "run", "--prompt", "Repeat: nut", "--max-new-tokens", "3", "--debug")
        assert len(err) > 2


def test_warnings_of_the_user_are_shown(tmp_path):
    with warnings.catch_warnings(record=True) as shown, silent_libraries():
        warnings.showwarning("of a user", UserWarning, str(tmp_path / "my_task.py"), 1)
        warnings.showwarning("of the standard library", UserWarning, warnings.__file__, 1)
        for name in ("torchao.of_this_test", "my_task.of_this_test"):
            logging.getLogger(name)
    assert [str(warning.message) for warning in shown] == ["of a user"]
    assert not logging.getLogger("torchao.of_this_test").isEnabledFor(logging.WARNING)
    assert logging.getLogger("torchao.of_this_test").isEnabledFor(logging.ERROR)
    assert logging.getLogger("my_task.of_this_test").isEnabledFor(logging.WARNING)


def test_help_and_errors_import_little(monkeypatch, tmp_path):
    script = (
        "import sys; from multilora.cli import main; sys.argv[1:] = {}\ntry: main()\nexcept SystemExit: pass\n"
        "print([m for m in ('numpy', 'torch', 'transformers', 'peft', 'datasets', 'pandas') if m in sys.modules])"
    )
    for arguments in (["--help"], ["plan", "nope.yaml"], ["train", "nope.yaml"], ["generate", "./nope", "-p", "a"]):
        done = subprocess.run(
            [sys.executable, "-c", script.format(arguments)], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "[]", arguments


def test_quiet_hides_notes_but_no_errors(tmp_path, monkeypatch, capsys):
    code, out, err = run_cli(monkeypatch, capsys, "plan", tmp_path / "nope.yaml", "--quiet")
    assert (code, out) == (2, "")
    assert "cannot be read" in err
