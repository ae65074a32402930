import io
import re
import sys
import time

import pytest

from forwardinf.core import progress as module
from forwardinf.core.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    """Time that passes only when told."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(module.time, "monotonic", made)
    return made


def test_true_shows_short_work_once_it_is_done(capsys, clock):
    with progress("reading", 4, True) as advance:
        advance(1)
        clock.now += 1
        advance(3)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "forwardinf: reading: 4/4, 1 s, eta 0 s\n"


@pytest.mark.parametrize("setting", [False, "auto"])
def test_short_work_says_nothing_unless_asked(capsys, clock, setting):
    with progress("reading", 4, setting) as advance:
        clock.now += 1.9
        advance(4)
    assert capsys.readouterr() == ("", "")


def test_false_says_nothing_however_long(capsys, clock):
    with progress("reading", 4, False) as advance:
        clock.now += 1000
        advance(4)
    assert capsys.readouterr() == ("", "")


def test_long_work_says_every_few_seconds_how_far_it_is_and_how_long_it_will_take(capsys, clock):
    with progress("reading", 100) as advance:
        for _ in range(100):
            clock.now += 1.0
            advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "forwardinf: reading: 5/100, 5 s, eta 95 s"
    assert lines[-1] == "forwardinf: reading: 100/100, 100 s, eta 0 s"
    assert len(lines) == 20
    done = [int(re.search(r"(\d+)/100", line)[1]) for line in lines]
    assert done == sorted(done)


def test_work_that_has_to_be_done_again_is_taken_back(capsys, clock):
    with progress("reading", 10, True) as advance:
        for step in (4, -4, 4):
            clock.now += 6
            advance(step)
        clock.now += 6
        advance(6)
    assert [line.split(": ")[2].split(",")[0] for line in capsys.readouterr().err.splitlines()] == [
        "4/10",
        "0/10",
        "4/10",
        "10/10",
    ]


@pytest.mark.parametrize("total", [0, -1])
def test_no_work_says_nothing(capsys, total):
    with progress("reading", total, True) as advance:
        advance(1)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch, capsys):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with progress("reading", 3, True) as advance:
        advance(1)
        time.sleep(0.15)
        advance(2)
    assert "reading" in screen.getvalue()
    assert capsys.readouterr().out == ""


def test_a_terminal_gets_no_bar_for_short_work(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with progress("reading", 3) as advance:
        advance(3)
    assert "reading" not in screen.getvalue()


def test_an_error_inside_passes_through(monkeypatch):
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        with pytest.raises(KeyError), progress("reading", 3, True):
            raise KeyError
