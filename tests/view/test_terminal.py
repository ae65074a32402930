import io
import re

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from forwardinf.view.clean import cell, file_name, for_csv, for_terminal, number, percent
from forwardinf.view.terminal import plan_panel, scores_table, table

HOSTILE = [
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "\x9b2J",
    "[red]x[/red]",
    "[/]",
    "[link=file:///]x[/link]",
    ":warning:",
    "a\rb",
    "a\x08b",
    "x\u202ey",
    "a\u2028b",
    "\ud800",
]
ANSI = re.compile(r"\x1b\[[0-9;]*m")  # what Rich itself writes: colours, nothing else
FRAME = pd.DataFrame(
    {
        "query": ["q1", "q1", "q2"],
        "rank": [1, 2, 1],
        "train": [40, 41, 40],
        "score": [0.4123, -0.02, np.nan],
        "share": [0.82, -0.04, np.nan],
        "baseline": [0.1, 2.0, 0.1],
        "uncertainty": [np.nan] * 3,
    }
)


def told(show, *args, terminal, width=100, encoding="utf-8", **options):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, write_through=True, newline="")
    show(
        *args,
        Console(file=stream, force_terminal=terminal, width=width, color_system="standard" if terminal else None),
        **options,
    )
    return raw.getvalue().decode(encoding)


def test_scores_are_one_line_each_when_no_person_is_watching():
    lines = told(scores_table, FRAME, terminal=False, width=20, title="Top 2", unit="nats").splitlines()
    assert lines == [
        "Top 2",
        "query  rank  train    score   share  baseline",
        "q1        1     40   +0.412    82 %     0.100",
        "q1        2     41  -0.0200  -4.0 %      2.00",
        "q2        1     40        -       -     0.100",
        "score in nats; positive = proponent: it supports the prediction; removing it would hurt it",
    ]


def test_columns_without_a_value_are_left_out():
    assert "uncertainty" not in told(scores_table, FRAME, terminal=False)
    assert "uncertainty" in told(scores_table, FRAME.assign(uncertainty=0.5), terminal=False)


def test_on_a_terminal_a_query_is_named_once_and_its_signs_are_coloured():
    out = told(scores_table, FRAME, terminal=True)
    assert out.count("q1") == 1
    assert re.search(r"\x1b\[32m *\+0\.412", out)
    assert re.search(r"\x1b\[31m *-0\.0200", out)


def test_magnitudes_have_no_sign_and_no_side():
    out = told(scores_table, FRAME.assign(score=[0.5, 0.2, 0.1]), terminal=True, signed=False)
    assert "+0.5" not in out
    assert "proponent" not in out
    assert "\x1b[32m" not in out


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_commands_neither_the_terminal_nor_rich(text, terminal):
    frame = (
        FRAME.head(1)
        .astype({"query": object})
        .assign(query=pd.Series([text], dtype=object), train=pd.Series([text], dtype=object))
    )
    shown = for_terminal(text)
    outputs = [
        told(scores_table, frame, terminal=terminal, title=text, unit=text),
        told(table, [{text: text}], terminal=terminal, title=text),
        told(
            table, pd.DataFrame({"column": pd.Series([text, text, text], dtype=object)}), terminal=terminal, title=text
        ),
        told(plan_panel, {text: text, "more": {text: [text]}}, terminal=terminal, title=text),
    ]
    for out in outputs:
        bare = ANSI.sub("", out)
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]", bare)
        assert bare.count(shown) >= 3
        assert "\x1b]" not in out


def test_a_plan_is_names_and_values_in_a_column():
    plan = {
        "engine": "factored",
        "queries": 20,
        "passes": {"fit": "2 F", "reading": "5 F"},
        "resumed": True,
        "notes": ["a", "b"],
        "hours": 1.23456,
    }
    lines = told(plan_panel, plan, terminal=False).splitlines()
    assert lines == [
        "Plan",
        "  engine     factored",
        "  queries    20",
        "  passes",
        "    fit      2 F",
        "    reading  5 F",
        "  resumed    yes",
        "  notes      a, b",
        "  hours      1.23",
    ]


def test_a_plan_on_a_terminal_has_a_frame():
    out = ANSI.sub("", told(plan_panel, {"engine": "forward"}, terminal=True))
    assert out.splitlines()[0].startswith("╭─ Plan")
    assert "│ engine  forward │" in out


def test_rows_of_any_kind_become_a_table():
    rows = [{"train": "a", "bm25": np.float32(2.5)}, {"train": "b", "leak": np.bool_(True)}]
    assert told(table, rows, terminal=False, title="T").splitlines() == [
        "T",
        "train  bm25  leak",
        "a      2.50  -",
        "b         -  yes",
    ]
    frame = pd.DataFrame({0: [1]}, index=pd.Index(["x"], name="id"))
    assert told(table, frame, terminal=False).splitlines() == ["id  0", "x   1"]
    assert told(table, rows, terminal=False, columns=["bm25"]).splitlines() == ["bm25", "2.50", "   -"]


@pytest.mark.parametrize("terminal", [True, False])
def test_no_rows_are_told_as_such(terminal):
    assert ANSI.sub("", told(table, [], terminal=terminal, title="T")).split("\n") == ["T", "no rows", ""]
    assert "no rows" in told(scores_table, FRAME.head(0), terminal=terminal)


def test_plain_lines_are_not_broken_at_the_width_of_the_console():
    out = told(table, [{"text": "word " * 15}], terminal=False, width=10)
    assert len(out.splitlines()) == 2


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_that_knows_only_ascii_gets_ascii(terminal):
    out = told(table, [{"größe": "日本", "n": 1}], terminal=terminal, title="é", encoding="ascii")
    assert "\\u65e5\\u672c" in out
    told(plan_panel, {"é": "ü"}, terminal=terminal, encoding="ascii")
    told(scores_table, FRAME, terminal=terminal, encoding="ascii")


def test_nothing_is_printed_elsewhere(capfd):
    told(scores_table, FRAME, terminal=True)
    told(plan_panel, {"a": 1}, terminal=True)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.41234, "+0.412"), (-0.041234, "−0.0412"), (12.345, "+12.3"), (1234.5, "+1,234"), (999_999.9, "+1.00e6"),
        (0.00099999, "+0.00100"), (0.0009, "+9.00e−4"), (-1e-7, "−1.00e−7"), (0, "0"), (-0.0, "0"),
        (None, "–"), (float("nan"), "–"), (float("-inf"), "−∞"), (np.float32(9.999), "+10.0"),
    ],
)  # fmt: skip
def test_numbers_have_three_significant_digits(value, text):
    assert number(value, signed=True) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "100 %"), (0.4149, "41 %"), (0.0996, "10 %"), (-0.042, "−4.2 %"), (0.0004, "0.04 %"), (-1e-9, "−<0.01 %"), (0, "0 %"),
     (None, "–"), (float("nan"), "–")],
)  # fmt: skip
def test_shares_are_in_per_cent(value, text):
    assert percent(value) == text


def test_cells_of_every_kind_have_a_text():
    assert [cell(x) for x in (True, np.bool_(False), 3, np.int64(3), 0.5, "a", None, pd.NA, pd.NaT)] == [
        "yes",
        "no",
        "3",
        "3",
        "0.500",
        "a",
        "–",
        "–",
        "–",
    ]


@pytest.mark.parametrize(
    "text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\n=1", "  =1", '=HYPERLINK("x")', "＝1", "|x"]
)
def test_a_formula_in_a_csv_cell_is_disarmed(text):
    assert for_csv(text) == "'" + text


@pytest.mark.parametrize("text", ["-1.5", "+3", "-1e-7", "a=b", "", "plain"])
def test_numbers_and_plain_text_in_a_csv_cell_stay(text):
    assert for_csv(text) == text


@pytest.mark.parametrize(
    ("text", "name"),
    [("../../etc/passwd", "etc-passwd"), ("a/b\\c:d", "a-b-c-d"), ("Größe 1.png", "Groe-1.png"), ("...", "_"),
     ("", "_"), ("NUL", "_NUL"), ("con.txt", "_con.txt"), ("\x00x\u202e", "x"), ("a" * 500, "a" * 80)],
)  # fmt: skip
def test_any_text_becomes_a_file_name_and_never_a_path(text, name):
    assert file_name(text) == name


def test_a_share_beyond_ten_times_is_told_so_and_why():
    frame = FRAME.assign(share=[25.57, -0.04, np.nan])
    out = told(scores_table, frame, terminal=False).splitlines()
    assert ">10×" in out[1]
    assert out[-1] == "an example whose gradient is far larger than the query's own can have a share above 100 %"
    assert "far larger" not in told(scores_table, FRAME, terminal=False)
    assert "<-10×" in told(scores_table, frame.assign(share=[-25.57, 0, 0]), terminal=True)
    assert "far larger" in told(table, [{"share": 3.0}], terminal=False)
