"""The commands of other programs for what is at a path, which need not be an export of this package."""

from __future__ import annotations

from pathlib import Path

from multilora.errors import InputError
from multilora.export.servers.commands import NextCommand, next_commands
from multilora.export.servers.facts import adapter_facts
from multilora.export.servers.table import Place
from multilora.methods import FULL
from multilora.modeling import model_source
from multilora.runs.candidate import candidate


def commands_of(path: Path, base: str | None = None) -> list[NextCommand]:
    """Return how programs load or serve what is at a path.

    Args:
        path: folder of a plain LoRA or of a model, a GGUF adapter, or a run that trained all weights
        base: of a LoRA, if its config names none or one that is not here

    Raises:
        InputError: it must be exported first, or is none of these.
    """
    name = path.stem or path.resolve().name
    if path.suffix == ".gguf" and path.is_file():
        return next_commands("gguf", Place(str(path), base or "BASE", name, str(path)))
    opened = candidate(path, base=base)
    if opened.run is not None and opened.run.recipe.adapter.method == FULL:
        return next_commands("merged", Place(str(opened.run.weights), "BASE", name, str(path)))
    if opened.run is not None:
        raise InputError(
            f"{path} is a run, and other programs read plain LoRA or merged models; export it (multilora export {path} "
            "--to lora --out DIR), which prints the commands too"
        )
    source = model_source(opened.base)
    if opened.adapter is None:
        return next_commands("merged", Place(source, "BASE", name, str(path)))
    if opened.adapter.method != "lora":
        raise InputError(
            f"{path} is an adapter of method `{opened.adapter.method}`, which only PEFT reads; export it (multilora "
            f"export {path} --to merged --out DIR), which prints the commands too"
        )
    facts = adapter_facts(opened.adapter.folder, Path(source))
    return next_commands("lora", Place(str(path), source, name, str(path)), facts)
