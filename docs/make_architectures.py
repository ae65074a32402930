"""Write the table of docs/architectures.md: how the gradients of real architectures are taken. Run by `make docs`."""

import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
START, END = "| architecture | gradients of single examples |\n|---|---|\n", "\n<!-- end of table -->"


def main() -> None:
    """Read every architecture once."""
    warnings.simplefilter("ignore")
    from architectures import ARCHITECTURES
    from core.test_architectures import given, how

    from forwardinf.perturb.parameters import select

    rows = [f"| {name} | {how(case, select(case.model, None))} |" for name in ARCHITECTURES if (case := given(name))]
    page = HERE / "architectures.md"
    text = page.read_text("utf-8")
    before, after = text.split(START)[0], text.split(END)[1]
    page.write_text(before + START + "\n".join(rows) + END + after, "utf-8")


if __name__ == "__main__":
    main()
