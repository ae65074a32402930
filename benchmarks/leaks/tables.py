"""The tables of docs/leaks.md."""

from typing import Any

from benchmarks.page import short, signed, table


def tables(result: dict[str, Any]) -> str:
    """Return every table as Markdown."""
    parts = [text for found in result["sets"] for text in _set(found)]
    if result["protocol"]:
        parts += _protocol(result["protocol"])
    return "\n\n".join(parts)


def _set(found: dict[str, Any]) -> list[str]:
    kinds = [kind for kind in found["rows"][0] if kind != "row"]
    head = f"## {found['set']}: N = {found['N']:,} ({found['train accuracy']:.1%} right), {found['parameters']:,} parameters"
    told = (
        f"{found['copies']} copies of each kind, {found['clean']} clean test examples. Each cell: top-1, then the share of "
        "copies that are found where 1 % of the clean are accused."
    )
    cells = [
        [row["row"], *(f"{short(row[kind]['top-1'], 2)}, {short(row[kind]['recall at 1%'], 2)}" for kind in kinds)]
        for row in found["rows"]
    ]
    beside = [[name, short(row["recall"]), signed(row["ours less this"])] for name, row in found["beside"].items()]
    decided = found["decision"]
    flags = ", ".join(f"{kind} {short(value, 2)}" for kind, value in decided["flagged"].items())
    return [
        head, told, table(["", *kinds], cells),
        "Over all near copies, recall at 1 %, [95 % interval over copies]:",
        table(["", "recall", "`fi.leaks` less this"], beside),
        f"The decision of `fi.leaks` (q = {decided['q']:g}; half of the clean calibrate): flagged {flags}; of "
        f"{decided['of clean']} clean {decided['clean flagged']} (false discoveries {decided['false discoveries']:.1%}).",
    ]  # fmt: skip


def _protocol(found: dict[str, Any]) -> list[str]:
    rows = [
        [row["row"], row["setting"], short(row["top-1"], 2), short(row["top-5"], 2), f"{row['once_s']:g}",
         f"{row['query_s']:.3g}", f"{row['whole_query_s']:.3g}", f"{row['whole_h']:,.3g}"]
        for row in found["rows"]
    ]  # fmt: skip
    head = [
        "",
        "setting",
        "top-1",
        "top-5",
        "once, s",
        "a query, s",
        "a query over 50,000, s",
        "10,000 × 50,000, hours",
    ]
    return [
        f"## The authors' protocol, adapted: ResNet-20, N = {found['N']:,}, {found['train accuracy']:.1%} of them right",
        f"{found['tuned on']} copies to choose settings on, {found['reported on']} others reported (`as_published`: the first "
        f"{found['few']} of them); CPU seconds, one thread. The last two columns are extrapolated in proportion "
        "to rows and pairs.",
        table(head, rows),
    ]
