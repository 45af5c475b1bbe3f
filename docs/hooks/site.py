"""Hook of mkdocs: fills `<!-- generated: NAME -->` in a page, and turns notebooks into pages."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.structure.files import File, Files

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(HERE))

from commands import commands  # noqa: E402
from recipe_fields import fixed_training_keys, recipe_fields, study_fields  # noqa: E402

_MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)


def changelog() -> str:
    """CHANGELOG.md without its title, with links that are right within the documentation."""
    text = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    return text.partition("\n")[2].replace("](docs/", "](")


def examples() -> str:
    """Every script of `examples/`, folded."""
    parts = []
    for path in sorted((REPOSITORY / "examples").glob("*.py")):
        code = textwrap.indent(f"```python\n{path.read_text(encoding='utf-8')}```", "    ", lambda line: True)
        parts.append(f'??? example "examples/{path.name}"\n\n{code}\n')
    return "\n".join(parts)


GENERATED = {
    "changelog": changelog,
    "commands": commands,
    "examples": examples,
    "fixed_training_keys": fixed_training_keys,
    "recipe_fields": recipe_fields,
    "study_fields": study_fields,
}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by mkdocs with the text of every page. Links to notebooks lead to their pages."""
    if not page.file.src_uri.startswith("notebooks/"):
        markdown = markdown.replace(".ipynb)", ".md)")
    return _MARK.sub(lambda found: GENERATED[found[1]](), markdown)


def on_files(files: Files, config: Any) -> Files:
    """Called by mkdocs with all files: a page is added for every notebook."""
    for path in sorted((REPOSITORY / "docs").rglob("*.ipynb")):
        name = str(path.relative_to(REPOSITORY / "docs").with_suffix(".md"))
        files.append(File.generated(config, name, content=notebook_page(path)))
    return files


def notebook_page(path: Path) -> str:
    """A notebook as Markdown, with a link to itself."""
    cells = [
        cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```"
        for cell in nbformat.read(path, as_version=4).cells
    ]
    title, *rest = cells
    return "\n\n".join([title, f"[Download this notebook]({path.name})", *rest]) + "\n"
