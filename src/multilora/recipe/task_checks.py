"""Checks of one task of a recipe before its data is read."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from multilora.errors import InputError, nearest
from multilora.files import files_of
from multilora.recipe.built_in_tasks import BUILT_IN, built_in
from multilora.recipe.schema import HUB_PREFIX, TaskSection
from multilora.references import load_reference

_HUB_NAME = re.compile(re.escape(HUB_PREFIX) + r"[\w.-]+(/[\w.-]+)?(:[\w. -]+)?")
# The forms of your own data: the keys that identify a form, and the keys that a form needs.
FORMS: dict[str, tuple[str, ...]] = {
    "text": ("prompt", "response"),
    "chat": ("messages", "tools"),
    "question": ("question", "answer"),
}
FORM_NEEDS: dict[str, tuple[str, ...]] = {
    "text": ("prompt", "response"),
    "chat": ("messages",),
    "question": ("question", "choices", "answer"),
}


def check_task(index: int, section: TaskSection) -> Iterator[str]:
    """Check a task; yields the problems."""
    where = f"tasks.{index} ({section.name})"
    yield from _check_paths(where, section)
    if section.harness_task is not None and (section.task is not None or not built_in(section.name)):
        yield f"{where}: harness_task: lm-eval reads the data of built-in tasks only; leave it out"
    if section.task is not None:
        yield from _check_python_task(where, section)
    elif section.options:
        yield f"{where}: options are passed to a task in Python; set `task`, or leave options out"
    elif built_in(section.name):
        yield from _check_built_in(where, section)
    else:
        yield from _check_own_data(where, section)


def _check_built_in(where: str, section: TaskSection) -> Iterator[str]:
    if section.name.startswith("nano/"):
        if section.path is not None:
            yield f"{where}: path: this task is generated and reads no files; leave path out"
        if section.on_error != "raise":
            yield f"{where}: on_error: this task is generated and has no bad records; leave on_error out"
    for key in section.own_data_keys:
        yield f"{where}: {key} is for your own data; the built-in task {section.name!r} sets it, so leave it out"


def _check_python_task(where: str, section: TaskSection) -> Iterator[str]:
    for key in section.own_data_keys:
        if key != "metric":
            yield f"{where}: {key} cannot be combined with `task`, which reads its data in Python; leave it out"
    try:
        load_reference(section.task or "")
    except InputError as error:
        yield f"{where}: task: {error}"
    yield from _check_metric(where, section)


def _check_own_data(where: str, section: TaskSection) -> Iterator[str]:
    forms = [form for form, keys in FORMS.items() if any(getattr(section, key) is not None for key in keys)]
    if len(forms) > 1:
        present = [key for keys in FORMS.values() for key in keys if getattr(section, key) is not None]
        yield (
            f"{where}: {', '.join(present)} belong to different forms of data; use one of: "
            f"{'; '.join(', '.join(keys) for keys in FORM_NEEDS.values())}"
        )
    elif not forms:
        missing = [key for key in ("path", "prompt", "response") if getattr(section, key) is None]
        yield (
            f"{where}: not a built-in task{nearest(section.name, BUILT_IN)}, so it needs {', '.join(missing)} "
            "(or messages; or question, choices, answer; `multilora tasks` lists the built-in ones)"
        )
    else:
        (form,) = forms
        missing = [key for key in ("path", *FORM_NEEDS[form]) if getattr(section, key) is None]
        if missing:
            yield (
                f"{where}: not a built-in task{nearest(section.name, BUILT_IN)}, so it needs {', '.join(missing)} "
                "(`multilora tasks` lists the built-in ones)"
            )
        yield from _check_form(where, section, form)


def _check_paths(where: str, section: TaskSection) -> Iterator[str]:
    """Check that paths exist and that paths and splits can be combined."""
    for key in ("path", "eval_path"):
        value = getattr(section, key)
        if value is None:
            continue
        if value.startswith(HUB_PREFIX) and key == "path":
            if not _HUB_NAME.fullmatch(value):
                yield f"{where}: path: {value!r}, expected {HUB_PREFIX}owner/name or {HUB_PREFIX}owner/name:config"
        else:
            for file in files_of(str(Path(value).expanduser())):
                yield from _check_local_path(f"{where}: {key}", str(file), value, folder_allowed=key == "path")
    if section.path is not None and section.eval_path is not None:
        with suppress(OSError):
            if Path(section.path).expanduser().samefile(Path(section.eval_path).expanduser()):
                yield (
                    f"{where}: eval_path: is the training file too; name another file, or leave eval_path out to hold "
                    "out a part of the training examples"
                )
    local = section.path is not None and not section.path.startswith(HUB_PREFIX)
    for key in ("split", "eval_split"):
        if getattr(section, key) is None:
            continue
        if section.name.startswith("nano/"):
            yield f"{where}: {key}: this task is generated and has its own splits; leave {key} out"
        elif local and not Path(section.path or "").expanduser().is_dir():
            single = Path(section.path or "").expanduser().is_file()
            kind = "is a single file, which has" if single else "is not a folder, so it has"
            yield f"{where}: {key}: path {kind} no splits; use eval_path, or give its folder"
    if section.eval_path is not None and section.eval_split is not None:
        yield f"{where}: eval_path and eval_split both name the evaluation examples; keep one"


def _check_local_path(where: str, file: str, value: str, *, folder_allowed: bool) -> Iterator[str]:
    try:
        mode = Path(file).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        yield (
            f"{where}: no such file or folder: {value!r} (looked in {os.getcwd()}); for a dataset on the hub write "
            f"{HUB_PREFIX}owner/name"
        )
        return
    except OSError as error:
        yield f"{where}: {value!r} cannot be read ({error.strerror or error}); check the path and its permissions"
        return
    if stat.S_ISDIR(mode):
        if not folder_allowed:
            yield f"{where}: {value!r} is a folder, expected a file"
    elif not stat.S_ISREG(mode):  # it is read more than once, and opening a pipe could wait forever
        yield f"{where}: {value!r} is a pipe or a device, expected a file or a folder; save the data to a file"


def _check_form(where: str, section: TaskSection, form: str) -> Iterator[str]:
    """Check the combination of keys within one form of your own data."""
    metric, choices = section.metric, section.choices
    if form == "chat":
        if choices is not None:
            yield f"{where}: choices cannot be combined with messages; leave them out, or use question and answer"
        if metric not in (None, "none"):
            yield f"{where}: metric {metric}: chats are scored by their loss; leave metric out or set it to none"
        return
    if form == "text" and isinstance(choices, list):
        repeated = sorted({choice for choice in choices if choices.count(choice) > 1})
        if repeated:
            yield f"{where}: choices lists {', '.join(map(repr, repeated))} more than once; list each once"
    yield from _check_metric(where, section, answers="text" if choices is None else "choice")


def _check_metric(where: str, section: TaskSection, answers: str | None = None) -> Iterator[str]:
    """Check that the metric exists, that its package is installed, and that it scores this kind of answer."""
    if section.metric is None or section.metric == "none":
        return
    from multilora.metrics import find_metric  # here, because it imports numpy

    try:
        metric = find_metric(section.metric)
    except InputError as error:
        yield f"{where}: metric: {error}"
        return
    if metric.requires is not None and find_spec(metric.requires) is None:
        yield f"{where}: metric {section.metric} needs {metric.requires}; pip install 'multilora[metrics]'"
    if answers is not None and metric.answers != answers:
        if answers == "text":
            yield (
                f"{where}: metric {section.metric} scores choices; list them under `choices`, or use a metric of "
                "generated text such as exact_match"
            )
        else:
            yield (
                f"{where}: metric {section.metric} scores generated text, and this task has choices; use accuracy or "
                "f1_macro, or leave choices out"
            )
