"""Progress of a sweep: a table, the same on a terminal and in a job's log."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import optuna

from han.tune import sweep

_EVERY_S = 30.0  # a trial takes minutes


@dataclass(slots=True, kw_only=True)
class Trials:
    """A reporter of a sweep: a row of a table for each trial that has ended, and a summary line at least every 30 s."""

    total: int
    clock: Callable[[], float] = time.monotonic
    _began: float | None = None
    _shown_at: float = -_EVERY_S
    _shown: set[int] | None = None  # numbers of the trials whose rows are printed
    _before: int = 0  # trials that had ended when this began

    def __call__(self, study: optuna.Study) -> None:
        now = self.clock()
        ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state in sweep.DONE]
        if self._shown is None:
            self._shown, self._began, self._before = set(), now, len(ended)
            print(f"{'trial':>5}  {'state':<13}{'epochs':>6}  {'accuracy':>8}  {'log loss':>8}  {'trained':>8}  settings")
        fresh = [trial for trial in ended if trial.number not in self._shown]
        for trial in fresh:
            print(_row(trial))
            self._shown.add(trial.number)
        if fresh or now - self._shown_at >= _EVERY_S:
            self._shown_at = now
            print(self._line(study, now), flush=True)

    def _line(self, study: optuna.Study, now: float) -> str:
        counts = sweep.counts(study)
        over = counts["done"] + counts["stopped"] + counts["failed"]
        line = (
            f"  {over} of {self.total} trials ended: {counts['done']} done, {counts['stopped']} stopped early, {counts['failed']} failed; "
        )
        line += f"{counts['running']} running"
        if counts["done"]:
            best = sweep.best(study)
            line += f"; best {best.user_attrs['accuracy']:.2%} (trial {best.number})"
        if self._began is not None and self._before < over < self.total:
            left_s = (now - self._began) / (over - self._before) * (self.total - over)
            line += f"; about {left_s / 60:,.0f} min left"
        return line


def _row(trial: optuna.trial.FrozenTrial) -> str:
    about = trial.user_attrs
    state = {"COMPLETE": "done", "PRUNED": "stopped early", "FAIL": "failed"}[trial.state.name]
    figures = f"{about['accuracy']:>8.2%}  {about['log_loss']:>8.4f}  {about['train_s']:>6,.0f} s" if "accuracy" in about else " " * 28
    settings = " ".join(f"{name.partition('.')[2] or name}={_short(value)}" for name, value in trial.params.items())
    reason = f"  {about['reason']}" if "reason" in about else ""
    return f"{trial.number:>5}  {state:<13}{about.get('epochs', 0):>6}  {figures}  {settings}{reason}"


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
