"""`multilora export`."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multilora.cli.imports import heavy_imports
from multilora.cli.options import AsJson

if TYPE_CHECKING:
    from multilora.export.proof.result import Proof
    from multilora.export.servers.commands import NextCommand


class Target(StrEnum):
    """Export format."""

    lora = "lora"
    merged = "merged"
    gguf = "gguf"
    mlx = "mlx"


def export(
    source: Annotated[str, typer.Argument(metavar="PATH", help="A finished run, or a folder with a PEFT adapter.")],
    to: Annotated[
        Target,
        typer.Option(
            "--to",
            help="lora: a plain LoRA, for PEFT and servers; merged: the base with the adapter merged; "
            "gguf: an adapter for llama.cpp; mlx: an adapter for mlx-lm.",
        ),
    ],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="New folder; for gguf, a new file.")],
    rank: Annotated[
        int | None, typer.Option("--rank", metavar="K", help="Approximate every update by one of this rank.")
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            "--energy", metavar="E", help="Or by the smallest rank that keeps this share of every update, such as 0.99."
        ),
    ] = None,
    ragged: Annotated[
        bool, typer.Option("--ragged", help="lora: keep the rank of every module; only PEFT and vLLM read this.")
    ] = False,
    per_expert: Annotated[
        bool,
        typer.Option("--per-expert", help="lora: one LoRA per expert, not PEFT's stacks, for vLLM and llama.cpp."),
    ] = False,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="BASE", help="Base of a PEFT adapter, if its config names none here."),
    ] = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option("--push-to-hub", metavar="OWNER/NAME", help="Upload the export to this repository of the hub."),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="With --push-to-hub: a new repository is private.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Export an adapter for other programs, and verify that the files equal the original."""
    from multilora.errors import InputError
    from multilora.runs.directory import Run, check_free
    from multilora.saved_adapter import adapter_folder

    if adapter_folder(Path(source)) != Path(source):
        Run(source)  # before the seconds that importing torch takes
    if to is not Target.gguf:
        check_free(Path(out))
    if to is Target.merged and (rank is not None or energy is not None):
        raise InputError(
            "--rank and --energy lower the rank of an adapter, and a merged model has none; leave them out"
        )
    for option, given in (("--ragged", ragged), ("--per-expert", per_expert)):
        if to is not Target.lora and given:
            raise InputError(f"{option} is for --to lora, not for --to {to.value}; leave it out")
    if private and push_to_hub is None:
        raise InputError("--private has no effect without --push-to-hub; leave it out")
    if push_to_hub is not None:
        from multilora.export.hub import check_hub

        check_hub(push_to_hub)
    result = _export(source, to, out, rank, energy, base, ragged=ragged, per_expert=per_expert)
    if push_to_hub is not None:
        from multilora.export.hub import push_to_hub as push

        result["address"] = push(out, push_to_hub, private=private)
    _show_json(out, result) if json else _show(out, result)


def _export(
    source: str,
    to: Target,
    out: str,
    rank: int | None,
    energy: float | None,
    base: str | None,
    *,
    ragged: bool,
    per_expert: bool,
) -> dict[str, Any]:
    """Returns `proof`, and what else is known of the export."""
    from multilora.cli.show import note
    from multilora.export.edit.edited import truncated
    from multilora.export.servers.commands import next_commands
    from multilora.export.servers.table import Place

    with heavy_imports():
        from multilora.export.sources.source import open_source
    from multilora.progress import facts

    opened = open_source(source, base=base)
    note(facts({"model": source, "base": opened.base, "to": to.value, "output": out}))
    place = Place(out, opened.base or "BASE", Path(out).stem, source, opened.auto_class)
    if to is Target.merged:
        from multilora.export.merged.export_merged import write_merged

        return {"proof": write_merged(source, out, base=base), "commands": next_commands("merged", place)}
    if to is Target.lora:
        from multilora.export.lora.export_lora import write_lora

        written = write_lora(opened, out, rank=rank, energy=energy, ragged=ragged, per_expert=per_expert)
        return {name: getattr(written, name) for name in ("proof", "rank", "truncation", "effect", "notes", "commands")}
    from multilora.export.formats.gguf import write_gguf
    from multilora.export.formats.mlx import write_mlx

    truncation = None
    if rank is not None or energy is not None:
        opened, truncation = truncated(opened, rank=rank, energy=energy)
    proof = (write_gguf if to is Target.gguf else write_mlx)(opened, out)
    return {
        "proof": proof,
        "truncation": truncation,
        "commands": next_commands("gguf" if to is Target.gguf else "mlx", place),
    }


def _show_json(out: str, result: dict[str, Any]) -> None:
    from multilora.cli.show import show_json

    proof: Proof | None = result.pop("proof")
    values: dict[str, Any] = {"folder": out, "verification": proof and asdict(proof)}
    for key, value in result.items():
        items = value if isinstance(value, list) else [value]
        plain = [asdict(item) if hasattr(item, "__dataclass_fields__") else item for item in items]
        values[key] = plain if isinstance(value, list) else plain[0]
    show_json(values)


def _show(out: str, result: dict[str, Any]) -> None:
    from multilora.cli.show import say, table
    from multilora.export.proof.result import TABLE_COLUMNS, table_rows
    from multilora.export.servers.commands import as_lines

    proof: Proof | None = result["proof"]
    print(out)
    say(str(proof or "not verified: the model reads no tokens"))
    if proof is not None and table_rows(proof):
        table("export and original", TABLE_COLUMNS, table_rows(proof))
    if result.get("truncation") is not None:
        say(str(result["truncation"]))
    if result.get("effect") is not None:
        table("effect of the truncation", TABLE_COLUMNS, table_rows(result["effect"]))
    if "address" in result:
        print(f"uploaded: {result['address']}")
    commands: list[NextCommand] = result.get("commands", [])
    if commands:
        print("", *as_lines(commands), sep="\n")
