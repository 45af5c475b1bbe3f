"""The model card of an export: a README.md with the metadata that the hub reads.

It says what is known from the run or the adapter's files; what is not known is left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from multilora.export.card_facts import CARD_FILE, CardFacts, folder_facts, licence_of, run_facts
from multilora.export.edited import EditedSource
from multilora.export.proof_result import TABLE_COLUMNS, Proof, table_rows
from multilora.export.servers import NextCommand, next_commands
from multilora.export.servers_facts import adapter_facts
from multilora.export.servers_table import Place
from multilora.export.source import FolderSource, RunSource, Source
from multilora.export.universal import hub_name
from multilora.files import write_text

Kind = Literal["lora", "merged"]
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def add_card(
    source: Source, folder: Path, out: Path, kind: Kind, proof: Proof | None, notes: Sequence[str] = ()
) -> list[NextCommand]:
    """Write the model card of an export.

    Args:
        source: what was exported
        folder: with the files of the export
        out: where the folder will be
        kind: an adapter or a model
        proof: the comparison with the original
        notes: what users should know

    Returns:
        the next commands; those on the card are the same without paths of this machine
    """
    name, base = out.resolve().name, source.base or "BASE"
    facts = adapter_facts(folder, Path(base)) if kind == "lora" else None
    exported_again = str(out) if isinstance(source, EditedSource) else source.label
    commands = next_commands(kind, Place(str(out), base, name, exported_again, source.auto_class), facts)
    known, hub_base = card_facts(source), _hub_base(source.base)
    if kind == "merged":  # it contains the base
        known.metadata |= licence_of(Path(base))
    shown = hub_base or Path(source.section.name_or_path if source.section else base).name
    context = {
        "metadata": yaml.safe_dump(_metadata(kind, known, hub_base), sort_keys=False, allow_unicode=True),
        "name": name,
        "kind": kind,
        "base": f"[{hub_base}](https://huggingface.co/{hub_base})" if hub_base else f"`{shown}`",
        "rank": facts.rank if facts else None,
        "multilora": version("multilora"),
        "known": known,
        "proof": _sentence(str(proof)) if proof else None,
        "proof_columns": TABLE_COLUMNS,
        "proof_rows": table_rows(proof) if proof else [],
        "notes": notes,
        "commands": next_commands(kind, Place(name, shown, name, name, source.auto_class), facts),
    }
    environment = Environment(
        loader=PackageLoader("multilora.export"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = _cell
    write_text(folder / CARD_FILE, environment.get_template("card.md.jinja").render(context))
    return commands


def card_facts(source: Source) -> CardFacts:
    """Read what is known of what was exported."""
    if isinstance(source, EditedSource):
        is_sum = source.label != source.original.label
        facts = CardFacts("lora") if is_sum else card_facts(source.original)
        facts.edited = (
            "the weighted sum of several adapters" if is_sum else "changed after training: truncated or pruned"
        )
        facts.scores = []  # of another model
        return facts
    if isinstance(source, RunSource):
        return run_facts(source.run)
    if isinstance(source, FolderSource):
        return folder_facts(source.saved.method, source.saved.folder)
    return CardFacts("")


def _metadata(kind: Kind, known: CardFacts, hub_base: str | None) -> dict[str, Any]:
    tags = [name for name in ("multilora", "lora") if known.method == name or (name == "lora" and kind == "lora")]
    tasks = [task["name"] for task in known.tasks]
    return {
        **({"base_model": hub_base} if hub_base else {}),
        **({"base_model_relation": "adapter" if kind == "lora" else "finetune"} if hub_base else {}),
        "library_name": "peft" if kind == "lora" else "transformers",
        **known.metadata,
        "tags": tags + (["multi-task"] if len(tasks) > 1 else []),
    }


def _hub_base(base: str | None) -> str | None:
    """Return the base's name on the hub; None for a folder."""
    name = hub_name(base)
    return name if name and _HUB_NAME.fullmatch(name) and not Path(name).exists() else None


def _cell(text: Any) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
