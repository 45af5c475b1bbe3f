"""PEFT's own test-suite run with `MultiLoraConfig`, beside the same run for LoRA.

PEFT's source distribution carries its tests. This script downloads that of the installed PEFT, makes the tiny models
the tests want from configs (no hub), puts our configs in place of PEFT's in the tests' tables, runs them, and prints
passed, failed and skipped per behaviour for both.

Run: python tests/acceptance/peft_suite.py [--keep FOLDER]
Needs: pip install parameterized scipy diffusers bitsandbytes torchao (the last two for the quantised cases)
"""

from __future__ import annotations

import argparse
import collections
import os
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from importlib.metadata import version
from pathlib import Path

DRIVER = Path(__file__).with_name("peft_suite_driver.py")

# PEFT's classes also hold tests of single other methods; what runs over the tables has our config among its parameters.
KEEP_OURS = """
def pytest_collection_modifyitems(config, items):
    def ours(item):
        Config = item.module.Config
        values = getattr(item, "callspec", None) and item.callspec.params.values()
        return any(value is Config or isinstance(value, Config) for value in values or ())

    config.hook.pytest_deselected(items=[item for item in items if not ours(item)])
    items[:] = [item for item in items if ours(item)]
"""


def download(folder: Path) -> Path:
    """The tests of the installed PEFT, unpacked; returns their folder."""
    release = f"peft=={version('peft')}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", release]
    subprocess.run(command, cwd=folder, check=True)
    (archive,) = folder.glob("peft-*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    tests = next(folder.glob("peft-*/tests"))
    (tests / "__init__.py").touch()
    return tests


def run(work: Path, tests: Path, method: str) -> dict[str, collections.Counter[str]]:
    """Counts of outcomes per test function."""
    target = tests.parent / f"test_{method}_suite.py"
    target.write_text(DRIVER.read_text(encoding="utf-8"), encoding="utf-8")
    (tests.parent / "conftest.py").write_text(KEEP_OURS, encoding="utf-8")
    report = work / f"{method}.xml"
    environment = {
        **os.environ,
        "ACCEPTANCE_METHOD": method,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "PYTHONPATH": os.pathsep.join([str(tests.parent), str(DRIVER.parent)]),
    }
    command = [sys.executable, "-m", "pytest", str(target), "-q", "-n", "2", "--no-header", "-p", "no:cacheprovider"]
    command += [f"--junitxml={report}", "--tb=line", "-W", "ignore"]
    (work / "pytest.ini").write_text("[pytest]\n")  # not PEFT's own settings, which ask for coverage
    command += ["-c", str(work / "pytest.ini"), "--rootdir", str(work)]
    with (work / f"{method}.log").open("w") as log:
        subprocess.run(command, cwd=work, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False)
    outcomes: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        name = f"{case.get('classname', '').rpartition('.')[2]}.{case.get('name', '').partition('[')[0]}"
        outcomes[name][outcome] += 1
        if outcome == "failed":
            message = next(child.get("message", "") for child in case if child.tag in {"failure", "error"})
            print(f"FAILED {method}: {case.get('name')}: {' '.join(message.split())[:300]}")
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="work in this folder and keep it")
    parser.add_argument("--most-failures", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.keep or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        tests = next(iter(work.glob("peft-*/tests")), None) or download(work)
        subprocess.run([sys.executable, str(DRIVER.with_name("tiny_models.py")), str(work)], check=True)
        results = {method: run(work, tests, method) for method in ("multilora", "lora")}
    kinds = ("passed", "failed", "skipped")
    print(f"{'behaviour':78} {'multilora p/f/s':>18} {'lora p/f/s':>18}")
    for name in sorted(results["multilora"].keys() | results["lora"].keys()):
        cells = ["/".join(str(results[m][name][kind]) for kind in kinds) for m in ("multilora", "lora")]
        print(f"{name:78} {cells[0]:>18} {cells[1]:>18}")
    totals = {m: {kind: sum(c[kind] for c in r.values()) for kind in kinds} for m, r in results.items()}
    for method, total in totals.items():
        print(f"{method}: " + ", ".join(f"{count} {kind}" for kind, count in total.items()))
    return 0 if totals["multilora"]["failed"] <= arguments.most_failures and totals["multilora"]["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
