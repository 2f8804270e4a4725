"""A sweep as one HTML page that can be shown to others: no script, no second file, no other host.

Everything on it is read from the Optuna study; what a mark is of is a link to that trial's row of the table, which has its numbers.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from han import charts
from han.charts import Frame, Scale, Value, clip, safe, scale

_STATES = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "stopped early",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
_WIDTH = 930
_GOOD = 0.25  # share of the trials that importances and bold lines call good: a tenth of the few that a sweep has is one or two
_MANY = 200  # trials up to which pointing at one shows it everywhere: a rule of CSS each


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sweep:
    """A study, and what all parts of the page ask of it."""

    study: optuna.Study
    trials: list[FrozenTrial]
    metrics: list[str]  # one for each objective
    names: list[str]  # of parameters, in the order in which they were first drawn
    ranked: list[FrozenTrial]  # those that came to their end, the best first

    @property
    def best(self) -> FrozenTrial | None:
        return self.ranked[0] if self.ranked else None

    @property
    def percent(self) -> bool:
        return "accuracy" in self.metrics[0]

    def value(self, trial: FrozenTrial) -> float | None:
        """Of the first objective; of a trial stopped early what it had reached."""
        if trial.state == TrialState.COMPLETE:
            found = trial.values[0]
        elif trial.state == TrialState.PRUNED and trial.intermediate_values:
            found = trial.intermediate_values[max(trial.intermediate_values)]
        else:
            return None
        return found if math.isfinite(found) else None

    def told(self, value: float | None, objective: int = 0) -> str:
        if value is None:
            return "-"
        return f"{value:.2%}" if "accuracy" in self.metrics[objective] else f"{value:,.4g}"

    def kind(self, trial: FrozenTrial) -> str:
        """Classes of a trial's marks."""
        best = " best" if self.best and trial.number == self.best.number else ""
        state = {TrialState.PRUNED: " stopped", TrialState.FAIL: " failed"}.get(trial.state, "")
        return f"t{trial.number}{state}{best}{' first' if trial.number == 0 else ''}"

    def link(self, trial: FrozenTrial, drawn: str) -> str:
        settings = ", ".join(f"{name} {_told(value)}" for name, value in trial.params.items())
        told = f"trial {trial.number}, {_STATES[trial.state]}: {self.told(self.value(trial))}"
        return charts.link(f"trial-{trial.number}", f"{told}; {settings}" if settings else told, drawn)


def report(study: optuna.Study) -> str:
    """The page. A study of any size will do, also one without a trial that came to its end."""
    sweep = _read(study)
    sections = [
        _section("History", _history(sweep)),
        _section("Early stopping", _curves(sweep)),
        _section("Development against cost", _front(sweep)),
        _section("Which settings mattered", _importances(sweep)),
        _section("All settings of a trial at once", _parallel(sweep)),
        _section("Setting by setting", _slices(sweep)),
        _section("Trials", _table(sweep), "trials"),
    ]
    style = _style(sweep)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    name = safe(study.study_name)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Sweep {name}</title>
<style>{style}</style>
</head>
<body class="han-page">
<main class="sweep han">
{_head(sweep)}
{"".join(sections)}</main>
</body>
</html>
"""


def _read(study: optuna.Study) -> _Sweep:
    trials = study.get_trials(deepcopy=False)
    given = study.user_attrs.get("metrics") or [study.user_attrs.get("metric", "value")]
    metrics = [*map(str, given), *(f"value {place}" for place in range(len(given), len(study.directions)))]
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE and all(map(math.isfinite, trial.values))]
    sign = -1 if study.directions[0] == StudyDirection.MAXIMIZE else 1

    def rank(trial: FrozenTrial) -> tuple[Any, ...]:
        return sign * trial.values[0], *trial.values[1:], trial.user_attrs.get("log_loss", 0.0), trial.number

    return _Sweep(
        study=study,
        trials=trials,
        metrics=metrics,
        names=list(dict.fromkeys(name for trial in trials for name in trial.params)),
        ranked=sorted(complete, key=rank),
    )


def _style(sweep: _Sweep) -> str:
    own = files("han")
    shared = "".join(own.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "sweep.css"))
    numbers = [trial.number for trial in sweep.trials] if len(sweep.trials) <= _MANY else []
    return shared + "\n".join(
        f"main:has(.t{number}:hover) .t{number}, main:has(#trial-{number}:target) .t{number} {{ --mark: var(--hot) }}" for number in numbers
    )


def _section(title: str, drawn: str | None, kind: str = "") -> str:
    return "" if drawn is None else f'<section class="{kind}"><h2>{title}</h2>{drawn}</section>\n'


def _head(sweep: _Sweep) -> str:
    """What was tried, what is best, and why not to believe it at once."""
    number = {state: sum(trial.state == state for trial in sweep.trials) for state in _STATES}
    told = ", ".join(f"{number[state]:,} {name}" for state, name in _STATES.items() if number[state])
    facts = f"{len(sweep.trials):,} trial{'s' * (len(sweep.trials) != 1)}" + (f": {told}" if told else "")
    train_s = sum(trial.user_attrs.get("train_s", 0.0) for trial in sweep.trials)
    facts += f" · {train_s / 60:,.1f} minutes of training" if train_s else ""
    started = min((trial.datetime_start for trial in sweep.trials if trial.datetime_start), default=None)
    facts += f" · {started:%Y-%m-%d}" if started else ""
    head = f'<h1>Sweep <bdi>{safe(sweep.study.study_name)}</bdi></h1><p class="facts">{facts}</p>'
    if sweep.best is None:
        return head + '<p class="verdict">No trial came to its end</p><p class="note">The table says of each why.</p>'
    best, first = sweep.best, next((trial for trial in sweep.trials if trial.number == 0), None)
    verdict = f'<p class="verdict">{safe(sweep.metrics[0])} {sweep.told(best.values[0])}'
    verdict += f' <span class="number">trial <a href="#trial-{best.number}">{best.number}</a></span></p>'
    if first is not None and first.number != best.number and sweep.value(first) is not None:
        verdict += f'<p class="note">The default, trial <a href="#trial-0">0</a>, reached {sweep.told(sweep.value(first))}.</p>'
    return head + verdict + _caveat(sweep, best) + _changes(best, first)


def _caveat(sweep: _Sweep, best: FrozenTrial) -> str:
    tried = len(sweep.ranked) + sum(trial.state == TrialState.PRUNED for trial in sweep.trials)
    told = (
        f"<strong>The best of {tried:,} is an optimist.</strong> The development split chose the trial, and within it the epoch, so some "
    )
    told += "of the figure is luck that other reviews will not repeat. "
    again = sweep.study.user_attrs.get("retrained")
    if isinstance(again, dict) and again.get("scores"):
        scores = again["scores"]
        each = ", ".join(sweep.told(score) for score in scores)
        points = f"{100 * again['spread']:.2f} points" if sweep.percent else f"{again['spread']:.4g}"
        told += f"<strong>Trained again over {len(scores)} other seed{'s' * (len(scores) != 1)} its settings reached "
        told += f"{sweep.told(again['mean'])} on average, standard deviation {points}</strong> ({each}): "
        told += (
            f"take that for what they are worth, not the {sweep.told(best.values[0])}. The seeds share the choice of settings, so it is "
        )
        told += "still somewhat high. "
    else:
        told += "Trained over other seeds (<code>--retrain 3</code>) the settings show what they are worth. "
    return f'<p class="caveat">{told}No test split was opened: a test figure is to be had from jobs.evaluate, once, at the end.</p>'


def _changes(best: FrozenTrial, first: FrozenTrial | None) -> str:
    """The best trial's settings beside the default's."""
    changed = _differences(best, first)
    if first is None or best.number == 0 or not changed:
        return '<p class="note">No setting that was tried beats the default.</p>' if best.number == 0 else ""
    rows = "".join(
        f'<dt><code>{safe(name)}</code></dt><dd>{safe(_told(value))}</dd><dd class="was">default: {safe(_told(was))}</dd>'
        for name, value, was in changed
    )
    return f"<dl>{rows}</dl>"


def _history(sweep: _Sweep) -> str | None:
    """Values by trial, and the best so far of those that came to their end."""
    known = [(trial, value) for trial in sweep.trials if (value := sweep.value(trial)) is not None]
    if not known:
        return None
    frame = Frame(
        x=scale([trial.number for trial in sweep.trials], room=0.02),
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


def _curves(sweep: _Sweep) -> str | None:
    """The score by epoch, and what stopping early saved."""
    curves = [
        (trial, places)
        for trial in sweep.trials
        if (places := [(step, value) for step, value in sorted(trial.intermediate_values.items()) if math.isfinite(value)])
    ]
    if not curves:
        return None
    steps = sorted({step for _, places in curves for step, _ in places})
    frame = Frame(
        x=Scale(choices=tuple(map(str, steps))) if len(steps) <= 12 else scale(steps, room=0.02),
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


def _front(sweep: _Sweep) -> str | None:
    """Both objectives, and the trials that no other beats in both."""
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


def _importances(sweep: _Sweep) -> str | None:
    """How far the settings of the best quarter differ from those of all."""
    found = _importance(sweep)
    if not found:
        return None if not sweep.names else _note(f"{len(sweep.ranked):,} trials that came to their end are too few to say.")
    left, row = 210, 24
    drawn = []
    for place, (name, share) in enumerate(found):
        width = (_WIDTH - left - 60) * share
        y = place * row + 4
        drawn += [charts.text(left - 10, y + 12, name, "name end"), charts.bar(left, y, _WIDTH - left - 60, 15, "track")]
        drawn += [charts.bar(left, y, width, 15, "share"), charts.text(_WIDTH - 52, y + 12, f"{share:.0%}", "tick")]
    note = f"How far a setting sets the best quarter of {len(sweep.ranked):,} trials apart from all of them (PED-ANOVA)."
    if len(sweep.ranked) < 50:
        note += " Of so few trials it is a hint, not a measurement."
    return _note(note) + _wide(charts.svg(_WIDTH, len(found) * row + 6, drawn))


def _importance(sweep: _Sweep) -> list[tuple[str, float]]:
    if len(sweep.ranked) < 4 or not sweep.names:
        return []
    try:
        found = get_param_importances(sweep.study, evaluator=PedAnovaImportanceEvaluator(target_quantile=_GOOD))
    except (ValueError, RuntimeError):  # no setting that varies
        return []
    return [(name, share) for name, share in sorted(found.items(), key=lambda each: -each[1]) if math.isfinite(share)]


def _parallel(sweep: _Sweep) -> str | None:
    """One line a trial through an axis for each setting."""
    if not sweep.ranked or not sweep.names:
        return None
    height, top, bottom, unused = 360, 44, 318, 346
    values = scale((trial.values[0] for trial in sweep.ranked), percent=sweep.percent, room=0)
    axes = [(sweep.metrics[0], values), *((name, _scale(sweep, name)) for name in sweep.names)]
    places = [60 + (_WIDTH - 130) * number / max(1, len(axes) - 1) for number in range(len(axes))]
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
        group, _, last = name.rpartition(".") if number else ("", "", name)
        drawn += [charts.line([(x, top), (x, bottom)], "axis"), charts.text(x, 14, group, "tick middle")]
        drawn.append(charts.text(x, 30, clip(last, 22), "name middle"))
        drawn += [charts.text(x - 5, bottom - (bottom - top) * place + 4, told, "tick end") for place, told in axis.ticks(6)]
    drawn += [charts.text(places[0] - 5, unused + 4, "not used", "tick end")] if has_unused else []
    note = "A line is a trial that came to its end: bold the best, blue the best quarter."
    note += " Below an axis: a setting that the trial did not have." if has_unused else ""
    return _note(note) + _wide(charts.svg(_WIDTH, height, drawn))


def _slices(sweep: _Sweep) -> str | None:
    """The value over each setting by itself."""
    known = [(trial, value) for trial in sweep.trials if (value := sweep.value(trial)) is not None]
    if not known or not sweep.names:
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


def _table(sweep: _Sweep) -> str:
    """All trials, the best first."""
    places = {trial.number: place for place, trial in enumerate(sweep.ranked)}
    order = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING, TrialState.WAITING, TrialState.FAIL]
    trials = sorted(sweep.trials, key=lambda trial: (order.index(trial.state), places.get(trial.number, len(places)), trial.number))
    first = next((trial for trial in sweep.trials if trial.number == 0), None)
    heads = ["trial", "state", *sweep.metrics, "epochs", "log loss", "train s", "reviews/s", "settings other than the default's"]
    kinds = ["", "", *["number"] * (len(heads) - 3), ""]
    head = "".join(f'<th class="{kind}">{safe(name)}</th>' for kind, name in zip(kinds, heads, strict=True))
    rows = "".join(_row(sweep, trial, first) for trial in trials)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _row(sweep: _Sweep, trial: FrozenTrial, first: FrozenTrial | None) -> str:
    has = trial.user_attrs
    values = trial.values if trial.state == TrialState.COMPLETE else [sweep.value(trial)] + [None] * (len(sweep.metrics) - 1)
    numbers = [sweep.told(value, objective) for objective, value in enumerate(values)]
    numbers.append(f"{has.get('epochs', len(trial.intermediate_values)):,}")
    numbers += [
        f"{has[name]:,.{digits}f}" if name in has else "-" for name, digits in (("log_loss", 4), ("train_s", 1), ("reviews_per_s", 0))
    ]
    if trial.number == 0:
        settings = "the default"
    else:
        settings = " ".join(f"<span>{safe(name)} <b>{safe(_told(value))}</b></span>" for name, value, _ in _differences(trial, first))
    if "reason" in has:
        settings += f" <span><b>{safe(str(has['reason'])[:500])}</b></span>"
    best = " is-best" if sweep.best is not None and trial.number == sweep.best.number else ""
    state = f"{_STATES[trial.state]}{', best' if best else ''}"
    cells = "".join(f'<td class="number">{safe(number)}</td>' for number in numbers)
    return (
        f'<tr id="trial-{trial.number}" class="t{trial.number}{best}"><td>{trial.number}</td><td class="state">{state}</td>{cells}'
        f'<td class="settings">{settings}</td></tr>\n'
    )


def _differences(trial: FrozenTrial, first: FrozenTrial | None) -> list[tuple[str, Value, Value]]:
    """Name, value and the default's value of each setting that differs; a setting that is not there is None."""
    own, default = trial.params, first.params if first is not None else {}
    names = dict.fromkeys([*own, *default])
    return [(name, own.get(name), default.get(name)) for name in names if own.get(name) != default.get(name)]


def _scale(sweep: _Sweep, name: str) -> Scale:
    """The axis of a setting: all that was tried of it."""
    having = [trial for trial in sweep.trials if name in trial.params]
    kind = having[0].distributions[name]
    values = [trial.params[name] for trial in having]
    if isinstance(kind, CategoricalDistribution) or not all(isinstance(value, int | float) for value in values):
        choices: Sequence[Any] = [*(kind.choices if isinstance(kind, CategoricalDistribution) else ()), *values]
        return Scale(choices=tuple(dict.fromkeys(_told(choice) for choice in choices)))
    return scale(values, log=bool(getattr(kind, "log", False)))


def _category(axis: Scale, value: Value) -> Value:
    return _told(value) if axis.choices else value


def _told(value: Value) -> str:
    if value is None:
        return "not used"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _note(told: str) -> str:
    return f'<p class="note">{safe(told)}</p>'


def _wide(drawn: str) -> str:
    return f'<div class="wide">{drawn}</div>'
