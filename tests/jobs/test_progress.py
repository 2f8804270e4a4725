from types import SimpleNamespace

import optuna
import pytest

from han.tune import sweep
from jobs.progress import Rows, Steps
from jobs.trials import Trials


class Clock:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def lines(capsys: pytest.CaptureFixture[str], steps: list[tuple[float, int, int]], *, live: bool = False) -> str:
    """The printed lines for steps of seconds, finished rows and total rows."""
    clock = Clock()
    report = Rows(live=live, clock=clock)
    for seconds, done, total in steps:
        clock.now += seconds
        report("scored", done, total)
    return capsys.readouterr().out


def test_a_log_shows_rate_and_remaining_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(capsys, [(0, 0, 3000), (2, 1000, 3000), (4, 3000, 3000)]) == (
        "scored 0 of 3,000 rows\nscored 1,000 of 3,000 rows, 500 a second, 4 s left\nscored 3,000 of 3,000 rows, 500 a second\n"
    )


def test_a_log_gets_at_most_one_line_every_two_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(capsys, [(0.5, step, 1000) for step in range(40)]).count("\n") == 10


def test_the_last_line_is_always_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(capsys, [(0, 0, 5), (0.1, 5, 5)]).endswith("scored 5 of 5 rows, 50 a second\n")


def test_an_unknown_total_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(capsys, [(0, 10, 0), (3, 3000, 0)]).splitlines()[-1] == "scored 3,000 rows, 1,000 a second"


@pytest.mark.parametrize("live", [False, True])
def test_quarantined_rows_are_shown_if_there_are_any(capsys: pytest.CaptureFixture[str], live: bool) -> None:
    clock = Clock()
    report = Rows(live=live, clock=clock)
    report("scored", 0, 9)
    clock.now += 3
    report("scored", 6, 9, quarantined=0)
    assert "quarantined" not in capsys.readouterr().out
    report("scored", 9, 9, quarantined=2)
    assert "9 rows, 2 quarantined" in capsys.readouterr().out


def test_a_terminal_updates_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(capsys, [(0, 0, 9), (1, 3, 9), (1, 9, 9)], live=True).count("\n") == 1


def test_a_sweep_is_a_table_of_trials_with_a_summary_line(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    study = optuna.create_study(direction="maximize")
    show = Trials(total=4, clock=lambda: now[0])
    first, second, third = (study.ask({"train.learning_rate": optuna.distributions.FloatDistribution(0.001, 0.001)}) for _ in range(3))
    show(study)
    history = [{"epoch": 1, "accuracy": 0.8, "log_loss": 0.4, "reviews_per_s": 10.0, "train_s": 6.0}]
    for trial, stopped in ((first, None), (second, "early"), (third, "no memory")):
        trial.report(0.8, 1)
        sweep.tell(study, trial, [] if stopped == "no memory" else history, folder="", stopped=stopped, workers=1)
    now[0] = 60.0
    show(study)
    show(study)  # nothing new, nothing said
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["trial", "state", "epochs", "accuracy", "log", "loss", "trained", "settings"]
    assert shown[1] == "  0 of 4 trials ended: 0 done, 0 stopped early, 0 failed; 3 running"
    assert shown[2].split() == ["0", "done", "1", "80.00%", "0.4000", "6", "s", "learning_rate=0.001"]
    assert shown[3].split() == ["1", "stopped", "early", "1", "80.00%", "0.4000", "6", "s", "learning_rate=0.001"]
    assert shown[4].split() == ["2", "failed", "0", "learning_rate=0.001", "no", "memory"]
    assert shown[5].split("ended: ")[1] == "1 done, 1 stopped early, 1 failed; 0 running; best 80.00% (trial 0); about 0 min left"
    assert len(shown) == 6


def test_whether_the_output_is_a_terminal_is_checked_when_a_reporter_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_terminal in (True, False):
        monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda answer=is_terminal: answer))
        assert (Rows().live, Steps().live) == (is_terminal, is_terminal)
