"""One process at a time writes a run."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import subprocess
import sys

import pytest

import multilora
from multilora.errors import RunDirectoryError
from multilora.runs.lock import LOCK_FILE, RunLock

HOLD = """
import sys, time
from pathlib import Path
from multilora.runs.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `run`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_and_told_who_holds_the_lock(holder, recipe, tmp_path):
    for resume in (False, True):
        with pytest.raises(RunDirectoryError, match=rf"another process is writing this run \(pid {holder.pid} on "):
            multilora.train(recipe, resume=resume)
    assert [item.name for item in (tmp_path / "run").iterdir()] == [LOCK_FILE]


def test_death_releases_the_lock(holder, recipe):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    run = multilora.train(recipe, ["training.max_steps=2"])
    assert not (run.path / LOCK_FILE).exists()


def test_a_failure_leaves_no_folder(recipe, tmp_path):
    recipe["output_dir"] = str(tmp_path / "new" / "runs" / "run")
    recipe["tasks"][0]["path"] = str(tmp_path / "gone.jsonl")
    (tmp_path / "gone.jsonl").write_text("{")
    with pytest.raises(ValueError, match="broken JSON"):
        multilora.train(recipe)
    assert not (tmp_path / "new").exists()


def test_the_lock_of_other_processes_of_a_launch_does_nothing(tmp_path):
    with RunLock(tmp_path / "run", active=False):
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", ["file/run", "x" * 300, "a\0b", "loop/run"])
def test_places_that_cannot_be_written(path, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(RunDirectoryError, match=r"cannot be written .*set output_dir"), RunLock(tmp_path / path):
        pass


def test_a_lock_file_that_its_holder_removes_meanwhile_does_not_count(tmp_path, monkeypatch):
    """Else two processes could hold the lock: one of the removed file, and one of the new file."""
    path = tmp_path / "run"
    first = RunLock(path).__enter__()
    real, removed = fcntl.flock, []

    def flock(descriptor, operation):
        if not removed:
            removed.append(os.fstat(descriptor))
            first.__exit__(None, None, None)
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with RunLock(path):
        assert removed
        assert (path / LOCK_FILE).is_file()
        with pytest.raises(RunDirectoryError, match=f"another process is writing this run .pid {os.getpid()}"):
            RunLock(path).__enter__()


def test_the_lock_needs_no_free_space(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with RunLock(tmp_path / "run"), pytest.raises(RunDirectoryError, match=r"another process .* \(unknown\)"):
            RunLock(tmp_path / "run").__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
