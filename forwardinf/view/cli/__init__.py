"""The command line: parse, call, print. Results on stdout as JSON with ``--json``, people on stderr, exit code 0, 1 or 2.

torch is imported inside the commands, so that ``--help`` is instant.
"""

from __future__ import annotations

import inspect
import sys

from forwardinf.core.errors import Error, SettingError

# isort: off  (each adds its commands, in the order in which help lists them)
from forwardinf.view.cli import (  # noqa: F401  # noqa: F401
    cache,
    check,
    evaluate,
    first_steps,
    run,
    traces,
    uses,
    verify,
)

# isort: on
from forwardinf.view.cli.app import app

for command in app.registered_commands:
    command.short_help = inspect.getdoc(command.callback)  # said in full in the list of commands too


def main() -> None:
    """Run the command line; every error of ours is one line on stderr and exit code 1."""
    try:
        app()
    except Error as error:
        from forwardinf.view.clean import for_terminal

        sys.stderr.write(f"forwardinf: {for_terminal(str(error))}\n")
        raise SystemExit(2 if isinstance(error, SettingError) else 1) from None
    except KeyboardInterrupt:
        sys.stderr.write("forwardinf: interrupted; a run folder can be resumed\n")
        raise SystemExit(1) from None
    except BrokenPipeError:
        raise SystemExit(1) from None
