"""The command line: each verb parses, makes one library call, and shows the result.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed while running, 2 wrong input.
Heavy imports happen inside the verbs, so that `multilora --help` stays fast.
"""

from __future__ import annotations

import sys
import warnings


def main() -> None:
    """Run the command line and exit."""
    from multilora.cli.app import app
    from multilora.errors import InputError, MultiLoraError
    from multilora.processes import end_process

    # PEFT reads an attribute that transformers has renamed; nothing a user could mend.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
    try:
        app()
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except MultiLoraError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        code = 130
    else:
        code = 0
    end_process(code)
    sys.exit(code)
