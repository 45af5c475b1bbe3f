"""The model card of an export: that of a run, with the proof and the commands of the programs that load it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from multilora.charts.chart import Chart
from multilora.export.edit.edited import EditedSource
from multilora.export.lora.universal import hub_name
from multilora.export.proof.result import TABLE_COLUMNS, Proof, table_rows
from multilora.export.servers.commands import NextCommand, next_commands
from multilora.export.servers.facts import adapter_facts
from multilora.export.servers.table import CAUSAL, Place
from multilora.export.sources.source import FolderSource, RunSource, Source
from multilora.files import write_text
from multilora.runs.card import base_on_hub, render_card, use_with_multilora
from multilora.runs.card_charts import draw_card_charts, loss_chart, score_chart
from multilora.runs.card_facts import CARD_FILE, CardFacts, folder_facts, licence_of, run_facts

Kind = Literal["lora", "merged"]


def add_card(
    source: Source, folder: Path, out: Path, kind: Kind, proof: Proof | None, notes: Sequence[str] = ()
) -> list[NextCommand]:
    """Write the model card of an export and, if vl-convert is installed, the charts that it shows.

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
    known = card_facts(source)
    if kind == "merged":  # it contains the base
        known.metadata |= licence_of(base)
    named = hub_name(source.base) or ""
    shown = named if base_on_hub(named) else Path(source.section.name_or_path if source.section else base).name
    uses = [
        *next_commands(kind, Place(name, shown, name, name, source.auto_class), facts),
        *([use_with_multilora(name, trains_on=kind == "lora")] if source.auto_class == CAUSAL else []),
    ]
    images = draw_card_charts(card_charts(source), folder)
    more = {
        "rank": facts.rank if facts else None,
        "proof": _sentence(str(proof)) if proof else None,
        "proof_columns": TABLE_COLUMNS,
        "proof_rows": table_rows(proof) if proof else [],
        "notes": notes,
        "images": images,
    }
    write_text(folder / CARD_FILE, render_card(kind, name, known, shown, uses, more))
    return commands


def card_facts(source: Source) -> CardFacts:
    """Read what is known of what was exported."""
    if isinstance(source, EditedSource):
        facts = CardFacts("lora") if _is_sum(source) else card_facts(source.original)
        facts.edited = (
            "the weighted sum of several adapters" if _is_sum(source) else "changed after training: truncated or pruned"
        )
        facts.scores = []  # of another model
        return facts
    if isinstance(source, RunSource):
        return run_facts(source.run)
    if isinstance(source, FolderSource):
        return folder_facts(source.saved.method, source.saved.folder)
    return CardFacts("")


def card_charts(source: Source) -> dict[str, Chart]:
    """Section of the card -> chart of what was exported; without those of which nothing is known."""
    charts: dict[str, Chart | None] = {}
    if isinstance(source, RunSource):
        charts = {"training": loss_chart(source.run), "scores": score_chart(source.run)}
    elif isinstance(source, EditedSource) and not _is_sum(source):
        charts = {"training": card_charts(source.original).get("training")}
    return {section: chart for section, chart in charts.items() if chart is not None}


def _is_sum(source: EditedSource) -> bool:
    """Whether it is made of several adapters."""
    return source.label != source.original.label


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
