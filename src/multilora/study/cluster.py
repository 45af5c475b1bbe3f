"""Submit jobs for a study to a cluster with submitit (https://github.com/facebookincubator/submitit), an extra."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from multilora.errors import InputError
from multilora.foreign_errors import own_errors
from multilora.study.folder import write_study
from multilora.study.load import Study
from multilora.study.worker import run_study

EXECUTORS = ("slurm", "local")


class StudyJob:
    """Works on the cells of a study. If Slurm preempts it or its time is over, it is queued again.

    Args:
        file: the resolved study file
    """

    def __init__(self, file: str) -> None:
        self.file = file

    def __call__(self) -> dict[str, int]:
        """Run open cells until none is left; returns the number of finished and failed cells."""
        status = run_study(Study.load(self.file), report=lambda line: print(line, flush=True))
        return {"finished": status.count("finished"), "failed": status.count("failed")}

    def checkpoint(self) -> Any:
        """Called by submitit before the job is killed: the next one continues from the last checkpoints."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@own_errors
def submit_jobs(study: Study, executor: str) -> list[str]:
    """Submit `cluster.jobs` jobs, and return their ids.

    Args:
        study: from `Study.load`; its folder must be on a file system that all machines share
        executor: `slurm`, or `local` for processes on this machine

    Raises:
        InputError: an unknown executor or parameter, or submitit or Slurm is missing.
    """
    return [str(job.job_id) for job in start_jobs(study, executor)]


def start_jobs(study: Study, executor: str) -> list[Any]:
    """Submit the jobs, see `submit_jobs`; returns submitit's jobs."""
    if executor not in EXECUTORS:
        raise InputError(f"--submit: {executor!r}, expected one of {', '.join(EXECUTORS)}")
    if find_spec("submitit") is None:
        raise InputError("--submit needs submitit; pip install 'multilora[cluster]'")
    import submitit

    file = write_study(study)
    try:
        runner = submitit.AutoExecutor(folder=study.path / "jobs" / "%j", cluster=executor)
        runner.update_parameters(**{"name": "multilora-study", "timeout_min": 24 * 60, **study.cluster.parameters})
    except (RuntimeError, NameError, TypeError, ValueError, AssertionError) as error:
        raise InputError(f"cluster: {' '.join(str(error).split())}; see submitit's parameters") from error
    with runner.batch():
        return [runner.submit(StudyJob(str(file))) for _ in range(study.cluster.jobs)]
