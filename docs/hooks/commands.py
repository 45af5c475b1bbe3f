"""Usage, arguments and options of every command, read from the command line itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer
from tables import table

from multilora.cli.app import app


def commands() -> str:
    """Every command, as Markdown."""
    return "\n".join(_command(typer.main.get_command(app), "multilora"))


def _command(command: Any, path: str) -> Iterator[str]:
    context = typer.Context(command, info_name=path)
    usage = _plain(" ".join([path, *command.collect_usage_pieces(context)]))
    members = getattr(command, "commands", None)
    yield f"\n## `{path}`\n\n{_text(command.help)}\n\n```text\n{usage}\n```\n"
    rows = [row for parameter in command.params for row in _row(parameter, context)]
    if rows:
        yield table(["argument", "meaning"], rows)
    for name, member in (members or {}).items():
        yield from _command(member, f"{path} {name}")


def _row(parameter: Any, context: Any) -> Iterator[list[str]]:
    if getattr(parameter, "hidden", False):
        return
    record = parameter.get_help_record(context)
    name, text = record if record else (parameter.make_metavar(context), "")
    yield [f"`{_plain(name)}`", _text(text)]


def _plain(text: str) -> str:
    """Metavariables without the marks of the command line's own help."""
    return text.replace(" <str>", "").replace("{", "").replace("}", "").replace("[[", "[").replace("]]", "]")


def _text(text: str | None) -> str:
    return " ".join((text or "").replace("[required]", "**required**").split())
