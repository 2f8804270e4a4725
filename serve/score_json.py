"""Scores as JSON, straight from the arrays: the names, units and nulls of `han.score.as_json`, without its dataclasses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from pydantic_core import to_json

from han.score.scorer import Scored, ScoredEffects
from serve.backend import Answer, AnswerDetail

_FIELDS = ("num_tokens", "num_unknown", "num_characters_cut", "unfamiliar", "uncertain")


def score_json(scored: Scored, labels: Sequence[str], fingerprint: str, attention: Sequence[AnswerDetail]) -> list[Answer]:
    """JSON or a refusal for each of the N texts of `scored`, in their order. attention: the detail of each text, [N].

    Effects of words are left out unless the detail is `exact_words`. A number that is not finite is null.
    """
    results: dict[int, Answer] = dict(scored.refused)
    computed, sentences, words = scored.effects, _rows_of_sentences(scored), _rows_of_words(scored)
    fields = zip(*(getattr(scored, name).tolist() for name in _FIELDS), strict=True)
    columns = (scored.kept.tolist(), scored.review_lengths.tolist(), scored.logits.argmax(axis=1).tolist(), scored.probabilities.tolist())
    for row, (place, length, choice, probabilities, values) in enumerate(zip(*columns, fields, strict=True)):
        detail = attention[place]
        own = [_sentence(sentence, [*islice(words, sentence[-1])], detail) for sentence in islice(sentences, length)]
        score = {
            "label": labels[choice],
            "probability": probabilities[choice],
            "probabilities": dict(zip(labels, probabilities, strict=True)),
            "sentences": None if detail == "none" else own,
            **dict(zip(_FIELDS, values, strict=True)),
            "model": fingerprint,
            "effects": None if detail == "none" or computed is None else _effects(computed, row, detail),
        }
        results[place] = to_json(score, inf_nan_mode="null")
    return [results[place] for place in range(len(attention))]


def _rows_of_sentences(scored: Scored) -> Iterator[tuple[Any, ...]]:
    """Start, end, attention, effect and number of words of each sentence."""
    effects = scored.effects.sentences.tolist() if scored.effects else [None] * len(scored.sentence_lengths)
    columns = (*scored.sentence_spans.T.tolist(), scored.sentence_attention.tolist(), effects, scored.sentence_lengths.tolist())
    return zip(*columns, strict=True)


def _rows_of_words(scored: Scored) -> Iterator[tuple[Any, ...]]:
    """Start, end, attention and effect of each word."""
    computed = scored.effects.words if scored.effects else None
    effects = [None] * len(scored.spans) if computed is None else computed.tolist()
    return zip(*scored.spans.T.tolist(), scored.word_attention.tolist(), effects, strict=True)


def _sentence(sentence: tuple[Any, ...], words: list[tuple[Any, ...]], detail: AnswerDetail) -> dict[str, Any] | None:
    if detail == "none":
        return None
    own = [
        {"start": start, "end": end, "attention": attention, "effect": effect if detail == "exact_words" else None}
        for start, end, attention, effect in words
        if detail != "sentences"
    ]
    start, end, attention, effect, _ = sentence
    return {"start": start, "end": end, "attention": attention, "effect": effect, "words": None if detail == "sentences" else own}


def _effects(computed: ScoredEffects, row: int, detail: AnswerDetail) -> dict[str, Any]:
    return {
        "evidence": float(computed.evidence[row]),
        "nothing": float(computed.nothing[row]),
        "sum": float(computed.sums[row]),
        "interaction": float(computed.interaction[row]),
        "method": "leave_one_out",
        "word_method": computed.word_method if detail == "exact_words" else None,
    }
