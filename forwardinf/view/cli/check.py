"""The command that looks at a run folder file by file: check."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from forwardinf.view.cli.app import app, people, print_json
from forwardinf.view.cli.options import AllowCode, Json
from forwardinf.view.cli.run import resume


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    repair: Annotated[bool, typer.Option("--repair", help="Remove what is damaged and read it again.")] = False,
    allow_code: AllowCode = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Say which files of a run folder are damaged or missing, and what is read again for them."""
    from forwardinf.score.damage import damages, remove
    from forwardinf.score.store import Folder

    found = damages(folder)
    if as_json and not repair:
        print_json([vars(damage) for damage in found])
    elif found:
        from forwardinf.view.terminal import table

        rows = [{"file": one.file, "trouble": one.trouble, "read again": ", ".join(one.again)} for one in found]
        table(rows, people(), title=f"{len(found)} files of {folder} cannot be used")
    else:
        sys.stderr.write(f"{folder}: every file is whole\n")
    if found and not repair:
        raise typer.Exit(1)
    if not repair:
        return
    remove(folder, found)
    if Folder(folder).replayed().get("config") is None:
        sys.stderr.write(
            "removed; make the same Python call again with this output_dir: it reads only what is missing\n"
        )
        return
    resume(folder, allow_code=allow_code, as_json=as_json)
