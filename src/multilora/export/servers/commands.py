"""The next commands after an export: how programs that serve models load it, or why they cannot."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from multilora.export.servers.facts import AdapterFacts
from multilora.export.servers.table import CAUSAL, CONSUMERS, CONTENTS, STACKS, Format, Place

WIDTH = 80


@dataclass(frozen=True)
class NextCommand:
    """How one program uses an export.

    consumer: the program
    commands: shell commands, or a Python expression; empty if it cannot use the export
    tried: the version with which this was found out
    warning: why it cannot or may not be able to, and what to do instead; None without a doubt
    """

    consumer: str
    tried: str
    commands: tuple[str, ...]
    warning: str | None


def next_commands(export_format: Format, place: Place, facts: AdapterFacts | None = None) -> list[NextCommand]:
    """Return what to do next with an export.

    Args:
        export_format: of the export
        place: where it is
        facts: what a `lora` contains; not needed for other formats, whose exports refuse what cannot be read
    """
    result = []
    for consumer in CONSUMERS:
        load = consumer.loads.get(export_format)
        if load is None or (place.auto_class != CAUSAL and not consumer.any_task):
            continue
        refused, untried = (_contained(facts, names) for names in (consumer.refuses, consumer.untried))
        warning = None
        if refused:
            other = "--per-expert" if refused == STACKS else "--to merged"
            warning = f"does not read {refused}; export with {other} instead"
        elif untried:
            warning = f"not tried with {untried}; if it fails, export with --to merged"
        result.append(NextCommand(consumer.name, consumer.tried, () if refused else load(facts, place), warning))
    return result


def _contained(facts: AdapterFacts | None, names: Sequence[str]) -> str:
    return "" if facts is None else ", ".join(name for name in names if CONTENTS[name](facts))


def as_lines(commands: Sequence[NextCommand], width: int = WIDTH) -> list[str]:
    """Return text for a terminal: a line that is too long is continued before an option."""
    label = max((len(item.consumer) for item in commands), default=0) + 2
    lines = []
    for item in commands:
        texts = [f"# {part}" for part in textwrap.wrap(item.warning or "", width - label - 2)]
        for command in item.commands:
            texts += _continued(command, width - label)
        lines += [f"{item.consumer if not index else '':{label}}{text}" for index, text in enumerate(texts)]
    return lines


def _continued(command: str, width: int) -> list[str]:
    lines = [""]
    for part in re.split(r" (?=--?[a-z])", command):
        if lines[-1] and len(lines[-1]) + len(part) + 3 > width:
            lines[-1] += " \\"
            lines.append(f"  {part}")
        else:
            lines[-1] += f" {part}" if lines[-1] else part
    return lines
