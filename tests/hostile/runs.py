"""Damaged run directories: files that are missing, truncated, of a wrong type or from something else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from harness import Case, Row

ADAPTER = "adapter/adapter_model.safetensors"
CONFIG = "adapter/adapter_config.json"


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def garbage(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 4)


def become_list(path: Path) -> None:
    path.write_text("[1, 2]\n")


def become_folder(path: Path) -> None:
    remove(path)
    path.mkdir()


def become_file(path: Path) -> None:
    remove(path)
    path.write_text("not a folder")


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def edit_weights(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def _transpose(tensors: dict[str, Any]) -> None:
    for name in list(tensors)[:1]:
        tensors[name] = tensors[name].new_zeros(7, 5)


def _drop_one(tensors: dict[str, Any]) -> None:
    del tensors[next(iter(tensors))]


def _drop_all(tensors: dict[str, Any]) -> None:
    tensors.clear()


def _not_finite(tensors: dict[str, Any]) -> None:
    for tensor in tensors.values():
        tensor.fill_(float("nan"))


_nan = partial(edit_weights, change=_not_finite)
Damage = Callable[[Path], None]

# (file of the run, damage, what the message says): for eval, analyze and export alike, before anything is loaded
EVERYWHERE: list[tuple[str, Damage, str]] = [
    ("", remove, "no recipe.yaml here"),
    ("", become_file, "no recipe.yaml here"),
    ("", become_folder, "no recipe.yaml here"),
    ("recipe.yaml", remove, "no recipe.yaml here"),
    ("recipe.yaml", become_folder, "cannot be read (it is a folder)"),
    ("recipe.yaml", empty, "this run is damaged; restore its recipe.yaml"),
    ("recipe.yaml", truncate, "this run is damaged; restore its recipe.yaml"),
    ("recipe.yaml", garbage, "this run is damaged; restore its recipe.yaml"),
    ("recipe.yaml", become_list, "this run is damaged; restore its recipe.yaml"),
    ("recipe.yaml", partial(edit_text, old="max_length", new="max_len"), "data.max_len: unknown key"),
    ("adapter", remove, "no adapter/ here, so its training did not finish"),
    ("adapter", become_file, "no adapter/ here, so its training did not finish"),
]

# (file of the run, damage, what the message says): once the trained weights are loaded
WEIGHTS: list[tuple[str, Damage, str]] = [
    (CONFIG, partial(edit_json, r=0), "r is 0, expected a whole number of at least 1"),
    (CONFIG, partial(edit_json, r=4), "has 28 of 42 parameters in another shape"),
    (CONFIG, partial(edit_json, lora_alpha=float("nan")), "lora_alpha is nan, expected a finite number above 0"),
    (ADAPTER, empty, "damaged"),
    (ADAPTER, truncate, "damaged"),
    (ADAPTER, garbage, "damaged"),
    (ADAPTER, partial(edit_weights, change=_transpose), "has 1 of 42 parameters in another shape"),
    (ADAPTER, partial(edit_weights, change=_drop_one), "lacks 1 of 42 parameters"),
    (ADAPTER, partial(edit_weights, change=_drop_all), "lacks 42 of 42 parameters"),
]

# `analyze` reads the factors from the file one module at a time.
FACTORS = [
    *WEIGHTS[:1],
    (CONFIG, partial(edit_json, r=4), "expected a total rank of 12 by its config (and 13 more modules)"),
    WEIGHTS[2],
    *((ADAPTER, damage, "adapter_model.safetensors: ") for damage in (empty, truncate, garbage)),
    (ADAPTER, partial(edit_weights, change=_transpose), "expected a total rank of 6 by its config"),
    (ADAPTER, partial(edit_weights, change=_drop_one), " has no multilora_"),
    (ADAPTER, partial(edit_weights, change=_drop_all), "has no factors of a multilora adapter"),
]

# `export` reads the files itself too.
LORA = [
    (file, damage, text if "lacks" not in text else "no weights for model.layers") for file, damage, text in WEIGHTS
]

COMMANDS = {"eval": ["eval"], "analyze": ["analyze"], "lora": ["export", "--to", "lora"]}
COMMANDS["merged"] = ["export", "--to", "merged"]


def _run(case: Case, command: str, file: str, damage: Damage) -> None:
    damage(case.run / file if file else case.run)
    words = COMMANDS[command]
    out = ["--out", str(case.folder / "out")] if words[0] == "export" else []
    case.arguments = [*words, str(case.run), *out]


# (file of a run that was interrupted, damage, what the message says): for train --resume
RESUME: list[tuple[str, Damage, str]] = [
    ("recipe.yaml", empty, "this run is damaged; restore its recipe.yaml"),
    ("recipe.yaml", truncate, "this run is damaged; restore its recipe.yaml"),
    ("recipe.yaml", garbage, "this run is damaged; restore its recipe.yaml"),
    ("recipe.yaml", become_folder, "this run is damaged; restore its recipe.yaml"),
    ("metrics.jsonl", become_folder, "metrics.jsonl: is not a file"),
    ("train.json", become_folder, "train.json: is not a file"),
    ("checkpoints", become_file, "checkpoints: is not a folder"),
    (
        "recipe.yaml",
        partial(edit_text, old="train_batch_size: 2", new="train_batch_size: 3"),
        "training.per_device_train_batch_size: was 3, is 2",
    ),
    ("plan/plan.json", empty, "no readable plan"),
    ("plan/plan.json", truncate, "no readable plan"),
    ("plan/plan.json", partial(edit_json, made_from={}), "recipe or data differ from those of the saved plan"),
]


def _resume(case: Case, file: str, damage: Damage) -> None:
    remove(case.run / "adapter")
    damage(case.run / file)
    case.arguments.append("--resume")


def _resume_with(case: Case, setting: str) -> None:
    remove(case.run / "adapter")
    case.arguments += ["--resume", "--set", setting]


# (file of a finished run, damage, what the message says): for train --resume, which shows what the run did
FINISHED: list[tuple[str, Damage, str]] = [
    ("train.json", remove, "train.json: cannot be read"),
    ("train.json", empty, "train.json: cannot be read"),
    ("train.json", garbage, "train.json: cannot be read"),
    ("train.json", become_folder, "train.json: cannot be read"),
    ("train.json", become_list, "train.json: cannot be read"),
    ("train.json", partial(edit_json, steps="x"), "train.json: cannot be read (steps is 'x', expected a number)"),
    ("metrics.jsonl", remove, "metrics.jsonl: cannot be read"),
    ("metrics.jsonl", truncate, "metrics.jsonl: cannot be read"),
    ("metrics.jsonl", garbage, "metrics.jsonl: cannot be read"),
    ("metrics.jsonl", become_list, "metrics.jsonl: cannot be read (line 1 is [1, 2]"),
    (ADAPTER, remove, "adapter: no weights here; this run is damaged"),
    (ADAPTER, become_folder, "adapter: no weights here; this run is damaged"),
]


def _finished(case: Case, file: str, damage: Damage) -> None:
    damage(case.run / file)
    case.arguments.append("--resume")


COMMAND_LINES: list[tuple[tuple[str, ...], str]] = [
    (("nothing",), "No such command 'nothing'"),
    (("--nothing",), "No such option"),
    (("eval",), "Missing argument"),
    (("train",), "Missing argument"),
    (("eval", "{run}", "--max-examples", "-1"), "Invalid value for '--max-examples'"),
    (("eval", "{run}", "--max-examples", "0"), "Invalid value for '--max-examples'"),
    (("eval", "{run}", "--max-examples", "all"), "Invalid value for '--max-examples'"),
    (("eval", "{run}/recipe.yaml"), "no recipe.yaml here"),
    (("eval", "/dev/null"), "no recipe.yaml here"),
    (("analyze", "{folder}"), "so its training did not finish"),
    (("export", "{run}", "--to", "lora"), "Missing option"),
    (("export", "{run}", "--out", "{folder}/out"), "Missing option"),
    (("export", "{run}", "--to", "onnx", "--out", "{folder}/out"), "is not one of"),
    (("export", "{run}", "--to", "gguf", "--out", "{folder}/out"), "choose a name that ends in .gguf"),
    (("export", "{run}", "--to", "merged", "--rank", "2", "--out", "{folder}/out"), "a merged model has none"),
    (("export", "{run}", "--to", "merged", "--ragged", "--out", "{folder}/out"), "--ragged is for --to lora"),
    (("export", "{run}", "--to", "lora", "--rank", "0", "--out", "{folder}/out"), "rank is 0, expected at least 1"),
    (("export", "{run}", "--to", "lora", "--energy", "2", "--out", "{folder}/out"), "energy is 2.0, expected a share"),
    (("prune", "{run}", "--out", "{run}"), "already holds a run"),
    (("prune", "{run}", "--below", "7", "--out", "{folder}/out"), "expected a share of the update"),
    (("export", "{run}", "--to", "lora", "--out", "{run}"), "already holds a run"),
    (("export", "{run}", "--to", "lora", "--out", "{run}/adapter"), "is not empty; choose another folder"),
    (("export", "{run}", "--to", "lora", "--out", "{run}/recipe.yaml"), "is a file; choose a new folder"),
    (("export", "{run}", "--to", "lora", "--out", "{run}/recipe.yaml/out"), "recipe.yaml"),
    (("export", "{run}", "--to", "merged", "--out", "{run}"), "already holds a run"),
    (("export", "{run}", "--to", "merged", "--out", "{run}/recipe.yaml"), "is a file; choose a new folder"),
]


def _arguments(case: Case, words: tuple[str, ...]) -> None:
    case.arguments = [word.format(run=case.run, folder=case.folder) for word in words]


def name_of(damage: Damage) -> str:
    """`edit_json r=4` and the like, for the names of rows."""
    if not isinstance(damage, partial):
        return damage.__name__.strip("_")
    options = [f"{key}={getattr(value, '__name__', value)}" for key, value in damage.keywords.items()]
    return " ".join([damage.func.__name__, *options])


ROWS = [
    *(
        Row(
            f"{command}: {file or 'run'} {name_of(damage)}",
            partial(_run, command=command, file=file, damage=damage),
            text,
        )
        for command in COMMANDS
        for file, damage, text in EVERYWHERE
    ),
    *(
        Row(f"{command}: {file} {name_of(damage)}", partial(_run, command=command, file=file, damage=damage), text)
        for command, rows in (("analyze", FACTORS), ("lora", LORA))
        for file, damage, text in rows
    ),
    *(
        Row(f"resume: {file} {name_of(damage)}", partial(_resume, file=file, damage=damage), text)
        for file, damage, text in RESUME
    ),
    *(
        Row(f"resume with {setting}", partial(_resume_with, setting=setting), "started with a different recipe")
        for setting in ("adapter.r=3", "mixture.seed=1", "tasks.0.prompt=x", "data.packing=true", "training.seed=7")
    ),
    *(
        Row(f"resume a finished run: {file} {name_of(damage)}", partial(_finished, file=file, damage=damage), text)
        for file, damage, text in FINISHED
    ),
    *(Row(f"$ {' '.join(words)}"[:80], partial(_arguments, words=words), text) for words, text in COMMAND_LINES),
    *(
        Row(
            f"eval: train.json {name_of(damage)}", partial(_run, command="eval", file="train.json", damage=damage), text
        )
        for damage, text in (
            (remove, "train.json: cannot be read"),
            (partial(edit_json, weights_of_step=None), "weights_of_step is None, expected a number"),
        )
    ),
    Row("lora: weights are not finite", partial(_run, command="lora", file=ADAPTER, damage=_nan), "NaN or infinite"),
    Row(
        "resume with fewer steps",
        partial(_resume_with, setting="training.max_steps=3"),
        "a run can be extended but not shortened",
    ),
    Row("train again", lambda case: None, "already holds a run"),
]
