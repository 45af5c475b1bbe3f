"""Put one run through random faults, and start it again after each one; see test_soak.py.

`python soak_driver.py DISK RECIPE.json SEED` works in DISK, a small file system of its own, and prints the counts.
Children are forked, so that they start quickly, and run the command line.
"""

from __future__ import annotations

import functools
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pyarrow.feather
import torch
import yaml
from safetensors.torch import load_file
from soak_child import PHASES, STARTING, Child, move_clock

from multilora.training.checkpoint import STAGING, checkpoints
from multilora.training.manifest import damage

TRAINING_KINDS = {
    "SIGKILL": 8,
    "SIGTERM": 2,
    "SIGINT": 2,
    "SIGHUP": 2,
    "full disk": 5,
    "read-only": 4,
    "damage": 4,
    "clock": 3,
    "second process": 3,
    "memory": 3,
}
LATER_KINDS = ["SIGKILL", "SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "full disk", "full disk", "read-only", "clock"]
FINISHING_KINDS = ["SIGKILL", "SIGTERM", "full disk", "SIGKILL", "read-only"]
FAULTS = 50
REASONS = {
    "full disk": "No space left|unexpected pos|iostream error",
    "read-only": "Permission denied|cannot be written",
    "memory": "out of memory",
}


class Soak:
    """One run, its faults and their counts."""

    def __init__(self, disk, recipe_file, seed):
        self.disk, self.recipe_file, self.rng = disk, recipe_file, random.Random(seed)
        self.recipe = json.loads(recipe_file.read_text())
        self.logs = recipe_file.parent / "logs"
        self.logs.mkdir()
        self.run, self.exports, self.ballast = disk / "run", disk / "exports", disk / "ballast"
        self.counts, self.damaged, self.attempts = Counter(), set(), 0
        self.errors = Counter()

    def start(self, arguments, **options):
        self.attempts += 1
        return Child(arguments, self.logs / f"{self.attempts}.txt", self.recipe, **options)

    def train(self, **options):
        return self.start(["train", str(self.recipe_file), "--set", f"output_dir={self.run}", "--resume"], **options)

    def fault_in_training(self, kind, phase=None):
        """Let a fault happen while the run trains, in a phase or anywhere; returns whether it really did."""
        options = {}
        if kind == "damage" and not self.damage_newest():
            return False
        if kind == "clock":
            options["prepare"] = self.moved_clock()
        if kind == "memory":
            options["memory_error_after"] = self.rng.randint(1, 6)
        child = self.train(**options)
        rival = self.train() if kind == "second process" and self.rng.random() < 0.5 else None
        self.wait_for_moment(child, kind, phase)
        if kind == "second process":
            return self.check_rival(child, rival or self.train())
        return self.strike(child, kind)

    def wait_for_moment(self, child, kind, phase):
        if phase is not None:
            child.wait_for(lambda: phase in child.seen, 60)
            child.wait_for(lambda: False, self.rng.uniform(0, 0.01))
        elif kind in ("damage", "clock", "memory", "second process"):
            steps = self.rng.randint(2, 6)
            child.wait_for(lambda: child.seen.count("s") >= steps, 60)
        elif self.rng.random() < 0.25:
            child.wait_for(lambda: False, self.rng.uniform(0, 1.5))
        else:
            phases, number = self.rng.choice(["ce", "c", "e", "s", STARTING]), self.rng.randint(1, 2)
            number = 1 if phases == STARTING else number
            child.wait_for(lambda: sum(child.seen.count(letter) for letter in phases) >= number, 60)
            child.wait_for(lambda: False, self.rng.uniform(0, 0.06))

    def fault_in_command(self, kind, name, arguments, duration):
        """Let a fault happen in `eval` or `export`; returns whether it really did."""
        child = self.start(arguments, prepare=self.moved_clock() if kind == "clock" else lambda: None)
        child.phase = name
        child.wait_for(lambda: False, self.rng.uniform(0, duration))
        return self.strike(child, kind)

    def strike(self, child, kind):
        """Let the fault happen now, and wait for the end of the child."""
        phase, sent = PHASES.get(child.phase, child.phase), set()
        running = not child.poll()
        if kind.startswith("SIG"):
            sent.add(signal.Signals[kind])
            child.send(signal.Signals[kind])
        elif kind == "full disk":
            self.fill(self.rng.choice([0, 0, 4096, 16384, 32768]))
        elif kind == "read-only":
            self.set_writable(False)
        elif kind != "memory" and phase in PHASES.values():  # the run goes on in spite of these faults
            sent.add(signal.SIGTERM)
            child.send(signal.SIGTERM)
        if kind in ("full disk", "read-only") and child.wait_for(lambda: False, 4):
            sent.add(signal.SIGTERM)  # it has not noticed
            child.send(signal.SIGTERM)
        child.end()
        self.ballast.unlink(missing_ok=True)
        self.set_writable(True)
        self.check_end(child, sent, REASONS.get(kind))
        self.check_files()
        if kind in REASONS:
            happened = bool(re.search(REASONS[kind], child.error))
        elif kind == "damage":
            happened = "is damaged" in child.text
        else:
            happened = kind == "clock" or (running and child.status != 0)
        if happened:
            self.counts[kind, phase] += 1
            self.errors[f"{kind}: {self.short(child)}"] += 1
        return happened

    def short(self, child):
        if os.WIFSIGNALED(child.status):
            return f"died of {signal.Signals(os.WTERMSIG(child.status)).name}"
        text = child.error.splitlines()[0] if child.error else f"exit {os.waitstatus_to_exitcode(child.status)}"
        return re.sub(r"\d+", "N", text.replace(str(self.disk), ""))[:200]

    def check_end(self, child, sent, reason):
        """Every end is success, the signal that was sent, or our own error for the fault."""
        text, code = child.text, os.waitstatus_to_exitcode(child.status)
        assert "Traceback" not in text, text
        if code == 0 or -code in sent or (code == 130 and signal.SIGINT in sent):
            return
        assert code in (1, 2), f"exit code {code} in {child.phase}:\n{text}"
        stopped = any(f"stopped by {signal.Signals(number).name}" in child.error for number in sent)
        assert stopped or (reason and re.search(reason, child.error)), text

    def check_rival(self, child, rival):
        """Of two processes with one output_dir, one is refused, and the other one trains on."""
        children = [child, rival]
        child.wait_for(lambda: rival.poll(), 60)
        loser = child if child.poll() else rival
        (winner,) = (item for item in children if item is not loser)
        loser.end()
        assert os.waitstatus_to_exitcode(loser.status) == 2, loser.text
        assert "another process is writing this run (pid" in loser.error, loser.text
        steps = winner.seen.count("s") + self.rng.randint(1, 4)
        winner.wait_for(lambda: winner.seen.count("s") >= steps, 60)
        assert not winner.poll(), winner.text
        winner.send(signal.SIGTERM)
        winner.end()
        assert "stopped by SIGTERM" in winner.error, winner.text
        self.check_files()
        self.counts["second process", PHASES[winner.phase]] += 1
        return True

    def fill(self, free):
        """Leave only `free` bytes on the disk."""
        with self.ballast.open("wb") as file:
            while True:  # the child writes too, so the space may be gone before it is taken
                status = os.statvfs(self.disk)
                size = status.f_bavail * status.f_frsize - free
                if size <= 0:
                    return
                with suppress(OSError):
                    os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size + size)

    def set_writable(self, writable):
        for path in [self.disk / "cache", self.run, self.exports, *self.everything()]:
            try:
                mode = path.stat().st_mode
                os.chmod(path, mode | 0o200 if writable else mode & ~0o222)
            except FileNotFoundError:  # the child has renamed or removed it
                continue

    def everything(self):
        return [path for folder in (self.run, self.exports, self.disk / "cache") for path in _walk(folder)]

    def damage_newest(self):
        """Truncate, remove or change a file of the newest checkpoint."""
        complete = [path for path in checkpoints(self.run / "checkpoints") if path not in self.damaged]
        if not complete:
            return False
        newest = complete[-1]
        file = self.rng.choice(sorted(path for path in newest.iterdir() if path.stat().st_size))
        content = bytearray(file.read_bytes())
        way = self.rng.choice(["truncate", "remove", "flip"])
        if way == "remove":
            file.unlink()
        elif way == "truncate":
            file.write_bytes(content[: self.rng.randrange(len(content))])
        else:
            content[self.rng.randrange(len(content))] ^= 1 << self.rng.randrange(8)
            file.write_bytes(content)
        self.damaged.add(newest)
        return True

    def moved_clock(self):
        """Change the times of all files, or let the clock of the child jump."""
        if self.rng.random() < 0.5:
            return functools.partial(move_clock, self.rng.random())
        data = [Path(task["path"]) for task in self.recipe["tasks"]]
        for path in [*self.everything(), *data]:
            moved = path.stat().st_mtime + self.rng.choice([-365, -1, 1, 365]) * 86400
            os.utime(path, (moved, moved))
        return lambda: None

    def check_files(self):
        """No file under its final name is incomplete."""
        for folder in (self.run, self.exports):
            for path in _walk(folder):
                name = str(path.relative_to(folder))
                parts = Path(name).parts
                if not path.is_file() or STAGING in parts or any(_temporary(part) for part in parts):
                    continue
                if path.parent not in self.damaged:
                    _check_file(path)
        for checkpoint in checkpoints(self.run / "checkpoints"):
            problem = damage(checkpoint)
            if problem is None:
                self.damaged.discard(checkpoint)
            assert problem is None or checkpoint in self.damaged, f"{checkpoint}: {problem}"
        self.damaged = {path for path in self.damaged if path.exists()}


def _temporary(name):
    return name.startswith(".") and name.endswith((".partial", ".old"))


def _walk(folder):
    paths = []
    for parent, folders, files in os.walk(folder):
        paths += [Path(parent, name) for name in (*folders, *files)]
    return paths


def _check_file(path):
    try:
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".yaml":
            assert isinstance(yaml.safe_load(path.read_text()), dict)
        elif path.suffix == ".jsonl":
            text = path.read_text()
            assert not text or text.endswith("\n")
            assert all(isinstance(json.loads(line), dict) for line in text.splitlines())
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".arrow":
            pyarrow.feather.read_table(path)
    except Exception as error:
        raise AssertionError(f"{path} is incomplete: {error!r}") from error


def commands(run, exports):
    yield "evaluate", ["eval", str(run)], run / "eval.json"
    for to in ("lora", "merged"):
        yield f"export {to}", ["export", str(run), "--to", to, "--out", str(exports / to)], exports / to


def main():
    disk, recipe_file, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    os.environ["HF_DATASETS_CACHE"] = str(disk / "reference" / "cache")
    import datasets

    datasets.config.HF_DATASETS_CACHE = disk / "reference" / "cache"
    soak = Soak(disk, recipe_file, seed)
    start = time.monotonic()
    durations = {}
    reference = disk / "reference"
    child = soak.start(["train", str(recipe_file), "--set", f"output_dir={reference / 'run'}"])
    child.end(120)
    assert child.status == 0, child.text
    for name, arguments, _ in commands(reference / "run", reference / "exports"):
        begin = time.monotonic()
        child = soak.start(arguments)
        child.end()
        assert child.status == 0, child.text
        durations[name] = time.monotonic() - begin
    reference_time = time.monotonic() - start

    os.environ["HF_DATASETS_CACHE"] = str(disk / "cache")
    datasets.config.HF_DATASETS_CACHE = disk / "cache"
    planned = [kind for kind, count in TRAINING_KINDS.items() for _ in range(count)]
    soak.rng.shuffle(planned)
    soak.fault_in_training("SIGKILL", STARTING)
    steps, last = soak.recipe["training"]["max_steps"], 0
    while planned and soak.attempts < 3 * FAULTS and last < steps - 16:
        kind = planned.pop(0)
        if not soak.fault_in_training(kind):
            planned.append(kind)
        complete = checkpoints(soak.run / "checkpoints")
        last = int(complete[-1].name.partition("-")[2]) if complete else 0
    for kind in FINISHING_KINDS:
        if not (soak.run / "adapter").is_dir():
            soak.fault_in_training(kind, "f")
    trained_after = sum(soak.counts.values())
    child = soak.train()
    child.end()
    assert child.status == 0, child.text
    left = list(commands(soak.run, soak.exports))
    later = [soak.rng.choice(LATER_KINDS) for _ in range(3 * FAULTS)]
    later[: len(LATER_KINDS)] = soak.rng.sample(LATER_KINDS, len(LATER_KINDS))
    while sum(soak.counts.values()) < FAULTS:
        name, arguments, result = left[sum(soak.counts.values()) % 3]
        soak.fault_in_command(later.pop(0), name, arguments, durations[name])
        if result.is_dir():
            shutil.rmtree(result)  # an export never replaces a folder
    for _, arguments, _ in left:
        child = soak.start(arguments)
        child.end()
        assert child.status == 0, child.text
    soak.check_files()
    for folder in (soak.run, soak.exports, disk):
        rest = [path for path in _walk(folder) if _temporary(path.name) or path.name == STAGING]
        assert not rest, rest
    counts = [[kind, phase, count] for (kind, phase), count in sorted(soak.counts.items())]
    print(
        json.dumps(
            {
                "counts": counts,
                "in_training": trained_after,
                "last_checkpoint_before_finishing": last,
                "attempts": soak.attempts,
                "errors": soak.errors,
                "seconds": round(time.monotonic() - start, 1),
                "reference_seconds": round(reference_time, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
