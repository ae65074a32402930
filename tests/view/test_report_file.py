import base64
import hashlib
import html
import re
import stat

import pytest
from pages import HOSTILE, digits_page, hostile_page, read

from forwardinf.core.errors import FileError, SettingError
from forwardinf.view.report import QuerySection, ReportPage, render, write_report


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_stays_text_wherever_it_stands(text):
    calm, wild = read(render(hostile_page("calm"))), read(render(hostile_page(text)))
    assert [tag for tag, _ in wild.tags] == [tag for tag, _ in calm.tags]
    assert [list(attrs) for _, attrs in wild.tags] == [list(attrs) for _, attrs in calm.tags]
    same = ("src", "href", "class", "id", "content", "width", "x1", "x2", "y1", "y2")
    for (_, a), (_, b) in zip(wild.tags, calm.tags, strict=True):
        assert all(a[name] == b[name] for name in a if name in same)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_what_cannot_be_seen_is_shown_by_its_escape(text):
    page = render(hostile_page(text))
    page.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", page)
    if "\u202e" in text:
        assert "a\\u202egpj.exe" in page
    if "\x1b" in text:
        assert "\\x1b[31mred" in page
    if "\u2028" in text:
        assert "a\\u2028b\\u2029c" in page


def test_other_scripts_emoji_and_line_breaks_are_left_alone():
    text = "می‌خواهم\n👩‍🔬 日本語 שלום"
    assert html.escape(text) in render(ReportPage("t", sections=[QuerySection("q", text)]))


def test_the_page_loads_nothing_and_runs_nothing():
    page = render(digits_page())
    bare = re.sub(r"data:image/png;base64,[\w+/=]+", "", page)
    assert bare != page
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script|javascript:|\son[a-z]+=|\sstyle=", bare)
    for tag, attrs in read(page).tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "form", "base", "a"}
        assert attrs.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")


def test_links_stay_within_the_page_and_find_their_query():
    tags = read(render(hostile_page("x"))).tags
    targets = [attrs["href"] for tag, attrs in tags if tag == "a"]
    assert targets == ["#q1", "#q2", "#q3", "#q4"]
    assert {target[1:] for target in targets} == {attrs["id"] for _, attrs in tags if "id" in attrs}


def test_the_policy_allows_this_style_sheet_and_pictures_and_nothing_else():
    page = render(digits_page())
    policy = next(a["content"] for t, a in read(page).tags if a.get("http-equiv") == "Content-Security-Policy")
    style = re.search("<style>(.*?)</style>", page, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert page.index("Content-Security-Policy") < page.index("<style>")


def test_equal_pages_are_equal_files(tmp_path):
    first, second = (write_report(tmp_path / name, digits_page()) for name in ("a.html", "b.html"))
    assert first.read_bytes() == second.read_bytes()


def test_the_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    target = write_report(tmp_path / "new" / "report.html", ReportPage("first"))
    assert "first" in target.read_text(encoding="utf-8")
    assert stat.S_IMODE(target.stat().st_mode) & stat.S_IRUSR
    broken = ReportPage("second", sections=[QuerySection("q", histogram=([1], [0]))])
    with pytest.raises(SettingError, match="one edge more than counts"):
        write_report(target, broken)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(FileError, match="No space left"):
        write_report(target, ReportPage("third"))
    assert "first" in target.read_text(encoding="utf-8")
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(FileError, match="got a folder"):
        write_report(tmp_path, ReportPage("t"))
