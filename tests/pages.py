"""Pages to test with, calm and hostile, and a strict reader of what came out."""

from html.parser import HTMLParser

import pandas as pd
from PIL import Image
from sklearn.datasets import load_digits

from forwardinf.view.pictures import picture
from forwardinf.view.report import Card, QuerySection, ReportPage, Table

VOID = {"meta", "img", "br", "hr", "input", "link"}
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "https://example.com/x.png",
    "url(http://example.com)",
    "a\u2028b\u2029c",
    "a\u202egpj.exe",
    "\x1b[31mred\x1b]0;own\x07\x00",
    "[red]markup[/red]",
    "half a pair \ud800",
    "&lt;already&gt;",
]


class Reader(HTMLParser):
    """Reads a page strictly: every tag that opens must close, in order."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice in <{tag}>"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text.append(data)


def read(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def words(page):
    return " ".join("".join(read(page).text).split())


def digits_page(**changes):
    images = load_digits().images
    cards = [
        Card(i, i + 1, 0.4 / (i + 1), 0.8 / (i + 1), 0.02, None, picture((images[i], 0)), "label 0") for i in range(3)
    ]
    against = [Card("x9", 1, -0.05, -0.1, 0.3, 0.01, "some text", "label 9")]
    section = QuerySection(
        "q7",
        picture(images[7]),
        "label 7",
        0.5,
        "nats",
        "ok",
        cards,
        against,
        ([1, 0, 50, 2], [-0.1, 0.0, 0.1, 0.3, 0.4]),
    )
    table = Table.from_frame(
        pd.DataFrame({"query": ["a"], "cosine": [0.98765], "leak": [True], "none": [None]}), "Leaks", "Why."
    )
    made = {
        "title": "Digits",
        "summary": [("Queries", 1)],
        "notes": ["A note."],
        "sections": [section],
        "tables": [table],
        "run_card": {"model": "blake3:12"},
    }
    return ReportPage(**{**made, **changes})


def hostile_page(text):
    card = Card(text, 1, 0.5, 0.5, 0.1, 0.1, text, text)
    pictured = Card(text, 1, -0.5, None, None, None, Image.new("L", (8, 8)), text)
    section = QuerySection(text, text, text, 1.0, text, text, [card], [pictured], ([1, 2], [-1, 0, 1]))
    other = QuerySection(text, Image.new("L", (8, 8)), status=text)
    table = Table(text, [text, text], [[text, 1.5], [Image.new("L", (8, 8)), text]], text)
    return ReportPage(text, [(text, text)], [text], [section, other, other, other], [table], {text: text})
