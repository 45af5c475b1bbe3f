"""Every script of `examples/` runs, and what it trains becomes better."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
from conftest import REPOSITORY

NEEDS = {"dpo": "trl", "grpo": "trl", "reward_model": "trl", "diffusers_unet": "diffusers"}
RISES = ("accuracy", "reward")
EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))


def test_examples_are_documented():
    page = (REPOSITORY / "docs" / "other_models.md").read_text(encoding="utf-8")
    assert {name for name in re.findall(r"`examples/(\w+)\.py`", page)} == {path.stem for path in EXAMPLES}


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path, tmp_path):
    package = NEEDS.get(path.stem)
    if package and find_spec(package) is None:
        pytest.skip(f"needs {package}")
    done = subprocess.run(
        [sys.executable, path], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    pairs = re.findall(r"^(?:\S+: )?(\w+) (-?[\d.]+) -> (-?[\d.]+)$", done.stdout, re.MULTILINE)
    assert pairs or path.stem in ("peft_only", "own_trainer"), done.stdout
    for name, before, after in pairs:
        assert (float(after) > float(before)) == (name in RISES), done.stdout
    losses = [float(value) for value in re.findall(r"^step \d+: loss ([\d.]+)$", done.stdout, re.MULTILINE)]
    losses += [float(value) for value in re.findall(r"^step \d+: \{'loss': ([\d.]+)", done.stdout, re.MULTILINE)]
    assert not losses or losses[-1] < losses[0]
    assert pairs or losses
