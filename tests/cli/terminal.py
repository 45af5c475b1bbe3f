"""Commands in a real terminal."""

from __future__ import annotations

import os
import re
import signal
import sys

import pexpect

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b\][^\x07]*\x07")


def start(arguments, folder, *, columns=80, timeout=600):
    """Start `multilora` in a terminal of that width."""
    environment = {**os.environ, "TERM": "xterm", "OMP_NUM_THREADS": "1"}
    environment.pop("COLUMNS", None)
    return pexpect.spawn(
        sys.executable,
        ["-m", "multilora", *map(str, arguments)],
        cwd=str(folder),
        env=environment,
        dimensions=(40, columns),
        encoding="utf-8",
        timeout=timeout,
        # A background job of a shell ignores Ctrl-C, and would pass that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def output(arguments, folder, *, columns=80):
    """Run a command to its end; returns what the terminal got, without escape sequences."""
    child = start(arguments, folder, columns=columns)
    child.expect(pexpect.EOF)
    child.close()
    text = plain(child.before)
    assert child.exitstatus == 0, text
    return text


def plain(text):
    """Text without escape sequences; of lines that were overwritten, the last state."""
    lines = ESCAPES.sub("", text).replace("\r\n", "\n").split("\n")
    return "\n".join(line.rpartition("\r")[2] or line.replace("\r", "") for line in lines)
