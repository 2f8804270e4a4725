"""Two models on the same reviews: which answers changed, and where attention and effects moved. A page, and a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from han.explain.gallery import is_wrong
from han.explain.html import EFFECTS_SWITCH, document, drawing, stylesheet
from han.explain.pieces import signed, visible
from han.model.metrics import wilson
from han.types import Score, Sentence

MOVED = 0.5  # of the largest move of a review: sentences that moved at least as far are marked
_LEAST = 1e-12  # smallest probability of which a logarithm is taken

_Spans = tuple[tuple[int, int], ...]
_SENTENCE = pa.struct(
    [("start", pa.int32()), ("end", pa.int32())]
    + [(f"{what}_{which}", pa.float32()) for what in ("attention", "effect") for which in ("before", "after")]
)
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("review_id", "text", "label", "label_before", "label_after")]
    + [("probability_before", pa.float32()), ("probability_after", pa.float32()), ("changed", pa.bool_()), ("shift", pa.float32())]
    + [("sentences", pa.list_(_SENTENCE))]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One review, scored by both models with attention and the effects of sentences."""

    review_id: str
    text: str
    label: str | None  # the known label
    before: Score
    after: Score

    @property
    def changed(self) -> bool:
        return self.before.label != self.after.label

    @property
    def shift(self) -> float:
        """What the second model adds to the evidence for the label of the first, in nats."""
        return _evidence(self.after, self.before.label) - _evidence(self.before, self.before.label)


def order(changes: Sequence[Change]) -> list[int]:
    """The places of the changes: other labels first, then by the size of the shift."""
    return sorted(range(len(changes)), key=lambda place: (not changes[place].changed, -abs(changes[place].shift)))


def moved(change: Change) -> _Spans:
    """The sentences of both answers whose effects moved most, towards or away from the label of the first model.

    The effect of a sentence is for the label of its own answer, so the sign of the second is turned where the labels of a model of two
    differ. With more labels such effects are not comparable: then there are none.
    """
    if change.changed and len(change.before.probabilities) > 2:
        return ()
    sign = -1 if change.changed else 1
    both = [(before, after) for before, after in _matched(change) if before and after]
    moves = {(one.start, one.end): abs(sign * (two.effect or 0.0) - (one.effect or 0.0)) for one, two in both}
    largest = max(moves.values(), default=0.0)
    return tuple(span for span, move in moves.items() if largest and move >= MOVED * largest)


def table(changes: Sequence[Change]) -> pa.Table:
    """One row for each review, with the sentences of both answers: null where only one model cuts the text there."""
    rows = [
        {
            "review_id": each.review_id,
            "text": each.text,
            "label": each.label,
            "label_before": each.before.label,
            "label_after": each.after.label,
            "probability_before": each.before.probability,
            "probability_after": each.after.probability,
            "changed": each.changed,
            "shift": each.shift,
            "sentences": [_row(*pair) for pair in _matched(each)],
        }
        for each in changes
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def is_table(path: Path) -> bool:
    """Whether the file was written with `table`."""
    try:
        return bool(pq.read_schema(path).names == SCHEMA.names)
    except (OSError, pa.ArrowException):
        return False


def summary(changes: Sequence[Change]) -> list[str]:
    """A summary of the changes over all reviews, as sentences."""
    number = sum(each.changed for each in changes)
    low, high = wilson(number, len(changes))
    lines = [
        f"{number:,} of {len(changes):,} reviews changed the label: {number / len(changes):.1%} (95% interval {low:.1%} to {high:.1%})."
    ]
    known = [each for each in changes if each.label is not None]
    if known:
        to_right = sum(each.changed and not is_wrong(each.after, each.label) for each in known)
        to_wrong = sum(each.changed and not is_wrong(each.before, each.label) for each in known)
        before, after = (
            sum(not is_wrong(score, each.label) for each, score in zip(known, scores, strict=True)) / len(known) for scores in _both(known)
        )
        lines.append(
            f"Of {len(known):,} with a label, {to_right:,} became right and {to_wrong:,} became wrong: "
            f"accuracy {before:.1%} before, {after:.1%} after."
        )
    return lines


def page(changes: Sequence[Change], lines: Sequence[str], *, title: str) -> str:
    """Returns one self-contained page of the changes in their order, below the lines of `summary`. It has no script."""
    drawn = "".join(_article(number, each) for number, each in enumerate(changes, 1))
    top = "".join(f'<p class="facts">{escape(line)}</p>' for line in lines)
    note = "A line at the side marks the sentences whose effects moved most. Each answer is for its own label."
    body = f"""<main>
<div class="han"><div class="top"><h1>{escape(visible(title))}</h1>{top}<p class="facts">{note}</p>
<p class="caveat live">{EFFECTS_SWITCH}</p></div></div>
{drawn}</main>"""
    return document(body, title=escape(visible(title)), style=stylesheet())


def _article(number: int, change: Change) -> str:
    turn = f"{change.before.label} to {change.after.label}" if change.changed else f"{change.before.label} by both"
    known = f"; its label is {change.label}" if change.label is not None else ""
    caption = escape(
        visible(f"{change.review_id}: {turn}{known}; shift of the evidence for {change.before.label} {signed(change.shift)} nats")
    )
    tops = (f'<p class="id"><bdi>{caption}</bdi></p><p class="id">First model</p>', '<p class="id">Second model</p>')
    parts = "".join(
        drawing(change.text, score, before=top, label=change.label, marked=moved(change))
        for top, score in zip(tops, (change.before, change.after), strict=True)
    )
    return f'<article class="han" id="review-{number}">{parts}</article>\n'


def _both(changes: Sequence[Change]) -> tuple[list[Score], list[Score]]:
    return [each.before for each in changes], [each.after for each in changes]


def _matched(change: Change) -> list[tuple[Sentence | None, Sentence | None]]:
    """The sentences of both answers by their spans, in reading order."""
    of_both = [{(each.start, each.end): each for each in score.sentences or ()} for score in (change.before, change.after)]
    return [(of_both[0].get(span), of_both[1].get(span)) for span in sorted({*of_both[0], *of_both[1]})]


def _row(before: Sentence | None, after: Sentence | None) -> dict[str, float | None]:
    known = before or after
    assert known is not None  # noqa: S101 - a span is of one of them
    return {
        "start": known.start,
        "end": known.end,
        "attention_before": before.attention if before else None,
        "attention_after": after.attention if after else None,
        "effect_before": before.effect if before else None,
        "effect_after": after.effect if after else None,
    }


def _evidence(score: Score, label: str) -> float:
    """Log-odds of `label`, in nats."""
    if score.effects is not None and label == score.label:
        return score.effects.evidence
    share = min(max(score.probabilities[label], _LEAST), 1 - _LEAST)
    return math.log(share / (1 - share))
