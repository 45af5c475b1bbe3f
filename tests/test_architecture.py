"""Imports go one way: from a room only to rooms below it, and never in a circle. No file is too long to read."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "src" / "multilora"

# From the bottom up. What is a file here may become a package.
ROOMS = (
    "errors",
    "foreign_errors",
    "functional",
    "files",
    "processes",
    "progress",
    "cache",
    "charts",
    "references",
    "example",
    "metrics",
    "peft_method",
    "methods",
    "low_rank",
    "saved_adapter",
    "recipe",
    "tasks",
    "nano",
    "initialise",
    "base_checks",
    "vocabulary",
    "modeling",
    "data",
    "loss",
    "evaluation",
    "inference",
    "training",
    "estimate",
    "runs",
    "harness",
    "export",
    "analysis",
    "study",
    "report",
    "demo",
    "cli",
)
LONGEST = 300


def module_sources(package: Path) -> dict[str, str]:
    """Dotted name without the package's -> source; `""` is the package itself."""
    sources = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package).with_suffix("").parts
        sources[".".join(part for part in parts if part != "__init__")] = path.read_text(encoding="utf-8")
    return sources


def imports_of(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Module -> modules of the package that it imports anywhere, in functions and under TYPE_CHECKING too."""
    graph = {}
    for name, source in sources.items():
        targets = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name}: a relative import"
                full = [f"{node.module}.{alias.name}" for alias in node.names]
                targets |= {item if _inside(item) in sources else str(node.module) for item in full}
        graph[name] = {inside for target in targets if (inside := _inside(target)) in sources} - {name}
    return graph


def _inside(dotted: str) -> str | None:
    head, _, tail = dotted.partition(".")
    return tail if head == "multilora" else None


def circle_in(graph: Mapping[str, set[str]]) -> list[str] | None:
    """A circle of imports, if there is one."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def room_of(module: str) -> str:
    return module.partition(".")[0]


def upward(graph: Mapping[str, set[str]]) -> list[str]:
    """Imports from a room into one above it; `multilora` and `multilora.__main__` may import anything."""
    level = {room: height for height, room in enumerate(ROOMS)}
    return [
        f"{source} imports {target}"
        for source, targets in graph.items()
        if room_of(source) in level
        for target in targets
        if target != "" and level[room_of(target)] > level[room_of(source)]
    ]


def between_rooms(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    rooms: dict[str, set[str]] = {}
    for source, targets in graph.items():
        rooms.setdefault(room_of(source), set()).update(room_of(target) for target in targets)
    return {room: targets - {room} for room, targets in rooms.items()}


@pytest.fixture(scope="module")
def graph():
    return imports_of(module_sources(PACKAGE))


def test_every_room_has_its_level(graph):
    assert {room_of(name) for name in graph} - {"", "__main__"} == set(ROOMS)


def test_imports_point_downwards(graph):
    assert upward(graph) == []


def test_no_circle_of_files(graph):
    assert circle_in(graph) is None


def test_no_circle_of_rooms(graph):
    assert circle_in(between_rooms(graph)) is None


@pytest.mark.parametrize(
    "added",
    [
        "from multilora.training.trainer import MultiTaskTrainer",
        "def later():\n    import multilora.cli.app",
        "if TYPE_CHECKING:\n    from multilora.runs.directory import Run",
    ],
)
def test_an_import_that_points_upwards_is_found(added):
    sources = module_sources(PACKAGE)
    sources["tasks.base"] += f"\n{added}\n"
    wrong = upward(imports_of(sources))
    assert len(wrong) == 1
    assert wrong[0].startswith("tasks.base imports ")


def test_a_circle_is_found():
    sources = module_sources(PACKAGE)
    sources["tasks.source"] += "\nfrom multilora.tasks.record_task import RecordTask\n"
    graph = imports_of(sources)
    assert upward(graph) == []
    assert set(circle_in(graph) or []) == {"tasks.source", "tasks.record_task"}


def test_no_file_is_too_long():
    lengths = {str(p.relative_to(PACKAGE)): len(p.read_text().splitlines()) for p in PACKAGE.rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}
