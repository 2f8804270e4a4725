"""The charts of a sweep's page, or None if there is nothing to draw. Each mark links to the table row of its trial."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from han.explain import charts
from han.explain.charts import Frame, Scale, Value, clip, safe, scale
from han.tune.trials import Sweep, shown

_WIDTH = 930
_GOOD = 0.25  # share of trials that count as good; a tenth of a small sweep would be one or two trials


def history(sweep: Sweep) -> str | None:
    """Values by trial, and the best value so far of finished trials."""
    known = [(trial, value) for trial in sweep.trials if (value := sweep.value(trial)) is not None]
    if not known:
        return None
    frame = Frame(
        x=scale([trial.number for trial in sweep.trials], whole=True, room=0.02),
        y=scale([value for _, value in known], percent=sweep.percent),
        width=_WIDTH,
        height=300,
    )
    better = max if sweep.study.directions[0] == StudyDirection.MAXIMIZE else min
    so_far: list[tuple[float, float]] = []
    best: float | None = None
    for trial, value in known:
        if trial.state == TrialState.COMPLETE:
            if best is not None:
                so_far.append(frame.at(trial.number, best))
            best = value if best is None else better(best, value)
            so_far.append(frame.at(trial.number, best))
    drawn = [frame.axes("trial", sweep.metrics[0]), charts.line(so_far, "so-far")]
    drawn += [sweep.link(trial, charts.dot(frame.at(trial.number, value), sweep.kind(trial))) for trial, value in known]
    base = frame.height - frame.bottom
    drawn += [
        sweep.link(trial, charts.cross((frame.at(trial.number, known[0][1])[0], base - 5), sweep.kind(trial)))
        for trial in sweep.trials
        if trial.state == TrialState.FAIL
    ]
    note = (
        "A full dot came to its end; a hollow one was stopped early and stands at its last epoch; a cross failed. The ring is the default."
    )
    return _note(f"{note} The line is the best so far.") + _wide(charts.svg(frame.width, frame.height, drawn))


def curves(sweep: Sweep) -> str | None:
    """Scores by epoch, and the epochs that early stopping saved."""
    curves = [
        (trial, places)
        for trial in sweep.trials
        if (places := [(step, value) for step, value in sorted(trial.intermediate_values.items()) if math.isfinite(value)])
    ]
    if not curves:
        return None
    steps = sorted({step for _, places in curves for step, _ in places})
    frame = Frame(
        x=Scale(choices=tuple(map(str, steps))) if len(steps) <= 12 else scale(steps, whole=True, room=0.02),
        y=scale([value for _, places in curves for _, value in places], percent=sweep.percent),
        width=_WIDTH,
        height=320,
    )
    drawn = [frame.axes("epoch", sweep.metrics[0])]
    for trial, places in sorted(curves, key=lambda curve: sweep.best is not None and curve[0].number == sweep.best.number):
        way = [frame.at(step, value) for step, value in places]
        kind = sweep.kind(trial)
        marks = charts.line(way, kind.replace("stopped", "faint")) + charts.line(way, "hit") + charts.dot(way[-1], kind, 3.5)
        drawn.append(sweep.link(trial, marks))
    most = sweep.study.user_attrs.get("epochs")
    over = [trial for trial in sweep.trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    ran = sum(trial.user_attrs.get("epochs", len(trial.intermediate_values)) for trial in over)
    note = "A line is a trial; one that ends in a hollow dot was stopped there."
    if most and over:
        full = most * len(over)
        note += f" {ran:,} of {full:,} epochs were run: {1 - ran / full:.0%} saved."
    return _note(note) + _wide(charts.svg(frame.width, frame.height, drawn))


def front(sweep: Sweep) -> str | None:
    """Both objectives, and the trials that no other trial beats in both."""
    if len(sweep.study.directions) < 2 or not sweep.ranked:
        return None
    front = sorted((trial for trial in sweep.study.best_trials if all(map(math.isfinite, trial.values))), key=lambda trial: trial.values[1])
    frame = Frame(
        x=scale(trial.values[1] for trial in sweep.ranked), y=scale(trial.values[0] for trial in sweep.ranked), width=_WIDTH, height=340
    )
    numbers = {trial.number for trial in front}
    way = [frame.at(trial.values[1], trial.values[0]) for trial in front]
    steps = [place for one, other in pairwise(way) for place in (one, (other[0], one[1]))] + way[-1:]
    drawn = [frame.axes(sweep.metrics[1], sweep.metrics[0]), charts.line(steps, "so-far")]
    for trial in sweep.ranked:
        place = frame.at(trial.values[1], trial.values[0])
        on_front = trial.number in numbers
        kind = f"t{trial.number}{' best' if on_front else ''}{' first' if trial.number == 0 else ''}"
        drawn.append(sweep.link(trial, charts.dot(place, kind, 5 if on_front else 4)))
        drawn += [charts.text(place[0] + 8, place[1] - 6, str(trial.number), "label")] if on_front else []
    note = "Blue, with its number: no other trial is better in both. The choice between those is yours. The ring is the default."
    return _note(note) + _wide(charts.svg(frame.width, frame.height, drawn))


def importances(sweep: Sweep) -> str | None:
    """How far the settings of the best quarter of the trials differ from those of all trials."""
    compared = _compared(sweep)
    shares = _importance(sweep, compared)
    if not shares:
        return None if not sweep.names else _note("Too few trials, or too alike, to say.")
    left, row = 210, 24
    drawn = []
    for place, (name, share) in enumerate(shares):
        width = (_WIDTH - left - 60) * share
        y = place * row + 4
        drawn += [charts.text(left - 10, y + 12, name, "name end"), charts.bar(left, y, _WIDTH - left - 60, 15, "track")]
        drawn += [charts.bar(left, y, width, 15, "part"), charts.text(_WIDTH - 52, y + 12, f"{share:.0%}", "tick")]
    note = f"How far a setting sets the best quarter of {len(compared):,} trials apart from all of them (PED-ANOVA)."
    if any(trial.state == TrialState.PRUNED for trial in sweep.trials):
        note += " One that was stopped early counts with what it had reached."
    if len(compared) < 50:
        note += " Of so few trials it is a hint, not a measurement."
    return _note(note) + _wide(charts.svg(_WIDTH, len(shares) * row + 6, drawn))


def _compared(sweep: Sweep) -> list[FrozenTrial]:
    """All trials with a value, as if it were their final one: trials that were stopped early are most of the worse ones."""
    known = [(trial, value) for trial in sweep.trials if (value := sweep.value(trial)) is not None]
    return [create_trial(value=value, params=trial.params, distributions=trial.distributions) for trial, value in known]


def _importance(sweep: Sweep, compared: list[FrozenTrial]) -> list[tuple[str, float]]:
    if len(compared) < 4 or not sweep.names:
        return []
    study = optuna.create_study(direction=sweep.study.directions[0])
    study.add_trials(compared)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        try:
            importances = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=_GOOD))
        except (ValueError, RuntimeError, UserWarning):  # no setting varies, or all trials are equally good
            return []
    return [(name, share) for name, share in sorted(importances.items(), key=lambda each: -each[1]) if math.isfinite(share)]


def parallel(sweep: Sweep) -> str | None:
    """One line for each trial through one axis for each setting."""
    if len(sweep.ranked) < 2 or not sweep.names:
        return None
    height, top, bottom, unused = 360, 44, 318, 346
    values = scale((trial.values[0] for trial in sweep.ranked), percent=sweep.percent, room=0)
    axes = [(sweep.metrics[0], values), *((name, _scale(sweep, name)) for name in sweep.names)]
    places = [64 + (_WIDTH - 134) * number / max(1, len(axes) - 1) for number in range(len(axes))]
    drawn, has_unused = [], False
    good = {trial.number for trial in sweep.ranked[: max(1, round(_GOOD * len(sweep.ranked)))]}
    for trial in reversed(sweep.ranked):
        own: list[Value] = [trial.values[0], *(trial.params.get(name) for name in sweep.names)]
        has_unused |= None in own
        way = [
            (x, unused if value is None else bottom - (bottom - top) * axis.place(_category(axis, value)))
            for x, (_, axis), value in zip(places, axes, own, strict=True)
        ]
        kind = f"t{trial.number} {'good' if trial.number in good else 'faint'}{' best' if trial is sweep.best else ''}"
        drawn.append(sweep.link(trial, charts.line(way, kind) + charts.line(way, "hit")))
    for number, (x, (name, axis)) in enumerate(zip(places, axes, strict=True)):
        group, _, last = name.rpartition("." if number else " ")
        drawn += [charts.line([(x, top), (x, bottom)], "axis"), charts.text(x, 14, group, "tick middle")]
        drawn.append(charts.text(x, 30, clip(last, 22), "name middle"))
        drawn += [charts.text(x - 5, bottom - (bottom - top) * place + 4, label, "tick end") for place, label in axis.ticks(6)]
    drawn += [charts.text(places[0] - 5, unused + 4, "not used", "tick end")] if has_unused else []
    note = "A line is a trial that came to its end: bold the best, blue the best quarter."
    note += " Below an axis: a setting that the trial did not have." if has_unused else ""
    return _note(note) + _wide(charts.svg(_WIDTH, height, drawn))


def slices(sweep: Sweep) -> str | None:
    """Values over each setting."""
    known = [(trial, value) for trial in sweep.trials if (value := sweep.value(trial)) is not None]
    if len(known) < 2 or not sweep.names:
        return None
    y = scale([value for _, value in known], percent=sweep.percent)
    drawn = []
    for name in sweep.names:
        axis = _scale(sweep, name)
        frame = Frame(x=axis, y=y, width=290, height=210, left=46)
        own = [(trial, frame.at(_category(axis, trial.params[name]), value)) for trial, value in known if name in trial.params]
        dots = [sweep.link(trial, charts.dot(place, sweep.kind(trial))) for trial, place in own]
        drawn.append(charts.svg(frame.width, frame.height, [frame.axes(clip(name, 44), "", x_ticks=4, y_ticks=4), *dots]))
    note = f"{safe(sweep.metrics[0])} over one setting, the others as they fell. Hollow: stopped early, at its last epoch."
    return f'<p class="note">{note}</p><div class="slices">{"".join(drawn)}</div>'


def _scale(sweep: Sweep, name: str) -> Scale:
    """The axis of a setting: all values that were tried."""
    having = [trial for trial in sweep.trials if name in trial.params]
    kind = having[0].distributions[name]
    values = [trial.params[name] for trial in having]
    if isinstance(kind, CategoricalDistribution) or not all(isinstance(value, int | float) for value in values):
        choices: Sequence[Any] = [*(kind.choices if isinstance(kind, CategoricalDistribution) else ()), *values]
        return Scale(choices=tuple(dict.fromkeys(shown(choice) for choice in choices)))
    whole = all(isinstance(value, int) for value in values)
    return scale(values, log=bool(getattr(kind, "log", False)), whole=whole)


def _category(axis: Scale, value: Value) -> Value:
    return shown(value) if axis.choices else value


def _note(text: str) -> str:
    return f'<p class="note">{safe(text)}</p>'


def _wide(drawn: str) -> str:
    return f'<div class="wide">{drawn}</div>'
