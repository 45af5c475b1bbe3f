"""One process at a time writes a run."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from multilora.errors import RunDirectoryError

LOCK_FILE = ".lock"


class LockHeldError(RunDirectoryError):
    """Another process holds the lock."""


class RunLock:
    """An exclusive lock on a run directory, held while the block runs. The system releases it if the process dies.

    The directory is created if it is missing, and removed again at the end if nothing was written into it.

    Args:
        path: the run directory
        active: False in all processes of a launch but the main one, where nothing is locked

    Raises:
        LockHeldError: another process holds the lock (names its pid and host).
        RunDirectoryError: the directory cannot be written.
    """

    def __init__(self, path: Path, *, active: bool = True) -> None:
        self.path, self.active = path, active
        self._descriptor: int | None = None
        self._created: list[Path] = []

    def __enter__(self) -> RunLock:
        if not self.active:
            return self
        file = self.path / LOCK_FILE
        try:
            if self.path.is_file():
                raise RunDirectoryError(f"{self.path}: is a file; choose a new folder")
            self._created = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            self._descriptor = self._locked(file)
        except RunDirectoryError:
            raise
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RunDirectoryError(
                f"{self.path}: cannot be written ({reason}); set output_dir to a folder that can"
            ) from None
        facts = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with suppress(OSError):  # on a full disk, the lock works without them
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, json.dumps(facts).encode())
        return self

    def _locked(self, file: Path) -> int:
        """Create, open and lock the file; returns its descriptor."""
        while True:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_current = _is_file(descriptor, file)
            except BaseException as error:
                os.close(descriptor)
                if not isinstance(error, BlockingIOError):
                    raise
                raise LockHeldError(
                    f"{self.path}: another process is writing this run ({_holder(file)}); wait for it, stop it, or "
                    "choose another output_dir"
                ) from None
            if is_current:
                return descriptor
            os.close(descriptor)  # its last holder has removed the file since it was opened

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._descriptor is None:
            return
        # Before the lock is released: afterwards the file may be another process's.
        with suppress(OSError):
            (self.path / LOCK_FILE).unlink()
            for folder in self._created:
                folder.rmdir()  # only if it is empty
        os.close(self._descriptor)
        self._descriptor = None


def _is_file(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _holder(file: Path) -> str:
    try:
        holder = json.loads(file.read_text(encoding="utf-8"))
        return f"pid {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"
