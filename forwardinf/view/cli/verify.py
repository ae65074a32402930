"""The command that holds the hypothesis itself against exact retraining: verify."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from forwardinf.view.cli.app import app, people, print_json
from forwardinf.view.cli.options import Json, Overwrite

Name = Annotated[
    str,
    typer.Option(
        "--data", help="digits, or with the data folder: mnist, fashion, cifar10. Their size says their time."
    ),
]
Part = Annotated[list[str] | None, typer.Option("--part", help="convex or groups; repeatable. Default: both.")]
Quick = Annotated[bool, typer.Option("--quick", help="Small sizes and two seeds, on digits: half a minute.")]
DataDir = Annotated[Path | None, typer.Option(help="The data folder; default $FORWARDINF_DATA.")]
Seed = Annotated[int, typer.Option(help="Of the split, the wrong labels and the groups; 42 is the published one.")]
Seeds = Annotated[str, typer.Option(help="Of the CNN trainings, like 57,12; default the five published ones.")]
Folder = Annotated[
    Path | None, typer.Option("--out", help="Folder for fits, verify.json and verify.png; the same call resumes there.")
]


@app.command()
def verify(
    data: Name = "digits", part: Part = None, quick: Quick = False, data_dir: DataDir = None, seed: Seed = 42,
    seeds: Seeds = "", out: Folder = None, overwrite: Overwrite = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Does removing a training example tell the same as adding the test? Measured by exact retraining."""
    from forwardinf.core.errors import SettingError
    from forwardinf.truth.verify import PARTS
    from forwardinf.truth.verify import verify as measure

    words = [word.strip() for word in seeds.split(",") if word.strip()]
    if not all(word.isdecimal() for word in words):
        raise SettingError("--seeds", expected="whole numbers like 57,12", got=repr(seeds))
    found = measure(
        data, parts=cast("Any", part or PARTS), quick=quick, data_dir=data_dir, seed=seed,
        seeds=[int(word) for word in words] or None, output_dir=out, overwrite=overwrite,
    )  # fmt: skip
    if out is not None:
        found.save(out)
        found.plot(out / "verify.png")
    if as_json:
        print_json(found.to_dict())
        return
    from forwardinf.view.terminal import table

    title = "Training examples removed, beside tests added (correlations over training examples, mean over tests)"
    table(found.table.dropna(axis=1, how="all"), people(), title=title)
    if out is not None:
        sys.stderr.write(f"tables and scatter plot: {out}\n")
