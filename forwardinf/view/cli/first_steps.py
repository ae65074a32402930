"""The first commands a stranger types: demo and doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from forwardinf.view.cli.app import app, people, print_json
from forwardinf.view.cli.options import Json, Weights


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report and the run.")] = Path("forwardinf-demo"),
    as_json: Json = False,
) -> None:
    """Train a small digit classifier with planted mistakes, and find what made it behave so. No network, about a minute."""
    from forwardinf.view import demo as shown

    found = shown.demo(out, people())
    if as_json:
        print_json(found)


@app.command()
def doctor(
    model: Annotated[str | None, typer.Option(help="Look at a model's parameters too.")] = None,
    weights: Weights = None,
    as_json: Json = False,
) -> None:
    """Check versions, devices, disk and known breakages."""
    from forwardinf.view.doctor import examine

    given = None
    if model is not None:
        from forwardinf.models.load import load_model

        given = load_model(model, weights=weights)
    facts, findings = examine(given)
    if as_json:
        print_json({**facts, "findings": [vars(finding) for finding in findings]})
    else:
        from forwardinf.view.terminal import plan_panel
        from forwardinf.view.terminal import table as show

        plan_panel(facts, people(), title="This machine")
        show([vars(finding) for finding in findings], people())
    if any(finding.level == "fail" for finding in findings):
        raise typer.Exit(1)
