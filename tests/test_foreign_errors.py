"""What libraries raise comes out as an error of ours that says what to do."""

from __future__ import annotations

import errno
import pickle
import re

import pytest
import torch
from safetensors import SafetensorError

import multilora
from multilora.cli import main
from multilora.errors import DataError, InputError, MultiLoraError, RunError
from multilora.foreign_errors import as_own_error, own_errors


def pattern_error():
    try:
        re.compile("(")
    except re.error as error:
        return error
    raise AssertionError


CASES = [
    (OSError(errno.ENOSPC, "No space left on device", "/x/y"), RunError, "/x/y: No space left on device; free some"),
    (PermissionError(errno.EACCES, "Permission denied", "/x"), InputError, "/x: Permission denied; change its perm"),
    (OSError(errno.EROFS, "Read-only file system", "/x"), InputError, "Read-only file system; change its permissions"),
    (FileNotFoundError(errno.ENOENT, "No such file", "/x"), InputError, "/x: No such file; check the path"),
    (OSError(errno.EIO, "Input/output error"), RunError, "check the file system"),
    (ModuleNotFoundError("No module named 'wandb'", name="wandb"), InputError, "pip install wandb"),
    (ImportError("please install flash-attn to use it"), InputError, "pip install flash-attn"),
    (ImportError("bitsandbytes is required"), InputError, r"pip install 'multilora\[quantization\]'"),
    (ModuleNotFoundError("No module named 'odd.part'", name="odd.part"), InputError, "pip install odd$"),
    (ImportError("something is too old"), InputError, "a package is missing or too old"),
    (SafetensorError("header too large"), InputError, "a file of weights or data is damaged"),
    (pickle.UnpicklingError("invalid load key"), InputError, "is damaged"),
    (MemoryError(), RunError, "out of memory"),
    (torch.OutOfMemoryError("CUDA out of memory"), RunError, "lower per_device_train_batch_size"),
    (RecursionError("maximum recursion depth exceeded"), InputError, "nested too deeply"),
    (pattern_error(), InputError, r"a regular expression cannot be compiled .* pattern '\('"),
    (RuntimeError("size mismatch for weight: [2, 3] from checkpoint"), InputError, "do not fit the model's config"),
    (KeyError("q"), RunError, "unexpected KeyError: 'q'.*--debug"),
]


@pytest.mark.parametrize(("error", "kind", "message"), CASES, ids=lambda value: type(value).__name__)
def test_each_becomes_ours(error, kind, message):
    translated = as_own_error(error)
    assert type(translated) is kind
    assert re.search(message, str(translated))


def test_our_own_are_found_inside_others():
    inner = DataError("line 3")
    outer = RuntimeError("a worker failed")
    outer.__cause__ = inner
    assert as_own_error(outer) is inner
    assert as_own_error(inner) is inner


def test_functions_raise_nothing_else():
    @own_errors
    def failing():
        raise KeyError("q")

    with pytest.raises(RunError) as caught:
        failing()
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("flag", [[], ["--debug"]])
def test_the_command_line_shows_a_traceback_only_if_asked(flag, monkeypatch, capsys):
    from multilora.cli import plan

    def failing(*args, **kwargs):
        raise KeyError("q")

    monkeypatch.setattr("multilora.runs.preview.plan_preview", failing)
    assert plan is not None
    monkeypatch.setattr("sys.argv", ["multilora", "plan", "r.yaml", *flag])
    with pytest.raises(SystemExit) as ended:
        main()
    err = capsys.readouterr().err
    assert ended.value.code == 1
    assert "error: unexpected KeyError: 'q'" in err
    assert ("Traceback" in err) is bool(flag)


def test_public_functions_are_covered(monkeypatch, recipe):
    from multilora.recipe import Recipe

    def failing(*args, **kwargs):
        raise KeyError("q")

    monkeypatch.setattr(Recipe, "load", failing)
    for function in (multilora.train, multilora.plan):
        with pytest.raises(MultiLoraError, match="unexpected KeyError"):
            function(recipe)
