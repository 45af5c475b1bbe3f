"""Command-line interface: each command parses its arguments, makes one library call and prints the result.

Results go to stdout, everything else to stderr. Exit codes: 0 success, 1 failure while running, 2 invalid input.
`--debug`, anywhere, prints the traceback of an error.
Heavy imports are inside the commands, so that `multilora --help` is fast.
"""

from __future__ import annotations

import sys
import traceback
import warnings


def main() -> None:
    """Run the command line and exit."""
    from multilora.cli.app import app
    from multilora.errors import InputError
    from multilora.foreign_errors import as_own_error
    from multilora.processes import end_process

    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]

    # PEFT reads an attribute that transformers has renamed; users cannot fix this.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
    try:
        app()
    except SystemExit as system_exit:
        if isinstance(system_exit.code, str):
            print(system_exit.code, file=sys.stderr)
        code = system_exit.code if isinstance(system_exit.code, int) else int(system_exit.code is not None)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        code = 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        own_error = as_own_error(error)
        print(f"error: {own_error}", file=sys.stderr)
        code = 2 if isinstance(own_error, InputError) else 1
    else:
        code = 0
    end_process(code)
    sys.exit(code)
