"""Command-line interface: each command parses its arguments, makes one library call and prints the result.

Results go to stdout, everything else to stderr. Exit codes: 0 success, 1 failure while running, 2 invalid input.
Two options work anywhere on the line: `--debug` prints the traceback of an error and what other libraries say,
`--quiet` prints results and errors only.
Heavy imports are inside the commands, so that `multilora --help` is fast.
"""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import nullcontext


def main() -> None:
    """Run the command line and exit."""
    from multilora.cli.silence import notes, silent_libraries
    from multilora.processes import end_process

    debug, quiet = "--debug" in sys.argv, "--quiet" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument not in ("--debug", "--quiet")]
    with notes(quiet=quiet), nullcontext() if debug else silent_libraries():
        code = _run(debug=debug)
        end_process(code)
    sys.exit(code)


def _run(*, debug: bool) -> int:
    """Run the command and return its exit code."""
    from multilora.cli.app import app
    from multilora.errors import InputError
    from multilora.foreign_errors import as_own_error

    try:
        app()
    except SystemExit as system_exit:
        if isinstance(system_exit.code, str):
            print(system_exit.code, file=sys.stderr)
        if system_exit.code == 130:  # typer's answer to Ctrl-C
            print("stopped", file=sys.stderr)
        return system_exit.code if isinstance(system_exit.code, int) else int(system_exit.code is not None)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        own_error = as_own_error(error)
        print(f"error: {own_error}", file=sys.stderr)
        return 2 if isinstance(own_error, InputError) else 1
    return 0
