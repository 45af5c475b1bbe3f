"""`python -m multilora.harness`: lm-eval's command line, with the model `multilora`."""

from __future__ import annotations

import sys

from multilora.errors import InputError
from multilora.foreign_errors import as_own_error
from multilora.harness.require import require_lm_eval
from multilora.processes import end_process


def main() -> None:
    """Run lm-eval's command line; a MultiLoraError becomes a message and an exit code, as in `multilora`."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    code = 0
    try:
        require_lm_eval()
        from lm_eval.__main__ import cli_evaluate

        import multilora.harness.engine_model  # noqa: F401  (registers the model)

        cli_evaluate()
    except Exception as error:
        own_error = as_own_error(error)
        if debug or own_error is not error:  # what lm-eval raises itself is left as it is
            raise
        print(f"error: {own_error}", file=sys.stderr)
        code = 2 if isinstance(own_error, InputError) else 1
    end_process(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
