"""The code blocks of a page of the documentation, and how they are run.

A block runs by its language, in the order of the page, in one scratch folder and one Python namespace:

- a block with a title is a file of that name
- `python` is executed; `console` runs every line that starts with `$ `, and compares the lines below with the output
- `yaml` without a title is a part of a recipe or of a study, and is only validated
- `text` and `mermaid` are not code

`<!-- not run: REASON -->` on the line above a block leaves it out: its Python is only compiled, and the options of
`multilora` commands in it are only parsed. `<!-- given: NAME ... -->` anywhere names what the folder must contain.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from conftest import REPOSITORY

DOCS = REPOSITORY / "docs"
LANGUAGES = {"python", "console", "yaml", "json", "csv", "text"}
_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+?) -->\n+)?"
    r"(?P<indent> *)```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<code>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """language, title and code of a block; line: of the page; not_run: why it is left out, else empty."""

    language: str
    title: str
    code: str
    line: int
    not_run: str


@dataclass(frozen=True)
class Command:
    """A line of a console block and the output that the page shows below it."""

    line: str
    output: tuple[str, ...]

    @property
    def arguments(self) -> list[str]:
        return shlex.split(self.line, comments=True)


def pages() -> list[Path]:
    """All pages with code, and the README."""
    return [REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md"))]


def page_id(path: Path) -> str:
    return str(path.relative_to(DOCS if DOCS in path.parents else REPOSITORY))


def blocks(text: str) -> list[Block]:
    return [
        Block(
            found["language"],
            found["title"] or "",
            "\n".join(line.removeprefix(found["indent"]) for line in found["code"].split("\n")),
            text.count("\n", 0, found.start()) + 1,
            found["reason"] or "",
        )
        for found in _BLOCK.finditer(text)
    ]


def given(text: str) -> list[str]:
    return [name for found in re.findall(r"^<!-- given: (.+?) -->$", text, re.MULTILINE) for name in found.split()]


def commands(code: str) -> list[Command]:
    """The commands of a console block; a backslash at the end of a line continues it."""
    found: list[tuple[str, list[str]]] = []
    continues = False
    for line in code.rstrip("\n").split("\n"):
        if continues:
            found[-1] = (found[-1][0][:-1] + line.strip().removeprefix("> "), [])
        elif line.startswith("$ "):
            found.append((line[2:], []))
        elif found:
            found[-1][1].append(line)
        elif not line.startswith("#"):
            raise ValueError(f"output without a command: {line!r}")
        continues = bool(found) and found[-1][0].endswith("\\") and not found[-1][1]
    return [Command(line, tuple(output)) for line, output in found]


def script(text: str) -> str:
    """The blocks of a page as a script of bash, with the `python` and the `multilora` of the environment."""
    parts = ["set -e"]
    for block in blocks(text):
        if block.title or (block.language == "python" and not block.not_run):
            reader = f"cat > {shlex.quote(block.title)}" if block.title else "python -"
            parts.append(f"{reader} <<'END_OF_BLOCK'\n{block.code}END_OF_BLOCK")
        elif block.language == "console" and not block.not_run:
            parts += [command.line for command in commands(block.code)]
    return "\n".join(parts) + "\n"


def missing_lines(shown: tuple[str, ...], printed: str) -> list[str]:
    """The shown lines that were not printed; numbers, the width of tables and lines of `...` do not matter."""
    have = [_shape(line) for line in printed.splitlines()]
    wanted = [line for line in shown if line.strip() not in ("", "...") and not line.lstrip().startswith("#")]
    return [line for line in wanted if _shape(line) not in have]


def _shape(line: str) -> str:
    plain = re.sub(r"[─━═┄]+", "─", line)
    plain = re.sub(r"\d+([.,]\d+)*(e[+-]?\d+)?", "0", plain)
    return " ".join(plain.split())
