"""Show the demonstration: a table in the terminal, a page with pictures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from forwardinf.use.demo import PERTURBATION, Demo, demonstrate, describe
from forwardinf.view.gallery import report
from forwardinf.view.report import Table
from forwardinf.view.terminal import table
from forwardinf.view.use_pages import show

SHOWN = 6  # rows of each use

LEGEND = (
    "Each test image is asked: which training images made the model predict what it predicts? A proponent (positive) supports "
    "the prediction. A share of 100 %: it reacts exactly as the query itself does, as a copy would."
)


def demo(out: Path, console: Console) -> dict[str, Any]:
    """Run the demonstration, print its tables, write ``report.html`` and the run folder; return it all as plain values."""
    began = time.perf_counter()
    found = demonstrate(output_dir=out / "run")
    page = _page(found, out / "report.html")
    planted = found.planted
    console.print(
        f"Trained a small CNN on {len(planted.truth)} digits: {len(planted.flipped)} labels flipped, {len(planted.copies)} test "
        f"images copied in. Test accuracy {found.accuracy:.1%}.\n{LEGEND}\n",
        markup=False, highlight=False,
    )  # fmt: skip
    table(
        found.queries, console, title=f"Test predictions and what made them (rise {PERTURBATION.rise} nats, two-sided)"
    )
    console.print()
    table(found.found, console, title="What was planted, and who finds it (1 is perfect; random is .5 for AUROC)")
    console.print()
    table(found.hits, console, title="The three uses on what was planted: hits and misses")
    for use, result in found.uses.items():
        console.print()
        show(result, console, SHOWN)
        result.report(out / f"{use}.html")
    seconds = time.perf_counter() - began
    pages = ", ".join(f"{use}.html" for use in found.uses)
    told = f"\nPictures: {page}, and {pages} beside it\nRun folder: {out / 'run'}\n{seconds:.0f} s in all"
    console.print(told, markup=False, highlight=False, soft_wrap=True)
    return {
        "accuracy": found.accuracy, "training": len(planted.truth), "flipped": len(planted.flipped),
        "copied": len(planted.copies), "seconds": round(seconds, 1), "report": str(page), "run": str(out / "run"),
        "queries": found.queries.to_dict("records"), "found": found.found.to_dict("records"),
        "hits": found.hits.to_dict("records"),
    }  # fmt: skip


def _page(found: Demo, path: Path) -> Path:
    rows: dict[bytes, str] = {}
    planted = found.planted
    for row in range(len(planted.truth)):
        rows.setdefault(_key(planted.train[0][row], planted.train[1][row]), describe(planted, row))

    def caption(example: Any) -> str:
        return rows.get(_key(*example), f"label {int(example[1])}")

    return report(
        found.scores, path, title="What made these digits come out so?", captions=caption,
        tables=[Table.from_frame(found.queries, "Test predictions", LEGEND),
                Table.from_frame(found.hits, "The three uses on what was planted", "Hits and misses."),
                Table.from_frame(found.found, "What was planted, and who finds it", "1 is perfect; random is .5 for AUROC.")],
        summary=[("test accuracy", f"{found.accuracy:.1%}"), ("labels flipped", len(planted.flipped)),
                 ("test images copied in", len(planted.copies))],
    )  # fmt: skip


def _key(image: Any, label: Any) -> bytes:
    return bytes(image.numpy().tobytes()) + bytes([int(label)])
