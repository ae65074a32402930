import io
import re
import sys
import time

import pytest

from forwardinf.core import progress as module
from forwardinf.core.progress import progress, spoken, stages


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


# -- a call of many parts ----------------------------------------------------------------------------------------------


def told(err):
    return [line.removeprefix("forwardinf: ") for line in err.splitlines()]


def test_the_parts_of_a_call_have_one_time_left_for_all_of_them(capsys, clock):
    """Two passes at 1 s an example: what is left counts the second pass too, at the speed of the first."""
    with stages("leaks") as whole:
        whole.expect("features", 10)
        whole.expect("responses", 40)  # four times the work for each example
        with progress("features", 10) as advance:
            for _ in range(10):
                clock.now += 1.0
                advance(1)
        with progress("responses", 10) as advance:
            for _ in range(10):
                clock.now += 4.0
                advance(1)
    lines = told(capsys.readouterr().err)
    assert lines[0] == "leaks: features: 5/10, 10 % in all, 5 s, eta 45 s"
    assert lines[1] == "leaks: features: 10/10, 20 % in all, 10 s, eta 40 s"
    assert lines[-2:] == ["leaks: responses: 10/10, 100 % in all, 50 s, eta 0 s", "leaks: done, 50 s"]


def test_a_part_that_goes_at_another_speed_is_expected_to_go_on_so(capsys, clock):
    with stages("leaks") as whole:
        whole.expect("features", 10)
        whole.expect("responses", 10)
        with progress("features", 10) as advance:
            clock.now += 10
            advance(10)
        with progress("responses", 10) as advance:
            clock.now += 30
            advance(5)
    assert "leaks: responses: 5/10, 57 % in all, 40 s, eta 30 s" in told(capsys.readouterr().err)


def test_no_time_is_stated_before_anything_like_it_was_measured(capsys, clock):
    with stages("trace") as whole:
        with progress("hashing", 10) as advance:  # nobody has said yet what is to come
            clock.now += 6
            advance(5)
        whole.expect("hidden states", 10)
        whole.expect("BM25", 10, "texts")
        with progress("hidden states", 10) as advance:
            clock.now += 6
            advance(5)  # texts have not been measured
        with progress("BM25", 10) as advance:
            clock.now += 6
            advance(5)
    lines = told(capsys.readouterr().err)
    assert lines[:3] == [
        "trace: hashing: 5/10, 6 s",
        "trace: hidden states: 5/10, 12 s",
        "trace: BM25: 5/10, 75 % in all, 18 s, eta 6 s",
    ]


def test_arithmetic_is_said_when_it_begins_and_its_time_is_this_machines(capsys, clock, monkeypatch):
    monkeypatch.setattr(module, "_seconds_of_a_multiplication", lambda: 1e-9)
    with stages("mislabeled") as whole:
        whole.expect("features", 10)
        whole.expect("eigenvectors", 30e9, module.ARITHMETIC)
        with progress("features", 10) as advance:
            clock.now += 10
            advance(10)
        with progress("eigenvectors", 1) as advance:
            assert round(whole.left(), 6) == 30
            clock.now += 20
            assert round(whole.left(), 6) == 10
            advance(1)
    lines = told(capsys.readouterr().err)
    assert lines[0] == "mislabeled: features: 10/10, 25 % in all, 10 s, eta 30 s"
    assert lines[1] == "mislabeled: eigenvectors, 25 % in all, 10 s, eta 30 s", "said before it, as it will be silent"


def test_the_measured_time_of_a_multiplication_is_one_of_this_world():
    assert 1e-13 < module._seconds_of_a_multiplication() < 1e-6


def test_what_was_kept_by_an_earlier_call_costs_no_time(clock):
    with stages("self-influence", False) as whole:
        whole.expect("fitting", 1000)
        whole.expect("self-influence", 10)
        with progress("self-influence", 10) as advance:
            clock.now += 4
            advance(4)
            assert whole.left() == 6


def test_a_call_within_a_call_is_a_part_of_it(capsys, clock):
    with stages("memorized", True) as whole:
        whole.expect("fitting", 10)
        whole.expect("self-influence", 10)
        with stages("self-influence", True) as inner:
            inner.expect("something", 1000)
            with progress("fitting gfim", 10, True) as advance:
                clock.now += 10
                advance(10)
            with progress("self-influence", 10, True) as advance:
                with progress("a detail", 2, True) as more:
                    clock.now += 10
                    more(1)
                advance(10)
    lines = told(capsys.readouterr().err)
    assert lines == [
        "memorized: fitting gfim: 10/10, 50 % in all, 10 s, eta 10 s",
        "memorized: a detail: 1/2, 100 % in all, 20 s, eta 0 s",
        "memorized: done, 20 s",
    ]


@pytest.mark.parametrize("setting", [False, "auto"])
def test_a_short_or_silenced_call_says_nothing(capsys, clock, setting):
    with stages("leaks", setting) as whole:
        whole.expect("features", 4)
        with progress("features", 4, setting) as advance:
            clock.now += 1.9
            advance(4)
    assert capsys.readouterr() == ("", "")


def test_after_an_error_nothing_is_called_done_and_the_next_call_is_its_own(capsys, clock):
    def broken():
        with stages("leaks", True) as whole:
            whole.expect("features", 4)
            with progress("features", 4, True) as advance:
                clock.now += 5
                advance(1)
                raise KeyError

    with pytest.raises(KeyError):
        broken()
    with progress("reading", 2, True) as advance:
        advance(2)
    assert told(capsys.readouterr().err) == [
        "leaks: features: 1/4, 25 % in all, 5 s, eta 15 s",
        "reading: 2/2, 0 s, eta 0 s",
    ]


def test_a_terminal_gets_one_bar_for_the_whole(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with stages("leaks", True) as whole:
        whole.expect("features", 3)
        whole.expect("[bold]", 3)
        for title in ("features", "[bold]"):
            with progress(title, 3, True) as advance:
                advance(1)
                time.sleep(0.15)
                advance(2)
    shown = screen.getvalue()
    assert "leaks: features: 1/3" in shown
    assert "leaks: [bold]: 1/3" in shown
    assert "eta" in shown


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (119, "119 s"), (121, "2 min"), (5399, "90 min"), (9000, "2.5 h")]
)
def test_times_are_told_as_people_say_them(seconds, words):
    assert spoken(seconds) == words
