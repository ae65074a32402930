import re
from importlib.resources import files

import numpy as np
import pandas as pd
import pytest
from pages import digits_page, read, words

from forwardinf.core.errors import SettingError
from forwardinf.view.clean import share
from forwardinf.view.report import Card, QuerySection, ReportPage, Table, chart, render


def test_the_page_says_what_it_was_handed():
    told = words(render(digits_page()))
    for part in [
        "Digits",
        "Queries1",
        "A note.",
        "q7",
        "label 7",
        "rise 0.500 nats",
        "+0.400",
        "80 %",
        "−0.0500",
        "−10 %",
    ]:
        assert part in told, part
    for part in [
        "± 0.0100",
        "loss 0.0200",
        "x9",
        "some text",
        "Leaks",
        "Why.",
        "0.988",
        "yes",
        "–",
        "blake3:12",
        "All 53 scores",
    ]:
        assert part in told, part
    assert "Positive = proponent. It supports the prediction; removing it from the training set would hurt it." in told
    assert "Score in nats" in told


def test_an_empty_page_is_a_page():
    told = words(render(ReportPage("Nothing")))
    assert "Nothing" in told
    assert "proponent" not in told


def test_a_query_without_scores_says_why():
    told = words(render(ReportPage("t", sections=[QuerySection("q", status="skipped: its gradient is zero")])))
    assert "skipped: its gradient is zero" in told
    assert "No scores for this query." in told


def test_magnitudes_are_not_called_support():
    section = QuerySection("q", unit="nats", proponents=[Card("a", 1, 0.5)])
    told = words(render(ReportPage("t", sections=[section], signed=False)))
    assert "magnitudes only" in told
    assert "0.500" in told
    assert "+0.500" not in told
    assert "roponent" not in told


@pytest.mark.parametrize(
    ("kind", "part"), [("finite", "until it unlearns"), ("linear", "the rate at which"), ("probe", "how alike")]
)
def test_the_legend_says_what_kind_of_score_it_is(kind, part):
    assert part in words(render(digits_page(kind=kind)))


def fills(page):
    return [float(a["width"][:-1]) for _, a in read(page).tags if a.get("class") == "fill"]


def test_bars_are_as_long_as_the_scores_within_one_query():
    cards, against = [Card("a", 1, 0.4), Card("b", 2, 0.1)], [Card("c", 1, -0.2)]
    page = render(ReportPage("t", sections=[QuerySection("q", proponents=cards, opponents=against)]))
    assert fills(page) == [100, 25, 50]


def test_a_bar_leaves_room_for_its_uncertainty():
    page = render(ReportPage("t", sections=[QuerySection("q", proponents=[Card("a", 1, 0.3, uncertainty=0.1)])]))
    assert fills(page) == [75]
    whisker = next(a for _, a in read(page).tags if a.get("class") == "whisker")
    assert (whisker["x1"], whisker["x2"]) == ("50.00%", "100.00%")


def test_scores_that_are_zero_or_missing_draw_no_bar():
    nan = float("nan")
    page = render(
        ReportPage("t", sections=[QuerySection("q", proponents=[Card("a", 1, 0.0), Card("b", 2, nan, nan, nan, nan)])])
    )
    assert fills(page) == [0, 0]
    assert "whisker" not in re.sub("<style>.*?</style>", "", page, flags=re.DOTALL)


def test_a_histogram_is_drawn_where_its_numbers_are():
    counts, edges = np.histogram(np.array([-1.0, -1.0, 0.5, 3.0]), bins=4, range=(-1, 3))
    drawn = chart(
        QuerySection("q", proponents=[Card("a", 1, 3.0)], opponents=[Card("b", 1, -1.0)], histogram=(counts, edges)),
        height=60,
    )
    assert [bar.left for bar in drawn.bars] == ["0.00%", "25.00%", "75.00%"]
    assert [float(bar.height) for bar in drawn.bars] == pytest.approx(
        [60, 60 * np.log(2) / np.log(3), 60 * np.log(2) / np.log(3)], abs=0.1
    )
    assert drawn.marks == [("100.00%", "pro"), ("0.00%", "con")]
    assert drawn.zero == "25.00%"
    assert drawn.total == 4
    assert drawn.bars[0].label == "2 from −1.00 to 0"


@pytest.mark.parametrize("histogram", [([1, 2], [0, 1]), ([1], [0, np.inf]), ([-1], [0, 1]), ([np.nan], [0, 1])])
def test_a_histogram_that_is_none_is_refused(histogram):
    with pytest.raises(SettingError, match="histogram of query q"):
        chart(QuerySection("q", histogram=histogram))


@pytest.mark.parametrize("histogram", [None, ([], [0]), ([0, 0], [0, 1, 2]), ([3], [1, 1])])
def test_a_histogram_with_nothing_to_draw_is_left_out(histogram):
    assert chart(QuerySection("q", histogram=histogram)) is None


def test_a_table_takes_a_named_index_and_says_when_rows_are_left_out():
    frame = pd.DataFrame({"n": range(9)}, index=pd.Index([f"id{i}" for i in range(9)], name="train"))
    table = Table.from_frame(frame, "T", "All.", limit=4)
    assert table.columns == ["train", "n"]
    assert list(table.rows) == [("id0", 0), ("id1", 1), ("id2", 2), ("id3", 3)]
    assert table.explanation == "All. The first 4 of 9 rows."


def test_a_table_without_rows_says_so():
    assert "Nothing to show." in words(render(ReportPage("t", tables=[Table("T", ["a"], [])])))


def test_missing_values_of_every_library_are_a_dash():
    cells = [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT]
    told = words(render(ReportPage("t", tables=[Table("T", list("abcde"), [cells])])))
    assert told.count("–") == 5


def test_the_template_and_its_style_are_in_the_package():
    for name in ("report.html.j2", "report.css"):
        assert files("forwardinf.view").joinpath(name).is_file()


# -- shares ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "100 %"), (0.41, "41 %"), (2.5, "250 %"), (10.0, "1,000 %"), (25.57, ">10×"), (-25.57, "<−10×"), (1e30, ">10×"),
     (np.inf, ">10×"), (-np.inf, "<−10×"), (np.nan, "–"), (None, "–")],
)  # fmt: skip
def test_a_share_beyond_ten_times_the_querys_own_is_no_percentage(value, text):
    assert share(value) == text


def test_a_share_above_a_hundred_per_cent_is_explained_where_there_is_one():
    def told(value):
        cards = [Card("a", 1, 0.3, value), Card("b", 2, 0.2, 0.1)]
        return words(render(ReportPage("t", sections=[QuerySection("q", proponents=cards)])))

    why = "An example whose gradient is far larger than the query’s own can have a share above 100 %"
    assert ">10×" in told(25.57)
    assert "2,557" not in told(25.57)
    assert why in told(25.57)
    assert why in told(1.5)
    assert why not in told(1.0)
    assert why not in told(None)


def test_shares_in_a_table_are_told_as_everywhere():
    table = Table("T", ["train", "share", "score"], [[1, 25.57, 25.57], [2, 0.5, 0.5], [3, None, None]])
    told = words(render(ReportPage("t", tables=[table])))
    assert "1>10×25.6" in told
    assert "250 %0.500" in told


def test_a_bar_is_never_longer_than_its_track_whatever_the_share():
    page = render(
        ReportPage(
            "t", sections=[QuerySection("q", proponents=[Card("a", 1, 1e9, 1e9), Card("b", 2, float("inf"), 2.0)])]
        )
    )
    assert all(0 <= width <= 100 for width in fills(page))


# -- one scale ---------------------------------------------------------------------------------------------------------


def test_bars_compare_within_one_query_or_over_the_page():
    sections = [QuerySection("p", proponents=[Card("a", 1, 4.0)]), QuerySection("q", proponents=[Card("a", 1, 1.0)])]
    own, one = (render(ReportPage("t", sections=sections, one_scale=scale)) for scale in (False, True))
    assert fills(own) == [100, 100]
    assert fills(one) == [100, 25]
    assert "Bars compare within one query." in words(own)
    assert "Bars compare across the page." in words(one)


def test_a_page_speaks_of_what_was_asked():
    sections = [QuerySection(n, proponents=[Card("a", 1, 4.0)]) for n in range(4)]
    told = words(render(ReportPage("t", sections=sections, asked="question", about="answer", kind="compared")))
    assert "It supports the answer; removing it" in told
    assert "Questions" in told
    assert "Query" not in told
    assert "quer" not in told.lower().replace("queries", "")
