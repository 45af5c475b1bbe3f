"""The package as others get it: what it promises, and that its wheel works alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile

import pytest
import yaml
from conftest import REPOSITORY
from doc_pages import DOCS, script
from oldest import lowest_versions

import multilora

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_supported_pythons_are_those_that_ci_runs():
    classified = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", c)]
    workflow = yaml.safe_load((REPOSITORY / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == classified
    assert PROJECT["requires-python"] == f">={classified[0]}"


def test_versions_agree():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert PROJECT["version"] == multilora.__version__ == citation["version"]


def test_every_dependency_has_a_lowest_and_a_tested_version():
    pinned = re.findall(r"^([\w.-]+)==", (REPOSITORY / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    lowest = [line.partition("==")[0] for line in lowest_versions()]
    assert lowest[0] == "torch"
    direct = [re.split(r"[><=]", item)[0] for item in PROJECT["dependencies"]]
    assert set(direct) <= set(lowest)
    assert set(direct) <= {*pinned}


def test_workflows_and_hooks_call_what_exists():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    workflow = (REPOSITORY / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    for target in re.findall(r"make ([\w-]+)", workflow):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    assert [hook["entry"].split()[0] for hook in hooks] == [".venv/bin/ruff", ".venv/bin/ruff", ".venv/bin/mypy"]


@pytest.mark.slow
def test_the_wheel_runs_the_demo_and_the_quickstart_in_a_fresh_environment(tmp_path):
    """Built from the repository, installed without it."""
    build = [sys.executable, "-m", "build", "--outdir", tmp_path / "dist", REPOSITORY]
    subprocess.run(list(map(str, build)), check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "multilora/nano/model/model.safetensors" in names
    assert "multilora/runs/writer.py" in names
    assert not [name for name in names if not name.startswith(("multilora/", "multilora-"))]
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    constraints = REPOSITORY / "constraints.txt"
    torch = re.search(r"^torch==.*$", constraints.read_text(encoding="utf-8"), re.MULTILINE)[0]
    for what in ([torch], ["-c", str(constraints), str(wheel)]):
        subprocess.run([python, "-m", "pip", "install", "--quiet", *what], check=True, capture_output=True)
    few_steps = "from multilora import demo; demo.STUDY['recipe']['training']['max_steps'] = 4"
    run = f"import sys; {few_steps}; from multilora.cli import main; sys.argv[1:] = ['demo']; main()"
    demo = subprocess.run([python, "-c", run], cwd=tmp_path, check=True, capture_output=True, text=True)
    for label in ("base", "lora r=24", "multilora 3x8", "full"):
        assert label in demo.stdout
    assert (tmp_path / "runs" / "demo" / "report.html").is_file()
    steps = script((DOCS / "quickstart.md").read_text(encoding="utf-8"))
    environment = {**os.environ, "PATH": f"{tmp_path / 'venv' / 'bin'}:{os.environ['PATH']}"}
    (tmp_path / "quickstart").mkdir()
    subprocess.run(["bash", "-c", steps], cwd=tmp_path / "quickstart", env=environment, check=True)
    assert (tmp_path / "quickstart" / "first-lora" / "README.md").is_file()
