"""Attention drawn on the raw text: Scores as one HTML page, or a Score as a fragment for a notebook.

Every character of the text is drawn, in its place. Text that the network did not read (tags, or text beyond a limit) is grey. Nothing in
the text can act as markup or set the direction of the text around it. `pieces` defines the shares and their scale.
"""

from __future__ import annotations

import base64
import hashlib
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from html import escape
from importlib.resources import files
from typing import Literal

from han.explain.gallery import controls, is_wrong, script
from han.explain.pieces import (
    BREAK,
    ODD,
    TAG,
    balance,
    facts,
    label_class,
    largest_effects,
    largest_shares,
    percent,
    pieces,
    removal_notes,
    signed,
    visible,
    warnings,
)
from han.types import Removals, Score, Sentence

_NUM_SHADES = 20  # classes a1 to a20 of page.css: finer than the eye, and no style attribute, so the CSP needs no unsafe-inline
EFFECTS_SWITCH = '<label><input type="checkbox" class="effects"> Show effects instead of attention.</label>'


def page(
    reviews: Iterable[tuple[str, str, Score]],
    *,
    title: str,
    labels: Sequence[str | None] = (),
    places: Sequence[int] = (),
    removals: Removals | None = None,
) -> str:
    """Returns one self-contained HTML page of the reviews, each a caption, the raw text and its Score, in this order.

    labels: the known label of each review or None; wrong answers are marked, and a switch shows only them. places: the place of each review
    in the input, where it differs from the order of the page. removals: of the only review. The page loads nothing: no other file, no other
    host. Its only script searches and sorts several reviews. A browser draws only the reviews in view, so thousands of reviews do not
    freeze it.
    """
    reviews = list(reviews)
    known = list(labels) or [None] * len(reviews)
    many = len(reviews) > 1
    models = {score.model for _, _, score in reviews}
    about = f"{len(reviews):,} review{'s' * (len(reviews) != 1)}" + "".join(f" · {_model(model)}" for model in models if len(models) == 1)
    drawn = "".join(
        _article(
            text,
            score,
            attributes=f' id="review-{number}"{_sort_keys(score, place) if many else ""}',
            caption=caption,
            names_model=len(models) > 1,
            label=label,
            removals=removals,
        )
        for number, ((caption, text, score), label, place) in enumerate(
            zip(reviews, known, list(places) or range(len(reviews)), strict=True), 1
        )
    )
    body = f"""<main{' class="sorted"' if many else ""}>
<div class="han"><div class="top"><h1>{_safe(title)}</h1><p class="facts">{about}</p></div>
{_key([score for _, _, score in reviews], drawn)}
{_errors_switch(reviews, known)}{controls(_orders(places)) + _index(reviews, known) if many else ""}</div>
{drawn}</main>"""
    return document(body, title=escape(visible(title)), style=stylesheet(), script=script() if many else "")


def document(body: str, *, title: str, style: str, script: str = "") -> str:
    """Returns a whole HTML page that loads nothing and runs nothing but `script`.

    `body` and `title` are HTML, not text. The page contains `style` and `script`, and its Content-Security-Policy allows them by their
    digests. No text of a review belongs into either.
    """
    allowed = f"style-src '{_digest(style)}'" + (f"; script-src '{_digest(script)}'" if script else "")
    run = f'<script type="module">{script}</script>\n' if script else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body class="han-page">
{body}
{run}</body>
</html>
"""


def _digest(content: str) -> str:
    """The source of a Content-Security-Policy that allows this style or script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def fragment(text: str, score: Score) -> str:
    """Returns one review as HTML with its own style, for the output cell of a notebook."""
    drawn = _article(text, score)
    return f'<style>{stylesheet()}</style><div class="han alone">{drawn}{_key([score], drawn)}</div>'


def articles(reviews: Sequence[tuple[str, str, Score]]) -> str:
    """Returns the reviews, each drawn under its caption, then the key. The page around them needs `stylesheet`."""
    drawn = "".join(_article(text, score, caption=caption, names_model=False) for caption, text, score in reviews)
    return f'{drawn}<div class="han">{_key([score for _, _, score in reviews], drawn)}</div>'


def stylesheet() -> str:
    """Returns the style of every page: colours for light and dark, type, and the shades of attention."""
    return files("han.explain").joinpath("page.css").read_text(encoding="utf-8")


def _key(scores: Sequence[Score], drawn: str) -> str:
    """Returns the key of what is `drawn`: samples beside their meanings, and a warning about what attention does not say."""
    sentences = [sentence for score in scores for sentence in score.sentences or ()]
    words = any(sentence.words for sentence in sentences)
    steps = "".join(f'<i class="a{shade}"></i>' for shade in range(_NUM_SHADES + 1))
    ramp = f'<span class="ramp{"" if words else " soft"}">{steps}</span>'
    own_scale = "Each review has its own scale: compare shades within a review, not between two."
    rows = []
    if sentences:
        meaning = "Beside a sentence: its share of the review&rsquo;s attention. The longest bar is the largest share."
        rows.append(_sample(_bar(0.7, chosen=True), meaning, kind="of-attention"))
    if words:
        shares = "word attention &times; sentence attention, the word&rsquo;s share of the whole review"
        scale = f"Behind a word: {shares}; from none to the largest such share in that review. {own_scale}"
        rows.append(_sample(ramp, scale, kind="of-attention"))
        switch = '<label><input type="checkbox" class="all"> Show all.</label>'
        choice = f"Point at a word, or choose a sentence&rsquo;s number, for words&rsquo; shares of their sentence. {switch}"
        rows.append(_sample('<span class="number">12.3</span>', choice, kind="live"))
    elif sentences:
        scale = f"Behind a sentence: the same share, from none to the largest in that review. {own_scale}"
        rows.append(_sample(ramp, scale, kind="of-attention"))
    if any(score.effects for score in scores):
        rows += _effects_key(scores)
    if 'class="unread"' in drawn:
        rows.append(_sample('<span class="unread">grey</span>', "Not read by the network: markup, or text that a limit cut."))
    if sentences:
        rows.append(
            '<p class="caveat of-attention"><strong>Attention shows where the network looked, not why it decided.</strong> A shaded word '
            "need not have moved the answer, an unshaded one may have, and no shade says whether a word spoke for the label or against "
            "it.</p>"
        )
    return f'<div class="key">{"".join(rows)}</div>'


def _effects_key(scores: Sequence[Score]) -> list[str]:
    words = any(word.effect is not None for score in scores for sentence in score.sentences or () for word in sentence.words or ())
    meaning = (
        "The effect of a sentence is the evidence (log-odds of the label, in nats) that is lost when the sentence is taken out: "
        '<span class="for">+ speaks for the label</span>, <span class="against">&minus; against it</span>. They are exact. They need not '
        "add up to the whole evidence: the rest is the interaction of the sentences."
    )
    of_words = (
        " Behind a word: its effect in the same colours, from none to the largest in the review."
        if words
        else " Behind a sentence: its effect in the same colours."
    )
    return [
        _sample("", EFFECTS_SWITCH, kind="live"),
        _sample(f"{_effect_bar(1, 1)}{_effect_bar(-1, 1)}", meaning + of_words),
    ]


def _effect_bar(effect: float, largest: float) -> str:
    """Returns a bar that grows from the middle: to the right for the label, to the left against it."""
    size = 50 * abs(effect) / largest if largest else 0
    start = 50 if effect >= 0 else 50 - size
    side = "for" if effect >= 0 else "against"
    return f'<svg class="bar {side}" aria-hidden="true"><rect x="{start:.2f}%" width="{size:.2f}%" height="100%"/></svg>'


def _effect_classes(effect: float | None, largest: float) -> str:
    shade = round(_NUM_SHADES * abs(effect) / largest) if effect and largest else 0
    return f" {'for' if effect and effect > 0 else 'against'} e{shade}" if shade else ""


def _sample(sample: str, meaning: str, *, kind: Literal["", "live", "of-attention"] = "") -> str:
    """Returns a row of the key. A `live` row is not printed; one `of-attention` hides while effects are shown."""
    where = f" {kind}" if kind else ""
    return f'<div class="sample{where}" aria-hidden="true">{sample}</div><p class="meaning{where}">{meaning}</p>'


def _errors_switch(reviews: Sequence[tuple[str, str, Score]], labels: Sequence[str | None]) -> str:
    num_labelled = sum(label is not None for label in labels)
    if not num_labelled:
        return ""
    num_wrong = sum(is_wrong(score, label) for (_, _, score), label in zip(reviews, labels, strict=True))
    switch = (
        f'<label><input type="checkbox" class="errors"> Show only the {num_wrong:,} wrong of {num_labelled:,} labelled answers.</label>'
    )
    return f'<div class="key"><p class="caveat live">{switch}</p></div>'


def _orders(places: Sequence[int]) -> dict[str, str]:
    """The orders of `controls`; the input order only if it is not that of the page."""
    in_input_order = list(places) == sorted(places)
    orders = {"": "input order" if in_input_order else "as chosen", "-probability": "surest first", "probability": "least sure first"}
    orders["-effect"] = "largest sentence effect first"
    return orders if in_input_order else {**orders, "place": "input order"}


def _sort_keys(score: Score, place: int) -> str:
    effect, _ = largest_effects(score.sentences or ())
    return f' data-probability="{score.probability:.7g}" data-effect="{effect:.4g}" data-place="{place}"'


def _is_right(score: Score, label: str | None) -> str:
    return "" if is_wrong(score, label) else ' class="right"'


def _wrong(score: Score, label: str | None) -> str:
    return f' <span class="wrong">labelled <bdi>{_safe(label or "")}</bdi></span>' if is_wrong(score, label) else ""


def _index(reviews: Sequence[tuple[str, str, Score]], labels: Sequence[str | None]) -> str:
    rows = "".join(
        f'<tr{_is_right(score, label)}><td><a href="#review-{number}"><bdi>{_safe(caption)}</bdi></a></td>'
        f"<td><bdi>{_safe(score.label)}</bdi>{_wrong(score, label)}</td>"
        f"<td>{_number(score.probability)}</td><td><bdi>{_safe(_opening(text))}</bdi></td></tr>\n"
        for number, ((caption, text, score), label) in enumerate(zip(reviews, labels, strict=True), 1)
    )
    head = "<tr><th>Review</th><th>Label</th><th>Probability</th><th>First words</th></tr>"
    return f'<table class="index"><thead>{head}</thead><tbody>\n{rows}</tbody></table>'


def _opening(text: str) -> str:
    return " ".join(TAG.sub(" ", text[:400]).split())[:100]


def _article(
    text: str,
    score: Score,
    *,
    attributes: str = "",
    caption: str = "",
    names_model: bool = True,
    label: str | None = None,
    removals: Removals | None = None,
) -> str:
    named = f'<p class="id"><bdi>{_safe(caption)}</bdi></p>' if caption else ""
    return f"""<article class="han{"" if is_wrong(score, label) else " right"}"{attributes}>
{drawing(text, score, before=named, names_model=names_model, label=label, removals=removals)}</article>
"""


def drawing(
    text: str,
    score: Score,
    *,
    before: str = "",
    names_model: bool = True,
    label: str | None = None,
    removals: Removals | None = None,
    marked: Collection[tuple[int, int]] = (),
) -> str:
    """Returns one review as HTML: the answer, then a row for each sentence.

    before: HTML that stands above the answer; marked: spans of sentences whose rows have a line at their side, as have the sentences of
    `removals`.
    """
    names = list(score.probabilities)
    classes = "".join(
        _class(name, share, hue=label_class(name, names), chosen=name == score.label) for name, share in score.probabilities.items()
    )
    hue = label_class(score.label, names)
    shown = " · ".join(facts(score) + ([_model(score.model)] if names_model else []))
    warned = "".join(f'<p class="warning">{_safe(warning)}</p>\n' for warning in warnings(score))
    notes = removal_notes(text, score, removals) if removals else ()
    marked = {*marked, *(removals.sentences.spans if removals and removals.sentences else ())}
    noted = "".join(f'<p class="facts removal">{_safe(note)}</p>' for note in notes)
    verdict = f"<bdi>{_safe(score.label)}</bdi> {_number(score.probability)}{_wrong(score, label)}"
    return f"""<header>{before}<h2 class="verdict {hue}">{verdict}</h2>
{warned}<ul class="classes{" many" * (len(score.probabilities) > 4)}">{classes}</ul>
<p class="facts">{shown}</p>{_balance(score)}{noted}</header>
{_review(text, score, marked)}
"""


def _balance(score: Score) -> str:
    return f'<p class="facts of-effect">{_safe(balance(score.effects, score.label))}</p>' if score.effects else ""


def _class(label: str, probability: float, *, hue: str, chosen: bool) -> str:
    return f"<li class='{hue}{' chosen' * chosen}'><bdi>{_safe(label)}</bdi>{_bar(probability, chosen=chosen)}{_number(probability)}</li>"


def _model(fingerprint: str) -> str:
    return f"model <code>{_safe(fingerprint)}</code>"


def _bar(share: float, *, chosen: bool) -> str:
    return f'<svg class="bar{" chosen" * chosen}" aria-hidden="true"><rect width="{100 * share:.2f}%" height="100%"/></svg>'


def _number(share: float) -> str:
    return f'<span class="number">{escape(percent(share))}%</span>'


def _review(text: str, score: Score, marked: Collection[tuple[int, int]] = ()) -> str:
    """Returns the raw text as one row for each sentence. The text between two sentences ends the row of the first."""
    if score.sentences is None:
        return f'<p class="raw whole" dir="auto">{_between(text, read=True)}</p>'
    starts = [0, *(sentence.start for sentence in score.sentences[1:]), len(text)]
    largest_sentence, largest_share = largest_shares(score.sentences)
    largest_effect, largest_of_word = largest_effects(score.sentences)
    rows = []
    for number, sentence in enumerate(score.sentences, 1):
        drawn = _sentence(text, starts[number - 1], starts[number], sentence, largest_share, largest_of_word)
        hides = " of-attention" if score.effects else ""
        effect = ""
        if score.effects:
            sized = _effect_bar(sentence.effect or 0, largest_effect)
            effect = f'<div class="share of-effect"><span class="number">{signed(sentence.effect)}</span>{sized}</div>'
        tint = _effect_classes(sentence.effect, largest_effect) if not largest_of_word else ""
        bar = _bar(sentence.attention / largest_sentence, chosen=True)
        rows.append(
            f'<li class="row{" marked" * ((sentence.start, sentence.end) in marked)}">{_switch(number, len(score.sentences), sentence)}'
            f'<div class="share{hides}">{_number(sentence.attention)}{bar}</div>{effect}'
            f'<p class="raw{tint}" dir="auto">{drawn}</p></li>\n'
        )
    return f'<ol class="sentences">\n{"".join(rows)}</ol>'


def _switch(number: int, num_sentences: int, sentence: Sentence) -> str:
    """Returns a checkbox over the gutter. While it is checked or has the focus, page.css shows the numbers of the words."""
    if sentence.words is None:
        return ""
    return f'<input type="checkbox" aria-label="Sentence {number} of {num_sentences}: show each word&rsquo;s share of its attention">'


def _sentence(text: str, start: int, end: int, sentence: Sentence, largest_share: float, largest_effect: float = 0) -> str:
    """Returns text[start:end], which contains the sentence, with its attention."""
    if sentence.words is None:
        shaded = (
            f'<span class="s{_shade(sentence.attention / largest_share)}">{_between(text[sentence.start : sentence.end], read=True)}</span>'
        )
        return _between(text[start : sentence.start]) + shaded + _between(text[sentence.end : end])
    drawn = []
    for piece, word in pieces(text, start, end, sentence.words):
        if word is None:
            drawn.append(_between(piece))
        else:
            share = word.attention * sentence.attention
            numbers = f'data-word="{escape(percent(word.attention))}" data-review="{escape(percent(share))}"'
            if largest_effect:
                numbers += f' data-effect="{signed(word.effect)}"'
            classes = f"{_shade(share / largest_share)}{_effect_classes(word.effect, largest_effect)}"
            drawn.append(f'<span class="w{classes}" {numbers}>{_safe(piece)}</span>')
    return "".join(drawn)


def _shade(share: float) -> str:
    return f" a{shade}" if (shade := round(_NUM_SHADES * share)) else ""


def _between(text: str, *, read: bool = False) -> str:
    """Returns text between words. Line breaks break the line, and other tags are grey. The rest is grey unless the network `read` it."""
    drawn, start = [], 0
    for tag in TAG.finditer(text):
        drawn.append(_grey(text[start : tag.start()], grey=not read))
        drawn.append("<br>" if BREAK.fullmatch(tag[0]) else _grey(tag[0], grey=True))
        start = tag.end()
    return "".join(drawn) + _grey(text[start:], grey=not read)


def _grey(text: str, *, grey: bool) -> str:
    return f'<span class="unread">{_safe(text)}</span>' if grey and not text.isspace() and text else _safe(text)


def _safe(text: str) -> str:
    """Returns HTML that shows the text: markup is escaped, and odd characters are boxes with their code.

    A carriage return stays in the text; CSS shows it as a space.
    """
    return ODD.sub(_box, escape(text)).replace("\r", "&#13;")


def _box(odd: re.Match[str]) -> str:
    code = f"{ord(odd[0]):04X}"
    return f'<i class="odd" title="U+{code} {unicodedata.name(odd[0], "control character").lower()}">{code}</i>'
