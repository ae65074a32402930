import sys

import pytest

from forwardinf.view.cli import main


@pytest.fixture
def run(monkeypatch, capsys):
    """Run ``forwardinf …`` in this process; return (exit code, stdout, stderr)."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["forwardinf", *map(str, words)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call
