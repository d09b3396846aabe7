import io
import sys

import pytest

from data import progress
from data.progress import ProgressBar


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_progress_bar__lines_without_a_terminal(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("decode", 100) as bar:
        for _ in range(5):
            clock.now += 4
            bar.advance(10, note="2 failed")
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "decode: 30/100, 2.5 images/s, 28 s left 2 failed",  # the first report after 10 s
        "decode: 50/100, 2.5 images/s, 20 s left",  # and where it ended
    ]
    assert captured.out == ""
    assert bar.done == 50


def test_progress_bar__short_work_is_silent(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("decode", 2) as bar:
        clock.now += 1
        bar.advance()
    with ProgressBar("nothing", 0):
        clock.now += 60
    assert capsys.readouterr().err == ""


def test_progress_bar__a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    with ProgressBar("decode", 4, unit="files") as bar:
        bar.advance(3)
        bar.advance(note="1 failed")
    text = terminal.getvalue()
    assert "decode" in text
    assert "4/4" in text
    assert "files/s 1 failed" in text
