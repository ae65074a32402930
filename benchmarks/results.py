"""The JSON of an evaluation: what was found, with machine, versions, commit and date."""

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from forwardinf.core import machine
from forwardinf.core.files import written

RESULTS = Path(__file__).parent / "results"


def facts() -> dict[str, Any]:
    """Return what is said beside every measurement."""
    described = {name: value for name, value in machine.describe().items() if name != "free_disk_gib"}
    return {"machine": described, "versions": machine.versions(), "commit": commit(), "date": time.strftime("%Y-%m-%d")}


def commit() -> str:
    """Return the commit that is measured, with ``+`` where the tree has changes; nothing where there is no git."""
    if shutil.which("git") is None:
        return ""

    def git(*words: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + (
        "+" if git("status", "--porcelain", "--", "../forwardinf", ".") else ""
    )


def write(name: str, content: dict[str, Any], out: Path | None = None) -> dict[str, Any]:
    """Write ``results/<name>.json``, or another file, and return what is in it."""
    path = out or RESULTS / f"{name}.json"
    result = {**content, **facts()}
    with written(path) as part:
        part.write_text(json.dumps(result, indent=2, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {path}")
    return json.loads(path.read_text(encoding="utf-8"))


def earlier(name: str) -> dict[str, Any]:
    """Return the result that is there; empty where there is none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
