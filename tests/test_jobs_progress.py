import pytest

from jobs.progress import Rows


class Clock:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def lines(capsys: pytest.CaptureFixture[str], steps: list[tuple[float, int, int]], *, live: bool = False) -> str:
    """What is printed when, after so many seconds each, so many rows of so many are done."""
    clock = Clock()
    report = Rows(live=live, clock=clock)
    for seconds, done, total in steps:
        clock.now += seconds
        report("scored", done, total)
    return capsys.readouterr().out


def test_a_log_gets_rate_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(capsys, [(0, 0, 3000), (2, 1000, 3000), (4, 3000, 3000)]) == (
        "scored 0 of 3,000 rows\nscored 1,000 of 3,000 rows, 500 a second, 4 s left\nscored 3,000 of 3,000 rows, 500 a second\n"
    )


def test_a_log_gets_no_more_than_a_line_every_two_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(capsys, [(0.5, step, 1000) for step in range(40)]).count("\n") == 10


def test_the_last_line_is_never_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(capsys, [(0, 0, 5), (0.1, 5, 5)]).endswith("scored 5 of 5 rows, 50 a second\n")


def test_an_unknown_total_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(capsys, [(0, 10, 0), (3, 3000, 0)]).splitlines()[-1] == "scored 3,000 rows, 1,000 a second"


def test_a_terminal_keeps_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(capsys, [(0, 0, 9), (1, 3, 9), (1, 9, 9)], live=True).count("\n") == 1
