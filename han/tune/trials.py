"""The trials of a study as its page shows them: ranked, with readable values and the classes of their marks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from han.explain import charts
from han.explain.charts import Value

STATES = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "stopped early",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A study with all that the parts of the page need."""

    study: optuna.Study
    trials: list[FrozenTrial]
    metrics: list[str]  # one for each objective
    names: list[str]  # names of parameters, in order of first use
    ranked: list[FrozenTrial]  # finished trials, the best first

    @property
    def best(self) -> FrozenTrial | None:
        return self.ranked[0] if self.ranked else None

    @property
    def percent(self) -> bool:
        return "accuracy" in self.metrics[0]

    def value(self, trial: FrozenTrial) -> float | None:
        """The value of the first objective; for a trial that was stopped early, the last reported one."""
        if trial.state == TrialState.COMPLETE:
            reached = trial.values[0]
        elif trial.state == TrialState.PRUNED and trial.intermediate_values:
            reached = trial.intermediate_values[max(trial.intermediate_values)]
        else:
            return None
        return reached if math.isfinite(reached) else None

    def formatted(self, value: float | None, objective: int = 0) -> str:
        if value is None:
            return "-"
        return f"{value:.2%}" if "accuracy" in self.metrics[objective] else f"{value:,.4g}"

    def kind(self, trial: FrozenTrial) -> str:
        """Classes of a trial's marks."""
        best = " best" if self.best and trial.number == self.best.number else ""
        state = {TrialState.PRUNED: " stopped", TrialState.FAIL: " failed"}.get(trial.state, "")
        return f"t{trial.number}{state}{best}{' first' if trial.number == 0 else ''}"

    def link(self, trial: FrozenTrial, drawn: str) -> str:
        settings = ", ".join(f"{name} {shown(value)}" for name, value in trial.params.items())
        title = f"trial {trial.number}, {STATES[trial.state]}: {self.formatted(self.value(trial))}"
        return charts.link(f"trial-{trial.number}", f"{title}; {settings}" if settings else title, drawn)


def read(study: optuna.Study) -> Sweep:
    trials = study.get_trials(deepcopy=False)
    names = study.user_attrs.get("metrics") or [study.user_attrs.get("metric", "value")]
    metrics = [*map(str, names), *(f"value {place}" for place in range(len(names), len(study.directions)))]
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE and all(map(math.isfinite, trial.values))]
    sign = -1 if study.directions[0] == StudyDirection.MAXIMIZE else 1

    def rank(trial: FrozenTrial) -> tuple[Any, ...]:
        return sign * trial.values[0], *trial.values[1:], trial.user_attrs.get("log_loss", 0.0), trial.number

    return Sweep(
        study=study,
        trials=trials,
        metrics=metrics,
        names=list(dict.fromkeys(name for trial in trials for name in trial.params)),
        ranked=sorted(complete, key=rank),
    )


def differences(trial: FrozenTrial, first: FrozenTrial | None) -> list[tuple[str, Value, Value]]:
    """Name, value and default of each setting that differs; None for a setting that does not apply."""
    own, default = trial.params, first.params if first is not None else {}
    names = dict.fromkeys([*own, *default])
    return [(name, own.get(name), default.get(name)) for name in names if own.get(name) != default.get(name)]


def shown(value: Value) -> str:
    if value is None:
        return "not used"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
