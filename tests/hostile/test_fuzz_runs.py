"""However a run directory is damaged, it is refused with an error of ours or gives a finite result; nothing is left."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import write_jsonl
from harness import contents
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_fuzz import FUZZ, _offline, mutate, refused_or_used  # noqa: F401  (a fixture)
from transformers import TrainerCallback

import multilora
from multilora.errors import InputError, MultiLoraError, RunError

OTHER_TYPES = ["null", "[]", "{}", "[1, 2]", '"text"', "3", "true", '{"step": {}}', '[{"a": 1}]', "-1", "1e400"]

LINES = [b"[1, 2]\n", b"garbage\n", b'{"step": "x"}\n', b"null\n", b"\xff\xfe", b"{}\n", b'"text"\n']


class StopAt(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 5:
            raise RuntimeError("power cut")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, model_folder):
    """A finished run, the same run stopped after step 5, and another run to take files from."""
    folder = tmp_path_factory.mktemp("runs")
    records = [{"question": f"is {number} even", "answer": "yes" if number % 2 == 0 else "no"} for number in range(12)]
    path = write_jsonl(folder / "even.jsonl", records)
    recipe = {
        "model": {"name_or_path": str(model_folder), "dtype": "float32"},
        "adapter": {"r": 2, "target_modules": ["q_proj", "down_proj"]},
        "tasks": [{"name": "even", "path": str(path), "prompt": "{{ question }}", "response": "{{ answer }}"}],
        "data": {"max_length": 64, "num_proc": 1},
        "training": {"max_steps": 6, "per_device_train_batch_size": 2, "save_steps": 2, "logging_steps": 2},
        "evaluation": {"max_new_tokens": 4, "max_examples": 2},
        "output_dir": str(folder / "finished"),
    }
    multilora.train(recipe)
    multilora.analyze(folder / "finished")
    with pytest.raises(RunError, match="power cut"):
        multilora.train({**recipe, "output_dir": str(folder / "stopped")}, callbacks=[StopAt()])
    multilora.train(
        {**recipe, "adapter": {"r": 3, "target_modules": ["q_proj"]}, "output_dir": str(folder / "other")},
        ["training.max_steps=4"],
    )
    return folder, recipe


def entries(run, wanted):
    return sorted(str(path.relative_to(run)) for path in run.rglob("*") if not path.is_symlink() and wanted(path))


def delete(path):
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def damage_once(run, other, draw):
    """Apply one damage to the run directory; returns what was damaged."""
    files = entries(run, Path.is_file)
    if not files:
        return ""
    name = draw(st.sampled_from(files))
    path = run / name
    action = draw(st.sampled_from(sorted(ACTIONS)))
    ACTIONS[action](path, run, other, draw)
    return f"{action} {name}"


def _cut(path, run, other, draw):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * draw(st.sampled_from([0, 0.1, 0.5, 0.9, 0.999])))])


def _flip(path, run, other, draw):
    content = bytearray(path.read_bytes())
    for _ in range(draw(st.integers(1, 4)) if content else 0):
        content[draw(st.integers(0, len(content) - 1))] ^= draw(st.integers(1, 255))
    path.write_bytes(bytes(content))


def _mutate_values(path, run, other, draw):
    """Change values inside JSON, one line of JSON Lines, or YAML."""
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        if path.suffix == ".yaml":
            values = yaml.safe_load(text)
            mutate(values, draw)
            path.write_text(yaml.dump(values, sort_keys=False), encoding="utf-8")
        elif path.suffix == ".jsonl":
            lines = text.splitlines()
            index = draw(st.integers(0, len(lines) - 1))
            values = json.loads(lines[index])
            mutate(values, draw)
            lines[index] = json.dumps(values, default=str)
            path.write_text("\n".join(lines) + "\n")
        else:
            values = json.loads(text)
            mutate(values, draw)
            path.write_text(json.dumps(values, default=str))
    except (ValueError, TypeError, AttributeError, yaml.YAMLError):  # not such a file, or damaged before
        path.write_text("{")


def _swap(path, run, other, draw):
    partner = run / draw(st.sampled_from(entries(run, Path.is_file)))
    first, second = path.read_bytes(), partner.read_bytes()
    path.write_bytes(second)
    partner.write_bytes(first)


def _loop(path, run, other, draw):
    path.unlink()
    path.symlink_to(path.name)


def _rename_checkpoint(path, run, other, draw):
    names = entries(run, lambda item: item.is_dir() and item.name.startswith("checkpoint-"))
    if names:
        source = run / draw(st.sampled_from(names))
        target = source.with_name(f"checkpoint-{draw(st.sampled_from(['0', '1', '3', '5', '6', '9', 'x', '-2']))}")
        if target != source:
            delete(target) if target.exists() or target.is_symlink() else None
            source.rename(target)


def _from_other(path, run, other, draw):
    names = entries(other, Path.is_file)
    same = str(path.relative_to(run))
    name = same if same in names and draw(st.booleans()) else draw(st.sampled_from(names))
    path.write_bytes((other / name).read_bytes())


def _append(path, run, other, draw):
    with path.open("ab") as file:
        file.write(draw(st.sampled_from(LINES)))


def _folder_becomes(path, run, other, draw):
    folder = path.parent
    if folder == run:
        return
    delete(folder)
    if draw(st.booleans()):
        folder.write_text("not a folder")


def _become_folder(path, run, other, draw):
    path.unlink()
    path.mkdir()


ACTIONS = {
    "delete": lambda path, run, other, draw: path.unlink(),
    "cut": _cut,
    "flip": _flip,
    "become a folder": _become_folder,
    "become another type": lambda path, run, other, draw: path.write_text(draw(st.sampled_from(OTHER_TYPES))),
    "mutate": _mutate_values,
    "mutate again": _mutate_values,
    "swap": _swap,
    "loop": _loop,
    "rename a checkpoint": _rename_checkpoint,
    "take from another run": _from_other,
    "append": _append,
    "remove or replace its folder": _folder_becomes,
}


def numbers(value):
    """Every number inside nested values."""
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers(item)
    elif isinstance(value, int | float):
        yield value


def assert_finite_files(folder):
    files = list(folder.glob("*.safetensors"))
    assert files
    for file in files:
        assert all(tensor.isfinite().all() for tensor in load_file(file).values())


COMMANDS = ("evaluate", "analyze", "lora", "merged")


def use(command, run, recipe, out):
    """Run a command, and check its result."""
    if command == "resume":
        trained = multilora.train(recipe, resume=True)
        assert all(map(math.isfinite, numbers(trained.training)))
    elif command == "evaluate":
        assert all(map(math.isfinite, numbers(multilora.evaluate(run).as_dict())))
    elif command == "analyze":
        assert all(map(math.isfinite, numbers(multilora.analyze(run).as_dict())))
    else:
        (multilora.export_lora if command == "lora" else multilora.export_merged)(run, out)
        assert_finite_files(out)


def attempt(command, kind, runs, work, draw):
    """Damage a copy of a run, use it, and check what is on disk afterwards."""
    folder, recipe = runs
    run, out = work / "run", work / "out"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    shutil.copytree(folder / kind, run)
    damages = [damage_once(run, folder / "other", draw) for _ in range(draw(st.integers(1, 3)))]
    before = contents(work)
    refused = None
    try:
        with refused_or_used():
            try:
                use(command, run, {**recipe, "output_dir": str(run)}, out)
            except MultiLoraError as error:
                refused = error
                raise
    except BaseException as error:
        error.add_note(f"{command} of a {kind} run: {damages}")
        raise
    after = contents(work)
    details = f"{command} of a {kind} run: {damages}: {refused}"
    left = [path for path in after.keys() - before.keys() if path.endswith((".partial", ".writing", ".old", ".lock"))]
    assert not left, details
    if refused is not None:
        assert not out.exists(), details
    if isinstance(refused, InputError):
        assert after == before, details
    if command == "resume" and kind == "stopped" and refused is None:
        actual, expected = (
            load_file(path / "adapter" / "adapter_model.safetensors") for path in (run, folder / "finished")
        )
        assert actual.keys() == expected.keys(), details
        assert all(actual[key].equal(expected[key]) for key in expected), details
    return details


CASES = [("resume", "stopped"), *((command, "finished") for command in ("resume", *COMMANDS))]


def check(examples, command, kind, runs, tmp_path, **options):
    @settings(FUZZ, max_examples=examples, phases=[Phase.generate], **options)
    @given(data=st.data())
    def damaged_run(data):
        attempt(command, kind, runs, tmp_path / "work", data.draw)

    damaged_run()


@pytest.mark.parametrize(("command", "kind"), CASES)
def test_damaged_run(command, kind, runs, tmp_path):
    check(8, command, kind, runs, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "kind"), CASES)
def test_many_damaged_runs(command, kind, runs, tmp_path):
    check(200, command, kind, runs, tmp_path, derandomize=False)
