"""Code blocks of the README and the docs are run as they stand: Python in one namespace a page, shell in one folder."""

import os
import subprocess
import sys
from pathlib import Path

from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

ROOT = Path(__file__).parent


def run_shell(example: Example) -> None:
    """Run a ``bash`` block with the environment's own commands first on the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(["bash", "-euc", example.parsed], env={**os.environ, "PATH": path}, capture_output=True,
                          text=True, check=False)  # fmt: skip
    if done.returncode:
        raise AssertionError(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}")


def in_scratch(namespace: dict) -> None:
    """Run a page's blocks in a folder of their own, beside the examples."""
    import tempfile

    scratch = Path(tempfile.mkdtemp(prefix="forwardinf-docs-"))
    (scratch / "examples").symlink_to(ROOT / "examples")
    namespace["_back"] = Path.cwd()
    os.environ["FORWARDINF_CACHE"] = str(scratch / "cache")
    os.chdir(scratch)


def back(namespace: dict) -> None:
    """Return to where the tests were."""
    os.chdir(namespace["_back"])


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), CodeBlockParser(language="bash", evaluator=run_shell)],
    patterns=["README.md", "docs/*.md"],
    setup=in_scratch,
    teardown=back,
).pytest()
