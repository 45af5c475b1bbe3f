"""Prints pip constraints that hold every dependency at the lowest version that pyproject.toml promises.

Run: python tests/oldest.py > constraints
"""

import re
import tomllib
from itertools import chain
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def lowest_versions() -> list[str]:
    """`name==version` for each `name>=version` of the project and its extras, torch first."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    requirements = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    pairs = dict(match.groups() for item in requirements if (match := re.fullmatch(r"([\w.-]+)>=([\w.]+)", item)))
    return [f"{name}=={version}" for name, version in sorted(pairs.items(), key=lambda pair: pair[0] != "torch")]


if __name__ == "__main__":
    print("\n".join(lowest_versions()))
