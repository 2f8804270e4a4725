"""Attention drawn on the raw text in a terminal, with rich.

Shares and shades are those of the HTML page (see `pieces`). Odd characters are replaced by visible ones, so no text can act as a terminal
command.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence

from rich.cells import set_cell_size
from rich.console import Console
from rich.text import Text

from han.explain.pieces import (
    BREAK,
    TAG,
    balance,
    facts,
    largest_effects,
    largest_shares,
    percent,
    pieces,
    removal_notes,
    signed,
    visible,
    warnings,
)
from han.types import Removals, Score, Sentence, Word

_MIN_WIDTH = 40  # columns; narrower terminals wrap the lines themselves
_MAX_TEXT_WIDTH = 80  # columns; longer lines are hard to follow
_GUTTER = 16  # columns of " 24.3% ████████ "
_EFFECT_GUTTER = 7  # columns of " +1.23 "
_FOR, _AGAINST = "color(32)", "color(208)"  # blue and orange differ for every kind of colour vision
_AGAINST_SHADES = ("", *(f"color(16) on color({orange})" for orange in (250, 180, 179, 215, 208)))
_BAR = "color(32)"
# Black ink on five blues of equal lightness, from grey to vivid. More colour means more attention on dark and on light terminals.
_SHADES = ("", *(f"color(16) on color({blue})" for blue in (250, 110, 74, 75, 39)))
_LINE_END = re.compile(rf"{BREAK.pattern}|\n", BREAK.flags)


def terminal(text: str, score: Score, *, width: int, colour: bool, removals: Removals | None = None) -> str:
    """Returns the label, the probabilities, and each sentence beside its share of the review, and beside its effect if it has one.

    The bar shows the share, or the size of the effect. A positive effect speaks for the label, a negative one against it. Words with
    effects are marked by them, not by their attention.

    width: columns of the terminal; a value below 40 counts as 40. No line is wider.
    colour: True marks words with 256-colour backgrounds and their own ink. False writes no escape code, and names the three most attended
        words below each sentence.
    """
    width = max(width, _MIN_WIDTH)
    console = _console(width, colour=colour)
    lines = [*_verdict(score, width, console), Text()]
    if score.sentences is None:
        lines += _wrap([(TAG.sub(" ", text), "")], min(width, _MAX_TEXT_WIDTH), console)
    else:
        gutter = _GUTTER + _EFFECT_GUTTER * (score.effects is not None)
        lines += _sentences(text, score.sentences, min(width - gutter, _MAX_TEXT_WIDTH), console, colour=colour, gutter=gutter)
        if score.effects is not None:
            lines += [Text(), *_wrap([(visible(balance(score.effects, score.label)), "dim")], width, console)]
    for note in removal_notes(text, score, removals) if removals else ():
        lines += _wrap([(visible(note), "dim")], width, console)
    with console.capture() as capture:
        console.print(Text("\n").join(lines), soft_wrap=True)
    return capture.get()


def _console(width: int, *, colour: bool) -> Console:
    """Returns a console that reads nothing from the environment and writes to no file."""
    return Console(
        file=io.StringIO(),
        width=width,
        color_system="256" if colour else None,
        no_color=not colour,
        force_terminal=colour,
        force_jupyter=False,
        legacy_windows=False,
        markup=False,
        emoji=False,
        highlight=False,
    )


def _verdict(score: Score, width: int, console: Console) -> list[Text]:
    """Returns the lines above the review: the label, each class with its probability and a bar, and the facts."""
    names = {label: _clip(visible(label), width - 30) for label in score.probabilities}
    name_width = max(name.cell_len for name in names.values())
    lines = [Text(f"{_clip(visible(score.label), width - 10)} {percent(score.probability)}%", "bold")]
    for label, probability in score.probabilities.items():
        line = Text(f"{percent(probability):>5}% {set_cell_size(names[label].plain, name_width)} ").append(_bar(probability, 20), _BAR)
        line.rstrip()
        lines.append(line)
    for warning in warnings(score):
        lines += _wrap([(f"! {warning}", "bold")], width, console)
    shown = " · ".join([*facts(score), f"model {visible(score.model)}"])
    return lines + _wrap([(shown, "dim")], width, console)


def _sentences(text: str, sentences: Sequence[Sentence], width: int, console: Console, *, colour: bool, gutter: int) -> list[Text]:
    """Returns the lines of all sentences. An empty line stands where the text has two line ends between two sentences."""
    lines: list[Text] = []
    largest_sentence, largest_share = largest_shares(sentences)
    strongest, largest_effect = largest_effects(sentences)
    end = len(text)
    for sentence in sentences:
        if len(_LINE_END.findall(text, end, sentence.start)) > 1:
            lines.append(Text())
        end = sentence.end
        rows = _wrap(_shaded(text, sentence, largest_share, largest_effect), width, console)
        if sentence.words and not colour:
            named = _strongest(text, sentence.words) if largest_effect else _most_attended(text, sentence.words)
            rows += _wrap([(named, "")], width, console)
        lead, share, style = Text(f"{percent(sentence.attention):>5}% "), sentence.attention / largest_sentence, _BAR
        if gutter > _GUTTER:
            share = abs(sentence.effect or 0) / (strongest or 1)
            style = _FOR if (sentence.effect or 0) >= 0 else _AGAINST
            lead.append(f"{signed(sentence.effect):>6}", style).append(" ")
        lead.append(f"{_bar(share, 8):<8}", style).append(" ")
        lines += [(Text(" " * gutter) if number else lead).append_text(row) for number, row in enumerate(rows)]
    return lines


def _shaded(text: str, sentence: Sentence, largest_share: float, largest_effect: float) -> Iterator[tuple[str, str]]:
    """Yields the sentence as pieces of text, each with its style. A tag becomes a space."""
    if sentence.words is None:
        yield TAG.sub(" ", text[sentence.start : sentence.end]), ""
        return
    for piece, word in pieces(text, sentence.start, sentence.end, sentence.words):
        if word is None:
            yield TAG.sub(" ", piece), ""
        else:
            if largest_effect:
                effect = (word.effect or 0) / largest_effect
                shades = _SHADES if effect >= 0 else _AGAINST_SHADES
                yield piece, shades[round((len(shades) - 1) * abs(effect))]
                continue
            share = word.attention * sentence.attention / largest_share
            yield piece, _SHADES[round((len(_SHADES) - 1) * share)]


def _most_attended(text: str, words: Sequence[Word]) -> str:
    best = sorted(words, key=lambda word: -word.attention)[:3]
    return "↳ " + " · ".join(f"{visible(text[word.start : word.end])} {percent(word.attention)}%" for word in best)


def _strongest(text: str, words: Sequence[Word]) -> str:
    best = sorted(words, key=lambda word: -abs(word.effect or 0))[:3]
    return "↳ " + " · ".join(f"{visible(text[word.start : word.end])} {signed(word.effect)}" for word in best)


def _wrap(styled: Iterable[tuple[str, str]], width: int, console: Console) -> list[Text]:
    """Returns lines of at most `width` columns. Each run of white space becomes one space; only words longer than a line are split."""
    line, after_space = Text(), True
    for piece, style in styled:
        shown = re.sub(r" +", " ", visible(piece))
        shown = shown.removeprefix(" ") if after_space else shown
        line.append(shown, style)
        after_space = shown.endswith(" ") if shown else after_space
    line.rstrip()
    if line.cell_len <= width:
        return [line]
    lines = [_strip(wrapped) for wrapped in line.wrap(console, width)]
    return [wrapped for wrapped in lines if wrapped]


def _strip(line: Text) -> Text:
    """Returns the line without the space at which it was wrapped, whichever end that space is at."""
    line.rstrip()
    return line[1:] if line.plain.startswith(" ") else line


def _clip(text: str, width: int) -> Text:
    clipped = Text(text)
    clipped.truncate(width, overflow="crop")
    return clipped


def _bar(share: float, width: int) -> str:
    """Returns a bar that is `width` columns long for a share of 1."""
    eighths = round(8 * width * share)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
