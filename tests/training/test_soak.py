"""Fifty random faults in one run, which is started again after each one and ends as if there had been none.

| fault          | how                                                          | what the attempt must do           |
|----------------|--------------------------------------------------------------|------------------------------------|
| SIGKILL        | at a random moment, often in a checkpoint or an evaluation   | die                                |
| SIGTERM        | likewise                                                     | stop with a checkpoint, or die     |
| SIGINT         | likewise                                                     | stop with a checkpoint, or end 130 |
| SIGHUP         | likewise                                                     | stop with a checkpoint, or die     |
| full disk      | a file takes the free space of a tmpfs while the child works | fail with our error                |
| read-only      | no write permission, for a root without CAP_DAC_OVERRIDE     | fail with our error                |
| damage         | a file of the newest checkpoint is cut, removed or changed   | warn, and use the one before       |
| clock          | time.time jumps by up to a year, or the times of all files   | go on                              |
| second process | another `train --resume` of the same output_dir              | one is refused, the other goes on  |
| memory         | a MemoryError in a step                                      | fail with our error                |

They hit training, evaluation while training, `eval` and both exports. After each of them, every file under its final
name must be complete, and no attempt may print a traceback. `soak_driver.py` does this in a mount namespace of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import write_jsonl
from safetensors.torch import load_file

KINDS = (
    *("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "full disk", "read-only"),
    *("damage", "clock", "second process", "memory"),
)
TIMING = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "tokens_per_second", "eval_seconds")
LEAST = 2
SEED = 0
# Mounts the file system of the run, and copies it out at the end; it vanishes with the namespace.
SCRIPT = """
disk=$1 copy=$2; shift 2
mount -t tmpfs -o size=32m tmpfs "$disk" || exit 77
setpriv --bounding-set=-dac_override,-dac_read_search -- "$@"
code=$?
cp -r "$disk" "$copy"
exit $code
"""


def namespace():
    """The command that starts a mount namespace in which a tmpfs may be mounted; None if that is not allowed."""
    for command in (["unshare", "-m"], ["unshare", "-rm"]):
        probe = "mount -t tmpfs tmpfs /mnt && setpriv --bounding-set=-dac_override true"
        try:
            if subprocess.run([*command, "sh", "-c", probe], capture_output=True).returncode == 0:
                return command
        except FileNotFoundError:
            return None
    return None


def metrics(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMING} for line in lines]


def results(folder):
    """Relative path -> content, of all weights and JSON files in a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in (".json", ".safetensors")]
    assert any(path.suffix == ".safetensors" for path in files)
    return {
        str(path.relative_to(folder)): load_file(path)
        if path.suffix == ".safetensors"
        else json.loads(path.read_text())
        for path in files
    }


def assert_same_results(actual, expected):
    actual, expected = results(actual), results(expected)
    assert actual.keys() == expected.keys()
    for name, content in expected.items():
        if name.endswith(".safetensors"):
            assert actual[name].keys() == content.keys()
            assert all(torch.equal(actual[name][key], value) for key, value in content.items()), name
        else:
            assert actual[name] == content, name


def show(facts):
    total = Counter({(kind, phase): count for kind, phase, count in facts["counts"]})
    phases = sorted({phase for _, phase in total})
    print(f"\n{facts['attempts']} attempts in {facts['seconds']} s, {facts['in_training']} faults in training")
    print(f"{'':15}" + "".join(f"{phase:>14}" for phase in phases) + f"{'total':>14}")
    for kind in KINDS:
        counts = [total[kind, phase] for phase in phases]
        print(f"{kind:15}" + "".join(f"{count or '':>14}" for count in [*counts, sum(counts)]))
    for error, count in facts["errors"].items():
        print(f"{count:4} {error}")


@pytest.mark.slow
def test_fifty_faults_change_nothing(recipe, tmp_path):
    unshare = namespace()
    if unshare is None:
        pytest.skip("needs util-linux and either root or user namespaces, to mount a file system that can be full")
    count = write_jsonl(tmp_path / "next.jsonl", [{"n": str(i), "next": str(i + 1)} for i in range(30)])
    recipe["tasks"].append(
        {"name": "größer", "path": str(count), "prompt": "after {{ n }}", "response": "{{ next }}"},
    )
    recipe["adapter"]["lora_dropout"] = 0.1
    recipe["data"] = {"max_length": 64, "packing": True}
    recipe["training"] |= {"max_steps": 130, "per_device_train_batch_size": 2, "logging_steps": 3}
    recipe["training"] |= {"save_steps": 4, "save_total_limit": 2}
    recipe["evaluation"] = {
        **{"every": 5, "keep": "best", "max_new_tokens": 4},
        **{"max_examples": 8, "max_examples_during": 4},
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    driver = [sys.executable, Path(__file__).with_name("soak_driver.py"), disk, tmp_path / "recipe.json", str(SEED)]
    done = subprocess.run([*unshare, "sh", "-c", SCRIPT, "sh", disk, copy, *driver], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    show(facts)

    kinds, phases = Counter(), Counter()
    for kind, phase, number in facts["counts"]:
        kinds[kind] += number
        phases[phase] += number
    assert sum(kinds.values()) >= 50
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) >= LEAST, kinds
    assert {"steps", "evaluating", "checkpoint", "evaluate", "export lora", "export merged"} <= set(phases)

    run, untroubled = copy / "run", copy / "reference" / "run"
    assert metrics(run) == metrics(untroubled)
    assert (run / "evaluations.jsonl").read_bytes() == (untroubled / "evaluations.jsonl").read_bytes()
    assert (run / "eval.json").read_bytes() == (untroubled / "eval.json").read_bytes()
    assert_same_results(run / "adapter", untroubled / "adapter")
    for to in ("lora", "merged"):
        assert_same_results(copy / "exports" / to, copy / "reference" / "exports" / to)
