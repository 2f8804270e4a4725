"""A sweep as one self-contained HTML page: no script, no second file, no other host.

Everything on it is read from the Optuna study. Each mark links to the table row of its trial.
"""

from __future__ import annotations

from importlib.resources import files

import optuna
from optuna.trial import FrozenTrial, TrialState

from han.explain.charts import safe
from han.explain.html import document, stylesheet
from han.tune import charts
from han.tune.trials import STATES, Sweep, differences, read, shown

_MANY = 200  # maximum number of trials that are highlighted in all charts: each needs a CSS rule


def report(study: optuna.Study) -> str:
    """The page. It works for any study, including one without a finished trial."""
    sweep = read(study)
    sections = [
        _section("History", charts.history(sweep)),
        _section("Early stopping", charts.curves(sweep)),
        _section("Development against cost", charts.front(sweep)),
        _section("Which settings mattered", charts.importances(sweep)),
        _section("All settings of a trial at once", charts.parallel(sweep)),
        _section("Setting by setting", charts.slices(sweep)),
        _section("Trials", _table(sweep), "trials"),
    ]
    body = f"""<main class="sweep han">
{_head(sweep)}
{"".join(sections)}</main>"""
    return document(body, title=f"Sweep {safe(study.study_name)}", style=_style(sweep))


def _style(sweep: Sweep) -> str:
    shared = stylesheet() + files("han.tune").joinpath("sweep.css").read_text(encoding="utf-8")
    numbers = [trial.number for trial in sweep.trials] if len(sweep.trials) <= _MANY else []
    return shared + "\n".join(
        f"main:has(.t{number}:hover) .t{number}, main:has(#trial-{number}:target) .t{number} {{ --mark: var(--hot); --solid: 1 }}"
        for number in numbers
    )


def _section(title: str, drawn: str | None, kind: str = "") -> str:
    return "" if drawn is None else f'<section class="{kind}"><h2>{title}</h2>{drawn}</section>\n'


def _head(sweep: Sweep) -> str:
    """The settings that were tried, the best trial, and how reliable its score is."""
    number = {state: sum(trial.state == state for trial in sweep.trials) for state in STATES}
    counts = ", ".join(f"{number[state]:,} {name}" for state, name in STATES.items() if number[state])
    facts = f"{len(sweep.trials):,} trial{'s' * (len(sweep.trials) != 1)}" + (f": {counts}" if counts else "")
    train_s = sum(trial.user_attrs.get("train_s", 0.0) for trial in sweep.trials)
    facts += f" · {train_s / 60:,.1f} minutes of training" if train_s else ""
    started = min((trial.datetime_start for trial in sweep.trials if trial.datetime_start), default=None)
    facts += f" · {started:%Y-%m-%d}" if started else ""
    head = f'<h1>Sweep <bdi>{safe(sweep.study.study_name)}</bdi></h1><p class="facts">{facts}</p>'
    if sweep.best is None:
        return head + '<p class="verdict">No trial completed</p><p class="note">The table gives the reason for each.</p>'
    best, first = sweep.best, next((trial for trial in sweep.trials if trial.number == 0), None)
    verdict = f'<p class="verdict">{safe(sweep.metrics[0])} {sweep.formatted(best.values[0])}'
    verdict += f' <span class="number">trial <a href="#trial-{best.number}">{best.number}</a></span></p>'
    if first is not None and first.number != best.number and sweep.value(first) is not None:
        verdict += f'<p class="note">The default, trial <a href="#trial-0">0</a>, reached {sweep.formatted(sweep.value(first))}.</p>'
    return head + verdict + _caveat(sweep, best) + _changes(best, first, len(sweep.trials))


def _caveat(sweep: Sweep, best: FrozenTrial) -> str:
    """A warning: the development split chose the best trial, so its score is optimistic. Adds the scores of other seeds."""
    tried = len(sweep.ranked) + sum(trial.state == TrialState.PRUNED for trial in sweep.trials)
    many = f"<strong>The figure of the best of {tried:,} trials is optimistic.</strong> " if tried > 1 else ""
    sentences = [
        f"{many}The development reviews chose the {'trial and its epoch' if many else 'epoch'}, "
        "so part of the figure is luck and does not repeat on other reviews."
    ]
    again = sweep.study.user_attrs.get("retrained")
    if isinstance(again, dict) and again.get("scores"):
        scores, percent = again["scores"], "accuracy" in str(again.get("metric", sweep.metrics[0]))
        mean, *each = (f"{score:.2%}" if percent else f"{score:.4g}" for score in (again["mean"], *scores))
        spread = f"{100 * again['spread']:.2f} points" if percent else f"{again['spread']:.4g}"
        metric = "" if len(sweep.metrics) == 1 else f"a {safe(str(again.get('metric', '')))} of "
        seeds = f"{len(scores)} other seed{'s' * (len(scores) != 1)}"
        reached = f"its settings reached {metric}{mean}" + (f" on average, standard deviation {spread}" if len(scores) > 1 else "")
        sentences += [
            f"<strong>Trained again over {seeds}, {reached}</strong> ({', '.join(each)}): "
            "a better estimate, although the same development reviews chose the settings."
        ]
    else:
        sentences += ["<code>--retrain 3</code> trains these settings with other seeds, for a better estimate."]
    sentences += ["No test review was used; <code>han evaluate</code> measures the model on test reviews, once, at the end."]
    return f'<p class="caveat">{" ".join(sentences)}</p>'


def _changes(best: FrozenTrial, first: FrozenTrial | None, tried: int) -> str:
    """The best trial's settings beside the default's."""
    changed = differences(best, first)
    if first is None or best.number == 0 or not changed:
        return '<p class="note">Nothing that was tried beats the default.</p>' if best.number == 0 and tried > 1 else ""
    rows = "".join(
        f'<dt><code>{safe(name)}</code></dt><dd>{safe(shown(value))}</dd><dd class="was">default: {safe(shown(was))}</dd>'
        for name, value, was in changed
    )
    return f"<dl>{rows}</dl>"


def _table(sweep: Sweep) -> str:
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


def _row(sweep: Sweep, trial: FrozenTrial, first: FrozenTrial | None) -> str:
    has = trial.user_attrs
    values = trial.values if trial.state == TrialState.COMPLETE else [sweep.value(trial)] + [None] * (len(sweep.metrics) - 1)
    numbers = [sweep.formatted(value, objective) for objective, value in enumerate(values)]
    numbers.append(f"{has.get('epochs', len(trial.intermediate_values)):,}")
    numbers += [
        f"{has[name]:,.{digits}f}" if name in has else "-" for name, digits in (("log_loss", 4), ("train_s", 1), ("reviews_per_s", 0))
    ]
    if trial.number == 0:
        settings = "the default"
    else:
        settings = " ".join(f"<span>{safe(name)} <b>{safe(shown(value))}</b></span>" for name, value, _ in differences(trial, first))
    if "reason" in has:
        settings += f" <span><b>{safe(str(has['reason'])[:500])}</b></span>"
    best = " is-best" if sweep.best is not None and trial.number == sweep.best.number else ""
    state = f"{STATES[trial.state]}{', best' if best else ''}"
    cells = "".join(f'<td class="number">{safe(number)}</td>' for number in numbers)
    return (
        f'<tr id="trial-{trial.number}" class="t{trial.number}{best}"><td>{trial.number}</td><td class="state">{state}</td>{cells}'
        f'<td class="settings">{settings}</td></tr>\n'
    )
