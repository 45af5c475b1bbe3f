"""Python objects named in a recipe: `package.module:name`, or `path/to/file.py:name`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from multilora.errors import InputError, nearest


def is_reference(text: str) -> bool:
    """Whether `text` has the form `module:name`."""
    module, separator, name = text.rpartition(":")
    return bool(separator and module.strip() and name.isidentifier())


def absolute_reference(reference: str, folder: Path) -> str:
    """The reference with the file's absolute path, if its module is a file or package in `folder`.

    The result works from any directory. A reference to an installed package is returned unchanged.
    """
    module, _, name = reference.rpartition(":")
    relative = Path(module) if module.endswith(".py") else Path(*module.split("."))
    candidates = [relative] if module.endswith(".py") else [relative.with_suffix(".py"), relative / "__init__.py"]
    for candidate in candidates:
        path = (folder / candidate.expanduser()).resolve()
        if path.is_file():
            return f"{path}:{name}"
    return reference


def load_reference(reference: str) -> Any:
    """The object behind a reference; its module is imported.

    A file is imported once, under a unique module name; during the import it can import files beside it.

    Raises:
        InputError: not of the form `module:name`, the module cannot be imported, or it has no such name.
    """
    module_name, _, name = reference.rpartition(":")
    if not is_reference(reference):
        raise InputError(f"{reference!r}: expected module:name or file.py:name, such as my_tasks:Contracts")
    module = _module(module_name)
    if not hasattr(module, name):
        public = [item for item in vars(module) if not item.startswith("_")]
        raise InputError(f"{reference!r}: {module_name} has no {name!r}{nearest(name, public)}")
    return getattr(module, name)


def _module(name: str) -> ModuleType:
    try:
        return _module_of_file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
    except Exception as error:  # the user's module may raise anything
        missing = isinstance(error, ModuleNotFoundError) and error.name in (name, name.partition(".")[0])
        hint = "; put the file beside the recipe, or install the package" if missing else ""
        raise InputError(f"cannot import {name!r} ({type(error).__name__}: {error}){hint}") from error


def _module_of_file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    # The hash distinguishes files of the same name.
    key = f"multilora_user_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}_{path.stem}"
    if key in sys.modules:
        return sys.modules[key]
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    spec = importlib.util.spec_from_file_location(key, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module
    try:
        with _importable(path.parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[key]
        raise
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
