"""Text to answers, in one process. Every command and the service score through `Scorer`.

Texts are encoded, scored in batches of similar length, and returned in their order. A review's answer does not depend on the other
reviews: batches hold no padding, and the rounding of float32 stays below 1e-6. On a CPU the compiled kernels score (`network.FoldedHAN`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from han.config import ScoreConfig
from han.model import artifact, effects
from han.model.artifact import Artifact
from han.model.effects import Flip, WordMethod
from han.model.gru import compiled
from han.model.metrics import softmax
from han.model.network import HAN, FoldedHAN
from han.model.ragged import flat_batch, token_batches
from han.types import (
    Attention,
    AttentionDetail,
    EffectDetail,
    Effects,
    EncodedBatch,
    Float32s,
    Int32s,
    RaggedBatch,
    Refusal,
    Removal,
    Removals,
    Score,
    Sentence,
    UserError,
    Word,
)

# Of the words of a review: the estimate with the best faithfulness for its time, and the exact effect, which costs about 100 passes.
WORD_METHODS: dict[EffectDetail, WordMethod] = {"words": "midpoint_gradient", "exact_words": "leave_one_out"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredEffects:
    """The effects of R reviews, in nats, as flat arrays; NaN where an effect is not defined (see `model.effects`)."""

    evidence: Float32s  # [R]
    nothing: Float32s  # [R]
    sums: Float32s  # [R]
    interaction: Float32s  # [R]
    sentences: Float32s  # [S]
    words: Float32s | None  # [T], None without effects of words
    word_method: str | None  # as in `types.Effects`


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Answers to N texts, R of them scored, as flat arrays in the order of the texts."""

    kept: NDArray[np.int64]  # [R], places of the scored texts among the N
    refused: tuple[tuple[int, Refusal], ...]  # [N - R], places of the others, and why
    logits: Float32s  # [R, C]
    probabilities: Float32s  # [R, C]
    num_tokens: Int32s  # [R]
    num_unknown: Int32s  # [R], tokens that are not in the vocabulary
    num_characters_cut: Int32s  # [R]
    unfamiliar: NDArray[np.bool_]  # [R], the share of unknown tokens is above the threshold of the model
    uncertain: NDArray[np.bool_]  # [R], the probability of the label is below the threshold of the model
    review_lengths: Int32s  # [R], sentences
    sentence_lengths: Int32s  # [S], tokens
    sentence_spans: Int32s  # [S, 2], code points, end exclusive
    sentence_attention: Float32s  # [S]
    spans: Int32s  # [T, 2], code points, end exclusive
    word_attention: Float32s  # [T]
    effects: ScoredEffects | None  # None if not computed


class Scorer:
    """A loaded model that scores texts."""

    def __init__(self, model: Artifact, *, device: str = "cpu", batch_tokens: int = ScoreConfig().batch_tokens) -> None:
        """batch_tokens: maximum of tokens in one forward pass; a longer review gets a pass of its own."""
        self.labels = model.labels
        self.fingerprint = model.fingerprint
        self._encoder = model.encoder
        self._unfamiliar_above, self._uncertain_below = model.unfamiliar_above, model.uncertain_below or 0.0
        network = model.network.to(device)
        self._trained = network.eval()
        self._network: FoldedHAN | HAN = FoldedHAN(network) if device == "cpu" and compiled() else network
        self._sentence_level = self._network.sentences if isinstance(self._network, FoldedHAN) else None
        self._device = device
        self._batch_tokens = batch_tokens
        self._encoder.warm_up()

    def score(self, texts: Sequence[str], *, attention: AttentionDetail = "words", effects: EffectDetail = "none") -> list[Score | Refusal]:
        """One `Score` or `Refusal` for each text, in their order. A logit that is not finite is a `UserError`: the model is damaged.

        effects: also the effects of sentences; `words` adds an estimate for each word, `exact_words` the exact effect (about 100 passes).
        """
        scored = self.score_flat(texts, effects=effects)
        if num_broken := int((~np.isfinite(scored.logits)).any(axis=1).sum()):
            raise UserError(
                f"model {self.fingerprint} gave logits that are not finite for {num_broken} of {len(scored.kept)} reviews: its weights are "
                "damaged or diverged in training; use another model"
            )
        answers: list[Score | Refusal] = [refusal for _, refusal in scored.refused]
        places = [place for place, _ in scored.refused]
        answers += _scores(scored, labels=self.labels, fingerprint=self.fingerprint, attention=attention)
        places += scored.kept.tolist()
        return [answers[row] for row in np.argsort(places).tolist()]

    def score_flat(self, texts: Sequence[str], *, effects: EffectDetail = "none") -> Scored:
        """The answers as arrays. A damaged model can give a review NaN as probabilities: the caller decides what becomes of the others."""
        encoded = self._encoder.encode_batch(texts)
        logits, word_attention, sentence_attention, computed = self._forward(encoded, effects)
        with np.errstate(invalid="ignore"):  # of a logit that is infinite
            probabilities = softmax(logits).astype(np.float32)
        last_words = np.cumsum(encoded.sentence_lengths) - 1
        first_words = last_words - encoded.sentence_lengths + 1
        return Scored(
            kept=encoded.kept,
            refused=encoded.refused,
            logits=logits,
            probabilities=probabilities,
            num_tokens=encoded.num_tokens,
            num_unknown=encoded.num_unknown,
            num_characters_cut=encoded.num_characters_cut,
            unfamiliar=encoded.num_unknown > self._unfamiliar_above * encoded.num_tokens,
            uncertain=probabilities.max(axis=1) < self._uncertain_below,
            review_lengths=encoded.review_lengths,
            sentence_lengths=encoded.sentence_lengths,
            sentence_spans=np.stack([encoded.spans[first_words, 0], encoded.spans[last_words, 1]], axis=1),
            sentence_attention=sentence_attention,
            spans=encoded.spans,
            word_attention=word_attention,
            effects=computed,
        )

    def removals(self, text: str) -> Removals:
        """The smallest set of sentences, and the shortest phrase, without which the text has another label. A refused text has none.

        Exact within the limits of `model.effects.flipping_sentences` and `flipping_spans`; about 100 ms for a review of 300 words.
        """
        encoded = self._encoder.encode_batch([text])
        if not len(encoded.kept):
            return Removals(sentences=None, all_sets_tried=False, phrase=None)
        batch = flat_batch(encoded.token_ids, encoded.sentence_lengths, encoded.review_lengths)
        batch = dataclasses.replace(batch, token_ids=batch.token_ids.to(self._device))
        with torch.no_grad():
            vectors, _ = self._trained.words(self._trained.word_vectors(batch), batch.sentence_lengths)
        sentences = effects.flipping_sentences(self._trained, vectors)
        phrases = effects.flipping_spans(self._trained, batch)
        last_words = np.cumsum(encoded.sentence_lengths) - 1
        first_words = last_words - encoded.sentence_lengths + 1
        of_sentences = np.stack([encoded.spans[first_words, 0], encoded.spans[last_words, 1]], axis=1).tolist()
        return Removals(
            sentences=self._removal(sentences, [of_sentences[part] for part in sentences.parts]) if sentences else None,
            all_sets_tried=len(vectors) < 64 and 2 ** len(vectors) - 2 <= effects.SUBSETS,
            phrase=self._removal(phrases[0], [encoded.spans[list(phrases[0].parts)].ravel()[[0, -1]].tolist()]) if phrases else None,
        )

    def _removal(self, flip: Flip, spans: Sequence[Sequence[int]]) -> Removal:
        return Removal(spans=tuple((start, end) for start, end in spans), label=self.labels[flip.label], smallest=flip.exact)

    def _forward(self, encoded: EncodedBatch, detail: EffectDetail) -> tuple[Float32s, Float32s, Float32s, ScoredEffects | None]:
        """Logits [R, C], word attention [T], sentence attention [S] and effects in the order of the reviews, whatever the batches."""
        num_tokens, review_lengths = encoded.num_tokens, encoded.review_lengths
        logits = np.empty((len(num_tokens), len(self.labels)), dtype=np.float32)
        word_attention = np.empty(num_tokens.sum(), dtype=np.float32)
        sentence_attention = np.empty(review_lengths.sum(), dtype=np.float32)
        computed = _no_effects(encoded, detail)
        for rows in token_batches(num_tokens, max_tokens=self._batch_tokens):
            words, sentences = _elements(rows, num_tokens), _elements(rows, review_lengths)
            batch = flat_batch(encoded.token_ids[words], encoded.sentence_lengths[sentences], review_lengths[rows])
            batch = dataclasses.replace(batch, token_ids=batch.token_ids.to(self._device))
            answer = self._answer(batch) if computed is None else self._explain(computed, batch, rows, sentences, words, detail)
            logits[rows] = answer.logits.cpu().numpy()
            word_attention[words] = answer.word_attention.cpu().numpy()
            sentence_attention[sentences] = answer.sentence_attention.cpu().numpy()
        return logits, word_attention, sentence_attention, computed

    @torch.inference_mode()
    def _answer(self, batch: RaggedBatch) -> Attention:
        return self._network(batch)

    def _explain(
        self,
        computed: ScoredEffects,
        batch: RaggedBatch,
        rows: NDArray[np.int64],
        sentences: NDArray[np.int64],
        words: NDArray[np.int64],
        detail: EffectDetail,
    ) -> Attention:
        """Fill in the effects of a batch. Returns its answer, which the states of the effects contain."""
        with torch.no_grad():
            vectors, word_attention = self._network.read_words(batch)
        found = effects.sentence_effects(self._trained, vectors, batch.review_lengths, compiled_level=self._sentence_level)
        computed.evidence[rows] = found.evidence.cpu().numpy()
        computed.nothing[rows] = found.nothing.cpu().numpy()
        computed.sums[rows] = found.sums.cpu().numpy()
        computed.interaction[rows] = found.interaction.cpu().numpy()
        computed.sentences[sentences] = found.effects.cpu().numpy()
        if computed.words is not None:
            computed.words[words] = effects.word_effects(self._trained, batch, method=WORD_METHODS[detail]).cpu().numpy()
        return Attention(logits=found.logits, word_attention=word_attention, sentence_attention=found.attention, sentence_vectors=vectors)


def load(model: str = "imdb", *, device: str = "cpu") -> Scorer:
    """A `Scorer` of the shipped model (imdb), or of the folder of an artifact, a run or a sweep. A missing model is a `UserError`."""
    return Scorer(artifact.load(artifact.find(model)), device=device)


def concatenate(parts: Sequence[Scored]) -> Scored:
    """The answers to runs of texts, all with the same effects, as the answers to all of the texts."""
    offsets = np.cumsum([0, *(len(part.kept) + len(part.refused) for part in parts)]).tolist()
    computed = [part.effects for part in parts if part.effects]
    return Scored(
        **_columns(parts)
        | {
            "kept": np.concatenate([part.kept + offset for part, offset in zip(parts, offsets, strict=False)]),
            "refused": tuple((place + offset, why) for part, offset in zip(parts, offsets, strict=False) for place, why in part.refused),
            "effects": ScoredEffects(**_columns(computed)) if computed else None,
        }
    )


def schema(labels: Sequence[str]) -> pa.Schema:
    """The columns that scoring adds, in order; the same names, units and nulls as `Score`."""
    return pa.schema(
        [
            ("label", pa.string()),
            ("probability", pa.float32()),
            ("probabilities", pa.struct([(label, pa.float32()) for label in labels])),
            ("sentences", pa.list_(_SENTENCE)),
            ("num_tokens", pa.int32()),
            ("num_unknown", pa.int32()),
            ("num_characters_cut", pa.int32()),
            ("unfamiliar", pa.bool_()),
            ("uncertain", pa.bool_()),
            ("model", pa.dictionary(pa.int32(), pa.string())),
            ("effects", _EFFECTS),
        ]
    )


def schema_of_0_1(labels: Sequence[str]) -> pa.Schema:
    """The columns as version 0.1 wrote them: without flags and effects."""
    fields = [field for field in schema(labels) if field.name not in ("unfamiliar", "uncertain", "effects")]
    word = pa.struct([field for field in _WORD if field.name != "effect"])
    sentence = pa.struct([*(field for field in _SENTENCE if field.name not in ("effect", "words")), ("words", pa.list_(word))])
    return pa.schema([pa.field("sentences", pa.list_(sentence)) if field.name == "sentences" else field for field in fields])


def to_arrow(scored: Scored, *, labels: Sequence[str], fingerprint: str, attention: AttentionDetail) -> pa.Table:
    """R rows of `schema`. The column `sentences` is null with attention `none`; its `words` are null with attention `sentences`.

    Effects are null where they are not computed, or not defined: of the only sentence of a review, or its only word.
    """
    num_reviews, num_sentences = len(scored.review_lengths), len(scored.sentence_lengths)
    answers = scored.logits.argmax(axis=1)
    computed = scored.effects
    words: pa.Array = pa.nulls(num_sentences, _SENTENCE.field("words").type)
    if attention == "words":
        of_words = _finite(computed.words if computed else None, len(scored.spans))
        words = _lists(scored.sentence_lengths, _structs(_WORD, *scored.spans.T, scored.word_attention, of_words))
    sentences: pa.Array = pa.nulls(num_reviews, pa.list_(_SENTENCE))
    if attention != "none":
        of_sentences = _finite(computed.sentences if computed else None, num_sentences)
        structs = _structs(_SENTENCE, *scored.sentence_spans.T, scored.sentence_attention, of_sentences, words)
        sentences = _lists(scored.review_lengths, structs)
    wanted = schema(labels)
    columns = [
        pa.DictionaryArray.from_arrays(pa.array(answers, pa.int32()), pa.array(labels, pa.string())).cast(pa.string()),
        pa.array(scored.probabilities[np.arange(num_reviews), answers]),
        _structs(wanted.field("probabilities").type, *scored.probabilities.T),
        sentences,
        pa.array(scored.num_tokens),
        pa.array(scored.num_unknown),
        pa.array(scored.num_characters_cut),
        pa.array(scored.unfamiliar),
        pa.array(scored.uncertain),
        pa.DictionaryArray.from_arrays(pa.array(np.zeros(num_reviews, dtype=np.int32)), pa.array([fingerprint])),
        pa.nulls(num_reviews, _EFFECTS) if computed is None else _effects_column(computed),
    ]
    return pa.Table.from_arrays(columns, schema=wanted)


def as_json(score: Score) -> dict[str, Any]:
    """A `Score` as JSON-ready dicts and lists, named as the columns of `schema`."""
    sentences = None
    if score.sentences is not None:
        sentences = [
            {
                "start": sentence.start,
                "end": sentence.end,
                "attention": sentence.attention,
                "effect": sentence.effect,
                "words": sentence.words
                and [{"start": word.start, "end": word.end, "attention": word.attention, "effect": word.effect} for word in sentence.words],
            }
            for sentence in score.sentences
        ]
    own = {field.name: getattr(score, field.name) for field in dataclasses.fields(Score)}
    return {**own, "sentences": sentences, "effects": score.effects and dataclasses.asdict(score.effects)}


_WORD = pa.struct([("start", pa.int32()), ("end", pa.int32()), ("attention", pa.float32()), ("effect", pa.float32())])
_SENTENCE = pa.struct([*_WORD, ("words", pa.list_(_WORD))])
_EFFECTS = pa.struct(
    [(name, pa.float32()) for name in ("evidence", "nothing", "sum", "interaction")]
    + [("method", pa.string()), ("word_method", pa.string())]
)


def _effects_column(computed: ScoredEffects) -> pa.StructArray:
    num_reviews = len(computed.evidence)
    numbers = (_finite(values, num_reviews) for values in (computed.evidence, computed.nothing, computed.sums, computed.interaction))
    names = (pa.repeat(pa.scalar(name, pa.string()), num_reviews) for name in ("leave_one_out", computed.word_method))
    return _structs(_EFFECTS, *numbers, *names)


def _columns(parts: Sequence[Scored] | Sequence[ScoredEffects]) -> dict[str, Any]:
    """The fields of all parts: arrays end to end, other fields as in the first part."""
    values = {field.name: [getattr(part, field.name) for part in parts] for field in dataclasses.fields(parts[0])}
    return {name: np.concatenate(each) if isinstance(each[0], np.ndarray) else each[0] for name, each in values.items()}


def _finite(values: Float32s | None, length: int) -> pa.Array:
    """The values as float32, null where they are not finite; all null if there are none."""
    return pa.nulls(length, pa.float32()) if values is None else pa.array(values, mask=~np.isfinite(values))


def _no_effects(encoded: EncodedBatch, detail: EffectDetail) -> ScoredEffects | None:
    """Room for the effects of a batch; None without effects."""
    if detail == "none":
        return None
    num_reviews, num_sentences = len(encoded.review_lengths), len(encoded.sentence_lengths)
    evidence, nothing, sums, interaction = np.empty((4, num_reviews), np.float32)
    return ScoredEffects(
        evidence=evidence,
        nothing=nothing,
        sums=sums,
        interaction=interaction,
        sentences=np.empty(num_sentences, np.float32),
        words=np.empty(len(encoded.token_ids), np.float32) if detail in WORD_METHODS else None,
        word_method=WORD_METHODS.get(detail),
    )


def _scores(scored: Scored, *, labels: Sequence[str], fingerprint: str, attention: AttentionDetail) -> list[Score]:
    sentences = _sentences(scored, with_words=attention == "words") if attention != "none" else []
    ends = np.cumsum(scored.review_lengths).tolist()
    scores = []
    for row, answer in enumerate(scored.logits.argmax(axis=1).tolist()):
        probabilities = scored.probabilities[row].tolist()
        scores.append(
            Score(
                label=labels[answer],
                probability=probabilities[answer],
                probabilities=dict(zip(labels, probabilities, strict=True)),
                sentences=tuple(sentences[ends[row] - int(scored.review_lengths[row]) : ends[row]]) if sentences else None,
                num_tokens=int(scored.num_tokens[row]),
                num_unknown=int(scored.num_unknown[row]),
                num_characters_cut=int(scored.num_characters_cut[row]),
                unfamiliar=bool(scored.unfamiliar[row]),
                uncertain=bool(scored.uncertain[row]),
                model=fingerprint,
                effects=_effects(scored.effects, row) if scored.effects else None,
            )
        )
    return scores


def _effects(computed: ScoredEffects, row: int) -> Effects:
    return Effects(
        evidence=float(computed.evidence[row]),
        nothing=float(computed.nothing[row]),
        sum=_numbers(computed.sums[row : row + 1])[0],
        interaction=_numbers(computed.interaction[row : row + 1])[0],
        method="leave_one_out",
        word_method=computed.word_method,
    )


def _numbers(values: Float32s) -> list[float | None]:
    """The values, None where they are not finite."""
    return [value if np.isfinite(value) else None for value in values.tolist()]


def _sentences(scored: Scored, *, with_words: bool) -> list[Sentence]:
    computed = scored.effects
    of_words = [None] * len(scored.spans) if computed is None or computed.words is None else _numbers(computed.words)
    of_sentences = [None] * len(scored.sentence_lengths) if computed is None else _numbers(computed.sentences)
    words = [
        Word(start=start, end=end, attention=attention, effect=effect)
        for (start, end), attention, effect in zip(scored.spans.tolist(), scored.word_attention.tolist(), of_words, strict=True)
        if with_words
    ]
    ends = np.cumsum(scored.sentence_lengths).tolist()
    firsts = (np.cumsum(scored.sentence_lengths) - scored.sentence_lengths).tolist()
    return [
        Sentence(start=start, end=end, attention=attention, effect=effect, words=tuple(words[first:last]) if with_words else None)
        for (start, end), attention, effect, first, last in zip(
            scored.sentence_spans.tolist(), scored.sentence_attention.tolist(), of_sentences, firsts, ends, strict=True
        )
    ]


def _elements(rows: NDArray[np.int64], lengths: Int32s) -> NDArray[np.int64]:
    """Indices of the elements of `rows` in a flat array of all rows."""
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    own = lengths[rows]
    return np.repeat(starts[rows] - (np.cumsum(own) - own), own) + np.arange(own.sum())


def _structs(kind: pa.StructType, *columns: Any) -> pa.StructArray:
    return pa.StructArray.from_arrays([pa.array(column) for column in columns], fields=list(kind))


def _lists(lengths: Int32s, values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()), values)
