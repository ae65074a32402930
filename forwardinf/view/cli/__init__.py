"""The command line: parse, call, print. Results on stdout as JSON with ``--json``, people on stderr, exit code 0, 1 or 2.

torch is imported inside the commands, so that ``--help`` is instant.
"""

from __future__ import annotations

import sys

from forwardinf.core.errors import Error, SettingError
from forwardinf.view.cli import cache, check, evaluate, first_steps, run, traces, uses, verify  # noqa: F401  (each adds its commands)
from forwardinf.view.cli.app import app


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
