"""How far a run is, off a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import TimeRemainingColumn

from trainer import terminal
from worker.terminal import safe


class HandClock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> HandClock:
    made = HandClock()
    monkeypatch.setattr(terminal, "_clock", made)
    return made


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    text = io.StringIO()
    monkeypatch.setattr(terminal, "console", Console(file=text, width=120))
    return text


def test_quick_steps_say_nothing(clock: HandClock, lines: io.StringIO) -> None:
    with terminal.steps() as tell:
        for done in range(11):
            clock.now += 0.4
            tell("building", done, 10)
    assert lines.getvalue().strip() == ""


def test_a_slow_step_says_how_far_it_is_at_each_tenth(clock: HandClock, lines: io.StringIO) -> None:
    with terminal.steps() as tell:
        for done in range(1, 21):
            clock.now += 6
            tell(f"training, loss {1 / done:.3f}", done, 20)
    said = [line.split(", ")[-1] for line in lines.getvalue().splitlines() if line.strip()]
    assert said == [f"{done} of 20" for done in range(2, 21, 2)]


def test_a_very_slow_step_is_heard_of_every_thirty_seconds(clock: HandClock, lines: io.StringIO) -> None:
    with terminal.steps() as tell:
        for done in range(9):
            clock.now += 11
            tell("classifying", done, 1000)
    assert [line.split(", ")[1] for line in lines.getvalue().splitlines() if line.strip()] == ["2 of 1000", "5 of 1000", "8 of 1000"]


def test_a_long_step_says_how_long_it_will_take_by_what_it_has_done_itself(clock: HandClock, lines: io.StringIO) -> None:
    with terminal.steps() as tell:
        tell("loading", 5, 5)
        for done in (400, 420, 440):
            clock.now += 60
            tell("training, loss 1.2", done, 1000)
    (first, second) = (line.split(", ", 2)[2] for line in lines.getvalue().splitlines() if "left" in line)
    assert (first, second) == ("420 of 1000, about 29 minutes left", "440 of 1000, about 28 minutes left")


def test_a_very_long_step_counts_hours(clock: HandClock, lines: io.StringIO) -> None:
    with terminal.steps() as tell:
        for done in range(3):
            tell("training", done, 1000)
            clock.now += 40
    assert lines.getvalue().strip().endswith("2 of 1000, about 11 hours left")


def test_a_bar_shows_the_time_that_is_left() -> None:
    assert any(isinstance(column, TimeRemainingColumn) for column in terminal.progress().columns)


def test_a_step_of_unknown_length_is_named_when_it_begins(clock: HandClock, lines: io.StringIO) -> None:
    with terminal.steps() as tell:
        tell("splitting", 0, None)
        tell("loading torch", 0, None)
    assert [line.strip() for line in lines.getvalue().splitlines() if line.strip()] == ["splitting", "loading torch"]


def test_a_step_of_unknown_length_shows_no_total_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    bars = terminal.progress()
    monkeypatch.setattr(terminal, "progress", lambda: bars)
    with terminal.steps() as tell:
        tell("building", 3, 10)
        tell("publishing", 0, None)
        (task,) = bars.tasks
        assert (task.description, task.completed, task.total) == ("publishing", 0, None)


def test_what_would_move_the_cursor_or_set_the_clipboard_is_not_printed() -> None:
    assert safe("pool\x1b]52;c;aGk=\x07 \x9b2J\n") == "pool\ufffd]52;c;aGk=\ufffd \ufffd2J\ufffd"
    assert safe("Wärmepumpe: 30\u202f% 👩\u200d🔧\t!") == "Wärmepumpe: 30\u202f% 👩\u200d🔧 !"
