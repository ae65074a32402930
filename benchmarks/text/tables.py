"""The tables of docs/trace.md: how well each method traces facts, and what removing what it named does."""

from typing import Any

from benchmarks import page

KINDS = ("MRR", "Recall@10", "P@10")


def trace_tables(result: dict[str, Any]) -> str:
    """Return Markdown: what was asked, and a row for each method."""
    asked = result["questions"]
    blocks = [
        f"{result['parameters']:,} parameters, {result['texts']:,} texts, {asked['with the mask at the end']:,} questions, "
        f"{asked['answered right']:,} answered right; {result['candidates']:.0f} candidates each, a median of "
        f"{result['proponents, median']:.0f} true."
    ]
    head = ["", *KINDS, "MRR less filled BM25's", "P@10 less filled BM25's"]
    for kind in ("answered right", "answered wrong"):
        whole = result[kind][0]["MRR"]["count"]
        blocks.append(f"**{whole} questions {kind}** (mean, 95 % interval over questions)")
        blocks.append(page.table(head, [_row(row, whole) for row in result[kind]]))
    return "\n\n".join(blocks)


def _row(row: dict[str, Any], whole: int) -> list[str]:
    count = row["MRR"]["count"]
    name = row["row"] + (f" ({row['setting']})" if row["setting"] else "")
    name += f" (the first {count})" if count != whole else ""
    beside = [page.signed(row["beside filled BM25"][which]) for which in ("MRR", "P@10")]
    return [name, *(page.short_interval(row[which]).replace("1.000", "1") for which in KINDS), *beside]


def removal_tables(result: dict[str, Any]) -> str:
    """Return Markdown: a row for each way of choosing the texts that are removed."""
    size = result["size"]
    told = (
        f"{result['parameters']:,} parameters, {size['recipe']['epochs']} epochs over {result['texts']:,} texts; "
        f"{result['facts']} facts, "
        f"{100 * result['right before']:.0f} % answered right, log p(answer) {result['log p before']:.2f} on average; "
        f"{size['removed']} texts a fact removed, of all facts together; seeds {', '.join(map(str, size['seeds']))}; "
        "95 % intervals over facts, differences paired. Nats."
    )
    head = ["removed", "texts", "P@10", "fall of log p", "less random's", "less masked BM25's", "÷ random's"]
    rows = [
        [row["row"], f"{row['texts removed']:,}", f"{row['P@10']['mean']:.2f}" if row["P@10"] else "",
         page.interval(row["fall"], ".2f"), page.interval(row["above random"], "+.2f"),
         page.interval(row["above BM25"], "+.2f"), page.interval(row["times random"], ".2f") if row["times random"] else "–"]
        for row in result["rows"]
    ]  # fmt: skip
    blocks = [told, page.table(head, rows)]
    if not result["rows"][0]["times random"]:
        blocks.append("No ratios: random removal's own fall cannot be told from 0.")
    return "\n\n".join(blocks)
