"""Run what needs no torch under every Python that is present: `make pythons`.

Under each: every file compiles, and the modules that rest on the standard library alone import and work. With ``--install``
(what `make pythons` does) the command line answers ``--version`` and ``--help`` too, in an environment of its own under
``.pythons/`` that holds typer alone. Which Pythons were not found is said.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
WANTED = ((3, 10), (3, 11), (3, 12), (3, 13))
TELL = "import sys; print(sys.version_info[0], sys.version_info[1], sys.base_prefix)"
COMPILE = """
import compileall, sys
ok = all([compileall.compile_dir(folder, quiet=1, force=True) for folder in sys.argv[1:]])
sys.exit(not ok)
"""
PURE = """
import forwardinf as fi
from forwardinf.core.settings import Perturbation
from forwardinf.core.errors import SettingError
from forwardinf.view.clean import number
try:
    Perturbation("plian")
except SettingError as error:
    assert "plain" in str(error), error
else:
    raise SystemExit("an unknown direction was taken")
assert Perturbation.preset("finite").kind == "finite" and Perturbation().kind == "linear"
assert number(1234.5) and fi.__version__ and "attribute" in dir(fi)
import sys
assert "torch" not in sys.modules and "numpy" not in sys.modules
"""


def present() -> dict[tuple[int, int], Path]:
    """Return the interpreters found, one for each version: the one that runs this first, then the usual places."""
    folders = [Path("/usr/bin"), Path("/usr/local/bin"), *map(Path, os.environ.get("PATH", "").split(os.pathsep)),
               *sorted(Path("~/.pyenv/versions").expanduser().glob("*/bin"))]  # fmt: skip
    names = ["python3", *(f"python{major}.{minor}" for major, minor in WANTED)]
    found: dict[tuple[int, int], Path] = {}
    for path in [Path(sys.executable), *(folder / name for folder in folders for name in names)]:
        if path.is_file() and os.access(path, os.X_OK):
            told = subprocess.run([path, "-c", TELL], capture_output=True, text=True, check=False)
            if told.returncode == 0:
                major, minor, _ = told.stdout.split(maxsplit=2)
                found.setdefault((int(major), int(minor)), path)
    return {version: path for version, path in sorted(found.items()) if version in WANTED}


def failures(python: Path, cli: Path | None) -> list[str]:
    """Return what does not work under an interpreter; ``cli`` is one of the same version that has typer."""
    with tempfile.TemporaryDirectory() as scratch:
        bare = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"PYTHONPYCACHEPREFIX": scratch}
        checks = {
            "compile": [python, "-c", COMPILE, *(str(ROOT / name) for name in ("forwardinf", "examples"))],
            "pure modules": [python, "-S", "-c", PURE],
        }
        if cli is not None:
            checks |= {f: [cli, "-m", "forwardinf", f] for f in ("--version", "--help")}
        said = []
        for name, command in checks.items():
            done = subprocess.run(command, env={**bare, "PYTHONPATH": str(ROOT)}, cwd=scratch, capture_output=True,
                                  text=True, check=False)  # fmt: skip
            if done.returncode:
                said.append(f"{name}: {(done.stdout + done.stderr).strip()[-600:]}")
        return said


def with_typer(python: Path, version: tuple[int, int]) -> Path:
    """Return an interpreter of that version that has typer, in an environment of its own."""
    folder = ROOT / ".pythons" / f"{version[0]}.{version[1]}"
    if not (folder / "bin" / "typer").exists():
        subprocess.run([python, "-m", "venv", folder], check=True)
        pip = [folder / "bin" / "python", "-m", "pip", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "typer>=0.12", "rich>=13.7"], check=True)
    return folder / "bin" / "python"


def main() -> int:
    """Check each, say what was found; 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--install", action="store_true", help="try the command line too, in environments of its own")
    install = parser.parse_args().install
    found, failed = present(), False
    for version, path in found.items():
        here = Path(sys.executable) if version == sys.version_info[:2] else None
        wrong = failures(path, with_typer(path, version) if install and here is None else here)
        failed |= bool(wrong)
        print(f"Python {version[0]}.{version[1]} ({path}): {'ok' if not wrong else 'FAILED'}", *wrong, sep="\n  ")
    missing = ", ".join(f"{major}.{minor}" for major, minor in WANTED if (major, minor) not in found)
    if missing:
        only = "the only Python present; " if len(found) == 1 else ""
        print(f"{only}not present, so not checked: {missing} (a test parses every file by the grammar of 3.10)")
    return int(failed or not found)


if __name__ == "__main__":
    sys.exit(main())
