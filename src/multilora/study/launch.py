"""Several worker processes on one machine, each with its GPU or its share of the CPU cores."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from multilora.errors import RunError
from multilora.foreign_errors import own_errors
from multilora.progress import QUIET
from multilora.study.cells import StudyCells
from multilora.study.folder import forget_failure, write_study
from multilora.study.load import Study
from multilora.study.search import all_cells


@own_errors
def run_in_processes(
    study: Study, workers: int, *, retry_failed: bool = False, report: Callable[[str], None] = lambda line: None
) -> None:
    """Run a study with several processes, and wait for them.

    Worker i uses GPU i modulo their number; without GPUs, every worker has an equal share of the CPU cores. The study
    is read from the resolved copy in its folder.

    Args:
        study: from `Study.load`
        workers: number of processes
        retry_failed: try failed cells again
        report: called with a line about the workers

    Raises:
        RunError: a worker failed; the others went on until no cell was left.
    """
    file = write_study(study)
    if retry_failed:
        for cell in all_cells(StudyCells(study)):
            forget_failure(cell)
    gpus = _gpus()
    report(f"{workers} workers on {f'{len(gpus)} GPUs' if gpus else f'{os.cpu_count()} CPU cores'}")
    command = [sys.executable, "-m", "multilora", "study", str(file)]
    with _interrupted_by_sigterm():
        processes = [
            # Ctrl-C reaches this process only: a second signal would stop a worker before its checkpoint.
            subprocess.Popen(
                command, env=_environment(index, workers, gpus), stdout=subprocess.DEVNULL, start_new_session=True
            )
            for index in range(workers)
        ]
        try:
            codes = [process.wait() for process in processes]
        except BaseException:
            for process in processes:  # they finish their step, and write a checkpoint
                process.terminate()
            for process in processes:
                process.wait()
            raise
    failed = [f"worker {index} (exit code {code})" for index, code in enumerate(codes) if code]
    if failed:
        raise RunError(
            f"{', '.join(failed)} of {workers} failed; its messages are above. Run the study again to continue"
        )


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt, so that the workers are stopped too."""
    if threading.current_thread() is not threading.main_thread():  # only it may set signal handlers
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _gpus() -> list[str]:
    """The GPUs that this process may use, as in CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def _environment(index: int, workers: int, gpus: list[str]) -> dict[str, str]:
    environment = {**os.environ, QUIET: "1"}  # the bars of several processes would overwrite each other
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
    else:
        threads = max(1, (os.cpu_count() or 1) // workers)
        environment |= {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    return environment
