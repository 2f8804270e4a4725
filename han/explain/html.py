"""Attention drawn on the raw text: a Score as one HTML page, as a fragment for a notebook, or in a terminal's colours.

A word's shade is its share of the whole review (word attention x sentence attention), divided by the largest such share in that review.
Spans are code points of the raw text and every character is drawn in its place: what the network did not read (tags, what a limit cut)
is drawn in grey, and nothing in the text can act as markup, as a text direction or as a terminal command.
"""

from __future__ import annotations

import base64
import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape
from importlib.resources import files

from han.text.raw import TAG as _TAG
from han.types import Score, Sentence, Word

_NUM_SHADES = 20  # classes a1 to a20 of page.css: finer than the eye, and no style attribute, so the CSP needs no unsafe-inline
_BREAK = re.compile(r"<br\b[^<>]*>", re.IGNORECASE)
_LINE_END = re.compile(r"<br\b[^<>]*>|\n", re.IGNORECASE)
# Controls, invisible and bidirectional format characters, lone surrogates. The joiners U+200C and U+200D stay: Persian and emoji need them.
_ODD = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


def page(reviews: Iterable[tuple[str, str, Score]], *, title: str) -> str:
    """One self-contained HTML page of (caption, raw text, score) in the order given: no script, no second file, no other host."""
    reviews = list(reviews)
    models = {score.model for _, _, score in reviews}
    about = f"{len(reviews):,} review{'s' * (len(reviews) != 1)}" + "".join(f" · {_model(model)}" for model in models if len(models) == 1)
    drawn = "".join(
        _article(text, score, anchor=f' id="review-{number}"', caption=caption, names_model=len(models) > 1)
        for number, (caption, text, score) in enumerate(reviews, 1)
    )
    body = f"""<main>
<div class="han"><div class="top"><h1>{_safe(title)}</h1><p class="facts">{about}</p></div>
{_key([score for _, _, score in reviews], drawn)}
{_index(reviews) if len(reviews) > 1 else ""}</div>
{drawn}</main>"""
    return document(body, title=escape(_visible(title)), style=stylesheet())


def document(body: str, *, title: str, style: str) -> str:
    """A whole HTML page that loads nothing and runs nothing. `body` and `title` are HTML; `style` is in it, allowed by its digest."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body class="han-page">
{body}
</body>
</html>
"""


def fragment(text: str, score: Score) -> str:
    """One review with its own style, for a notebook's output cell."""
    drawn = _article(text, score)
    return f'<style>{stylesheet()}</style><div class="han alone">{drawn}{_key([score], drawn)}</div>'


def stylesheet() -> str:
    """The style of every page: colours for light and dark, type, and the shades of attention."""
    return files("han.explain").joinpath("page.css").read_text(encoding="utf-8")


def _key(scores: Sequence[Score], drawn: str) -> str:
    """How to read what is `drawn`, and how not to: samples beside their meanings."""
    sentences = [sentence for score in scores for sentence in score.sentences or ()]
    words = any(sentence.words for sentence in sentences)
    steps = "".join(f'<i class="a{shade}"></i>' for shade in range(_NUM_SHADES + 1))
    ramp = f'<span class="ramp{"" if words else " soft"}">{steps}</span>'
    own_scale = "Each review has its own scale: compare shades within a review, not between two."
    rows = []
    if sentences:
        meaning = "Beside a sentence: its share of the review&rsquo;s attention. The longest bar is the largest share."
        rows.append(_sample(_bar(0.7, chosen=True), meaning))
    if words:
        shares = "word attention &times; sentence attention, the word&rsquo;s share of the whole review"
        rows.append(_sample(ramp, f"Behind a word: {shares}; from none to the largest such share in that review. {own_scale}"))
        switch = '<label><input type="checkbox" class="all"> Show all.</label>'
        choice = f"Point at a word, or choose a sentence&rsquo;s number, for words&rsquo; shares of their sentence. {switch}"
        rows.append(_sample('<span class="number">12.3</span>', choice, live=True))
    elif sentences:
        rows.append(_sample(ramp, f"Behind a sentence: the same share, from none to the largest in that review. {own_scale}"))
    if 'class="unread"' in drawn:
        rows.append(_sample('<span class="unread">grey</span>', "Not read by the network: markup, or text that a limit cut."))
    if sentences:
        rows.append(
            '<p class="caveat"><strong>Attention shows where the network looked, not why it decided.</strong> A shaded word need not have '
            "moved the answer, an unshaded one may have, and no shade says whether a word spoke for the label or against it.</p>"
        )
    return f'<div class="key">{"".join(rows)}</div>'


def _sample(sample: str, meaning: str, *, live: bool = False) -> str:
    """A row of the key. What is `live` works on a screen only, and is not printed."""
    where = " live" if live else ""
    return f'<div class="sample{where}" aria-hidden="true">{sample}</div><p class="meaning{where}">{meaning}</p>'


def _index(reviews: Sequence[tuple[str, str, Score]]) -> str:
    rows = "".join(
        f'<tr><td><a href="#review-{number}"><bdi>{_safe(caption)}</bdi></a></td><td><bdi>{_safe(score.label)}</bdi></td>'
        f"<td>{_number(score.probability)}</td><td><bdi>{_safe(_opening(text))}</bdi></td></tr>\n"
        for number, (caption, text, score) in enumerate(reviews, 1)
    )
    head = "<tr><th>Review</th><th>Label</th><th>Probability</th><th>First words</th></tr>"
    return f'<table class="index"><thead>{head}</thead><tbody>\n{rows}</tbody></table>'


def _opening(text: str) -> str:
    return " ".join(_TAG.sub(" ", text[:400]).split())[:100]


def _article(text: str, score: Score, *, anchor: str = "", caption: str = "", names_model: bool = True) -> str:
    classes = "".join(_class(label, probability, chosen=label == score.label) for label, probability in score.probabilities.items())
    facts = " · ".join(_facts(score) + ([_model(score.model)] if names_model else []))
    named = f'<p class="id"><bdi>{_safe(caption)}</bdi></p>' if caption else ""
    return f"""<article class="han"{anchor}>
<header>{named}<h2 class="verdict"><bdi>{_safe(score.label)}</bdi> {_number(score.probability)}</h2>
<ul class="classes{" many" * (len(score.probabilities) > 4)}">{classes}</ul>
<p class="facts">{facts}</p></header>
{_review(text, score)}
</article>
"""


def _class(label: str, probability: float, *, chosen: bool) -> str:
    return f"<li{' class=chosen' * chosen}><bdi>{_safe(label)}</bdi>{_bar(probability, chosen=chosen)}{_number(probability)}</li>"


def _facts(score: Score) -> list[str]:
    facts = [f"{score.num_tokens:,} token{'s' * (score.num_tokens != 1)}"]
    if score.num_unknown:
        facts.append(f"{score.num_unknown:,} unknown")
    if score.num_characters_cut:
        facts.append(f"{score.num_characters_cut:,} character{'s' * (score.num_characters_cut != 1)} not read")
    return facts


def _model(fingerprint: str) -> str:
    return f"model <code>{_safe(fingerprint)}</code>"


def _bar(share: float, *, chosen: bool) -> str:
    return f'<svg class="bar{" chosen" * chosen}" aria-hidden="true"><rect width="{100 * share:.2f}%" height="100%"/></svg>'


def _number(share: float) -> str:
    return f'<span class="number">{escape(_percent(share))}%</span>'


def _percent(share: float) -> str:
    """A share as a percentage of one decimal that never rounds to none or to all of it."""
    if 0 < share < 0.0005:
        return "<0.1"
    return ">99.9" if 0.9995 <= share < 1 else f"{100 * share:.1f}"


def _review(text: str, score: Score) -> str:
    """The raw text as rows, one a sentence; what lies between two sentences ends the first one's row."""
    if score.sentences is None:
        return f'<p class="raw whole" dir="auto">{_between(text, read=True)}</p>'
    starts = [0, *(sentence.start for sentence in score.sentences[1:]), len(text)]
    longest, largest = _largest(score.sentences)
    rows = []
    for number, sentence in enumerate(score.sentences, 1):
        drawn = _sentence(text, starts[number - 1], starts[number], sentence, largest)
        rows.append(
            f'<li class="row">{_switch(number, len(score.sentences), sentence)}'
            f'<div class="share">{_number(sentence.attention)}{_bar(sentence.attention / longest, chosen=True)}</div>'
            f'<p class="raw" dir="auto">{drawn}</p></li>\n'
        )
    return f'<ol class="sentences">\n{"".join(rows)}</ol>'


def _switch(number: int, num_sentences: int, sentence: Sentence) -> str:
    """A checkbox over the gutter: page.css shows the words' numbers where it is checked, or reached by the keyboard."""
    if sentence.words is None:
        return ""
    return f'<input type="checkbox" aria-label="Sentence {number} of {num_sentences}: show each word&rsquo;s share of its attention">'


def _largest(sentences: Sequence[Sentence]) -> tuple[float, float]:
    """The largest sentence attention, and the largest share of the review that gets a shade: a word's, or a sentence's without words."""
    longest = max(sentence.attention for sentence in sentences)
    shares = (word.attention * sentence.attention for sentence in sentences for word in sentence.words or ())
    return longest, max(shares, default=longest)


def _sentence(text: str, start: int, end: int, sentence: Sentence, largest: float) -> str:
    """text[start:end], which holds the sentence and what lies around it."""
    if sentence.words is None:
        shaded = f'<span class="s{_shade(sentence.attention / largest)}">{_between(text[sentence.start : sentence.end], read=True)}</span>'
        return _between(text[start : sentence.start]) + shaded + _between(text[sentence.end : end])
    drawn = []
    for piece, word in _pieces(text, start, end, sentence.words):
        if word is None:
            drawn.append(_between(piece))
        else:
            share = word.attention * sentence.attention
            numbers = f'data-word="{escape(_percent(word.attention))}" data-review="{escape(_percent(share))}"'
            drawn.append(f'<span class="w{_shade(share / largest)}" {numbers}>{_safe(piece)}</span>')
    return "".join(drawn)


def _pieces(text: str, start: int, end: int, words: Iterable[Word]) -> Iterator[tuple[str, Word | None]]:
    """text[start:end] in order: every word, and what lies between words with None."""
    for word in words:
        if start < word.start:
            yield text[start : word.start], None
        yield text[word.start : word.end], word
        start = word.end
    if start < end:
        yield text[start:end], None


def _shade(share: float) -> str:
    return f" a{shade}" if (shade := round(_NUM_SHADES * share)) else ""


def _between(text: str, *, read: bool = False) -> str:
    """Text that is no word: breaks break the line, other tags are grey, and so is all that can be seen unless the network did `read` it."""
    drawn, start = [], 0
    for tag in _TAG.finditer(text):
        drawn.append(_grey(text[start : tag.start()], grey=not read))
        drawn.append("<br>" if _BREAK.fullmatch(tag[0]) else _grey(tag[0], grey=True))
        start = tag.end()
    return "".join(drawn) + _grey(text[start:], grey=not read)


def _grey(text: str, *, grey: bool) -> str:
    return f'<span class="unread">{_safe(text)}</span>' if grey and not text.isspace() and text else _safe(text)


def _safe(text: str) -> str:
    """Text as HTML that shows it: markup escaped, odd characters as boxes with their code. A carriage return stays one (CSS: a space)."""
    return _ODD.sub(_box, escape(text)).replace("\r", "&#13;")


def _box(odd: re.Match[str]) -> str:
    code = f"{ord(odd[0]):04X}"
    return f'<i class="odd" title="U+{code} {unicodedata.name(odd[0], "control character").lower()}">{code}</i>'


def _visible(text: str) -> str:
    """Text on one line, without markup: odd characters as their control picture or their code."""
    return re.sub(r"\s", " ", _ODD.sub(lambda odd: chr(0x2400 + ord(odd[0])) if odd[0] < " " else f"[U+{ord(odd[0]):04X}]", text))


# -- In a terminal

_MEASURE = 80  # columns of text at most: longer lines are hard to follow
_GUTTER = 16  # " 24.3% ████████ "
_BOLD, _DIM, _BAR = "1", "2", "38;5;32"
# Black ink on five blues of one lightness, from grey to vivid: more colour is more attention on a dark terminal and on a light one.
_BACKGROUNDS = ("", *(f"38;5;16;48;5;{blue}" for blue in (250, 110, 74, 75, 39)))
Paint = Callable[[str, str], str]  # text and style -> what is printed


def terminal(text: str, score: Score, *, width: int, colour: bool) -> str:
    """The verdict, then one sentence after another beside its share of the review, in lines of at most `width` columns (never under 40).

    With `colour`, words stand on 256-colour backgrounds that bring their own ink, so they read on dark and on light terminals. Without it
    there is no escape code, and each sentence's three most attended words are named below it.
    """
    paint = _painted if colour else _unpainted
    width = max(width, 40)
    lines = [*_verdict(score, width, paint), ""]
    if score.sentences is None:
        return "\n".join([*lines, *_wrapped(_clusters([(_TAG.sub(" ", text), "")]), min(width, _MEASURE), paint)]) + "\n"
    limit = min(width - _GUTTER, _MEASURE)
    longest, largest = _largest(score.sentences)
    end = len(text)
    for sentence in score.sentences:
        if len(_LINE_END.findall(text, end, sentence.start)) > 1:
            lines.append("")
        end = sentence.end
        rows = _wrapped(_clusters(_coloured(text, sentence, largest)), limit, paint)
        if sentence.words and not colour:
            rows += _wrapped(_most_attended(text, sentence.words), limit, paint)
        lead = f"{_percent(sentence.attention):>5}% {paint(f'{_blocks(sentence.attention / longest, 8):<8}', _BAR)} "
        lines += [f"{' ' * _GUTTER if number else lead}{row}" for number, row in enumerate(rows)]
    return "\n".join(lines) + "\n"


def _verdict(score: Score, width: int, paint: Paint) -> list[str]:
    names = {label: next(_chopped(_visible(label), width - 30), "") for label in score.probabilities}
    longest = max(map(_cells, names.values()))
    lines = [paint(f"{next(_chopped(_visible(score.label), width - 10), '')} {_percent(score.probability)}%", _BOLD)]
    for label, probability in score.probabilities.items():
        name = names[label] + " " * (longest - _cells(names[label]))
        lines.append(f"{_percent(probability):>5}% {name} {paint(_blocks(probability, 20), _BAR)}".rstrip())
    facts = " · ".join([*_facts(score), f"model {_visible(score.model)}"])
    return lines + _wrapped(_clusters([(facts, _DIM)]), width, paint)


def _coloured(text: str, sentence: Sentence, largest: float) -> Iterator[tuple[str, str]]:
    """The sentence's pieces of text, each with its style."""
    if sentence.words is None:
        yield _TAG.sub(" ", text[sentence.start : sentence.end]), ""
        return
    for piece, word in _pieces(text, sentence.start, sentence.end, sentence.words):
        if word is None:
            yield _TAG.sub(" ", piece), ""
        else:
            share = word.attention * sentence.attention / largest
            yield piece, _BACKGROUNDS[round((len(_BACKGROUNDS) - 1) * share)]


def _most_attended(text: str, words: Sequence[Word]) -> list[list[tuple[str, str]]]:
    best = sorted(words, key=lambda word: -word.attention)[:3]
    named = [f"{_visible(text[word.start : word.end])} {_percent(word.attention)}%" for word in best]
    return _clusters([("↳ " + " · ".join(named), "")])


def _clusters(pieces: Iterable[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """Pieces regrouped as what stands between two spaces, and so on one line: "don", "'" and "t" are one cluster."""
    clusters: list[list[tuple[str, str]]] = [[]]
    for piece, style in pieces:
        for number, part in enumerate(re.split(r"\s+", piece)):
            if number:
                clusters.append([])
            if part:
                clusters[-1].append((_visible(part), style))
    return [cluster for cluster in clusters if cluster]


def _wrapped(clusters: Iterable[list[tuple[str, str]]], limit: int, paint: Paint) -> list[str]:
    """Lines of at most `limit` columns; a cluster that is longer than a line is broken within."""
    lines, used = [""], 0
    for cluster in clusters:
        if used and used + 1 + sum(_cells(part) for part, _ in cluster) > limit:
            lines.append("")
            used = 0
        elif used:
            lines[-1] += " "
            used += 1
        for part, style in [(part, style) for whole, style in cluster for part in _chopped(whole, limit)]:
            if used + _cells(part) > limit:
                lines.append("")
                used = 0
            lines[-1] += paint(part, style)
            used += _cells(part)
    return lines


def _chopped(text: str, limit: int) -> Iterator[str]:
    """`text` in parts of at most `limit` columns."""
    start, used = 0, 0
    for index, character in enumerate(text):
        if used + (cells := _cells(character)) > limit:
            yield text[start:index]
            start, used = index, 0
        used += cells
    if text:
        yield text[start:]


def _cells(text: str) -> int:
    """Columns the text takes: none for what combines with its neighbour, two for East Asian wide characters and emoji."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.category(character) in ("Mn", "Me", "Cf") else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


def _blocks(share: float, cells: int) -> str:
    eighths = round(8 * cells * share)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _painted(text: str, style: str) -> str:
    return f"\x1b[{style}m{text}\x1b[0m" if style else text


def _unpainted(text: str, style: str) -> str:
    return text
