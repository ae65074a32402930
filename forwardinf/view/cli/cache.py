"""The command that shows what is kept between calls, and removes it: cache."""

from __future__ import annotations

from typing import Annotated

import typer

from forwardinf.view.cli.app import app, people, print_json
from forwardinf.view.cli.options import Json

Prune = Annotated[bool, typer.Option("--prune", help="Remove what was used least lately, down to the limit.")]
Limit = Annotated[
    float | None, typer.Option("--limit", help="GiB. Default: $FORWARDINF_CACHE_LIMIT, else 20; 0 removes all.", min=0)
]


@app.command()
def cache(prune: Prune = False, limit: Limit = None, as_json: Json = False) -> None:
    """Show what is kept between calls (baselines, fits, trunks, tunings), and how much; with --prune, remove it."""
    from forwardinf.core import cache as kept
    from forwardinf.core.machine import cache_folder

    folder = cache_folder()
    most = kept.limit() if limit is None else int(limit * 2**30)
    removed = (0, 0) if folder is None or not prune else kept.prune(folder, most)
    sizes = {} if folder is None else kept.sizes(folder)
    found = {
        "folder": None if folder is None else str(folder), "limit_bytes": most, "bytes": sum(size for _, size in sizes.values()),
        "kept": {kind: {"files": files, "bytes": size} for kind, (files, size) in sizes.items()},
        "removed": {"files": removed[0], "bytes": removed[1]},
    }  # fmt: skip
    if as_json:
        print_json(found)
        return
    from forwardinf.view.terminal import plan_panel
    from forwardinf.view.terminal import table as show

    facts = {"folder": found["folder"] or "none (FORWARDINF_CACHE=off)", "limit": f"{most / 2**30:.1f} GiB"}
    if prune:
        facts["removed"] = f"{removed[0]:,} files, {removed[1] / 2**20:.1f} MiB; what was used within the hour stays"
    plan_panel(facts, people(), title="Kept between calls")
    rows = [{"what": kind, "files": files, "MiB": round(size / 2**20, 1)} for kind, (files, size) in sizes.items()]
    if rows:
        show(rows, people())
