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

    # PEFT reads an attribute that transformers has renamed; nothing a user could mend.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
    try:
        app()
    except MultiLoraError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
