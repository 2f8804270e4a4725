import dataclasses
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from han.data import samples
from han.model import artifact
from han.score import scorer as scoring
from han.score.scorer import Scorer
from han.types import AttentionDetail, EffectDetail, Refusal, Score, UserError

TEXTS = [
    "I loved it. The film was good!<br /><br />Not dull, not bad.",
    "  ",
    "Bad.",
    "The plot? \U0001f600 The film was NOT good, it was dull… and bad. I loved the cat. It was good. Dull. Bad! Not good.",
    "x" * 6_000,
    "Good, good, good.",
]


@pytest.fixture(scope="module")
def scorer(tiny_model: Path) -> Scorer:
    return Scorer(artifact.load(tiny_model))


def answers(scorer: Scorer, texts: Sequence[str], attention: AttentionDetail = "words") -> list[Score]:
    return [answer for answer in scorer.score(texts, attention=attention) if isinstance(answer, Score)]


def table(scorer: Scorer, texts: Sequence[str] = TEXTS, attention: AttentionDetail = "words", effects: EffectDetail = "none") -> pa.Table:
    return scoring.to_arrow(
        scorer.score_flat(texts, effects=effects), labels=scorer.labels, fingerprint=scorer.fingerprint, attention=attention
    )


def numbers(answer: Score) -> list[float]:
    """Every number of a score that could depend on the other texts of a batch."""
    assert answer.sentences is not None
    attention = [sentence.attention for sentence in answer.sentences]
    words = [value for sentence in answer.sentences for word in sentence.words or () for value in (word.attention, word.effect)]
    effects = [sentence.effect for sentence in answer.sentences]
    if answer.effects is not None:
        effects += [answer.effects.evidence, answer.effects.sum, answer.effects.interaction]
    return [*answer.probabilities.values(), *attention, *(math.nan if value is None else value for value in words + effects)]


def test_scores_are_in_the_order_of_the_texts(scorer: Scorer) -> None:
    found = scorer.score(TEXTS)
    assert [each.reason if isinstance(each, Refusal) else each.num_tokens for each in found] == [15, "empty_text", 2, 33, "too_long", 6]


@pytest.mark.parametrize("detail", ["sentences", "words"])
def test_the_effects_of_a_long_review_are_the_same_alone_and_in_company(detail: EffectDetail) -> None:
    shipped = Scorer(artifact.load(artifact.find("imdb")))
    reviews = [json.loads(line)["text"] for line in samples.REVIEWS.read_text(encoding="utf-8").splitlines()[:120]]
    texts = [
        "Great.",
        " ".join(reviews[:60]),
        "A fine film. Not dull at all.",
        *reviews,
    ]  # the sum over 300 sentences adds up their rounding
    together = shipped.score(texts, effects=detail)
    for text, beside in zip(texts[:20], together, strict=False):
        (alone,) = shipped.score([text], effects=detail)
        assert isinstance(alone, Score)
        assert isinstance(beside, Score)
        assert numbers(alone) == pytest.approx(numbers(beside), abs=1e-6, rel=0, nan_ok=True)


def test_an_empty_list_of_texts_gives_no_scores(scorer: Scorer) -> None:
    assert scorer.score([]) == []
    assert table(scorer, []).num_rows == table(scorer, [" "]).num_rows == 0


def test_every_span_slices_its_word_out_of_the_raw_text(scorer: Scorer) -> None:
    answer = answers(scorer, TEXTS[:1])[0]
    cut = [TEXTS[0][word.start : word.end] for sentence in answer.sentences or () for word in sentence.words or ()]
    assert cut == ["I", "loved", "it", ".", "The", "film", "was", "good", "!", "Not", "dull", ",", "not", "bad", "."]
    for sentence in answer.sentences or ():
        words = sentence.words or ()
        assert (sentence.start, sentence.end) == (words[0].start, words[-1].end)


def test_attention_sums_to_1_over_words_and_over_sentences(scorer: Scorer) -> None:
    for answer in answers(scorer, TEXTS):
        sentences = answer.sentences or ()
        assert sum(sentence.attention for sentence in sentences) == pytest.approx(1, abs=1e-5)
        for sentence in sentences:
            assert sum(word.attention for word in sentence.words or ()) == pytest.approx(1, abs=1e-5)


def test_the_label_is_the_most_probable_and_probabilities_sum_to_1(scorer: Scorer) -> None:
    for answer in answers(scorer, TEXTS):
        assert answer.label == max(answer.probabilities, key=answer.probabilities.__getitem__)
        assert answer.probability == answer.probabilities[answer.label]
        assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-6)


def test_words_outside_the_vocabulary_are_counted(scorer: Scorer) -> None:
    assert [answer.num_unknown for answer in answers(scorer, ["The film was zyx, good."])] == [1]


words = st.sampled_from(["good", "Bad", "film", "zyx", "was", "not", "dull,", "loved", "it.", "The", "end!"])
reviews = st.lists(st.lists(words, min_size=1, max_size=40).map(" ".join), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(texts=reviews, batch_tokens=st.integers(1, 300), seed=st.integers(0, 99))
def test_a_review_scores_the_same_in_any_batch_and_order(tiny_model: Path, texts: list[str], batch_tokens: int, seed: int) -> None:
    scorer = Scorer(artifact.load(tiny_model), batch_tokens=batch_tokens)
    order = np.random.default_rng(seed).permutation(len(texts))
    together = answers(scorer, [texts[place] for place in order])
    for place, answer in zip(order, together, strict=True):
        alone = answers(scorer, [texts[place]])[0]
        np.testing.assert_allclose(numbers(answer), numbers(alone), rtol=0, atol=1e-6)
        assert (answer.label, answer.num_tokens) == (alone.label, alone.num_tokens)


@pytest.mark.parametrize("attention", ["none", "sentences", "words"])
@pytest.mark.parametrize("effects", ["none", "sentences", "words", "exact_words"])
def test_parquet_json_and_python_have_equal_scores(scorer: Scorer, attention: AttentionDetail, effects: EffectDetail) -> None:
    file = io.BytesIO()
    pq.write_table(table(scorer, attention=attention, effects=effects), file)
    rows = pq.read_table(file).to_pylist()
    scores = scorer.score(TEXTS, attention=attention, effects=effects)
    expected = [scoring.as_json(score) for score in scores if isinstance(score, Score)]
    assert json.loads(json.dumps(expected)) == expected == rows
    assert list(expected[0]) == [field.name for field in dataclasses.fields(Score)] == scoring.schema(scorer.labels).names


def test_an_effect_is_the_evidence_that_is_lost_without_the_sentence(scorer: Scorer) -> None:
    text = "It was good. Dull and bad. I loved the film!"
    (score,) = [answer for answer in scorer.score([text], effects="exact_words") if isinstance(answer, Score)]
    assert score.sentences
    assert score.effects
    for sentence in score.sentences:
        (rest,) = answers(scorer, [text[: sentence.start] + text[sentence.end :]])
        assert sentence.effect == pytest.approx(score.effects.evidence - log_odds(rest, score.label), abs=1e-5)
        for word in sentence.words or ():
            (rest,) = answers(scorer, [text[: word.start] + " " * (word.end - word.start) + text[word.end :]])
            if len(rest.sentences or ()) == 3:  # a sentence ends at its full stop
                assert word.effect == pytest.approx(score.effects.evidence - log_odds(rest, score.label), abs=1e-5)
    assert score.effects.sum == pytest.approx(sum(sentence.effect or 0 for sentence in score.sentences), abs=1e-5)
    total = score.effects.nothing + score.effects.sum + (score.effects.interaction or 0)
    assert total == pytest.approx(score.effects.evidence, abs=1e-5)
    assert (score.effects.method, score.effects.word_method) == ("leave_one_out", "leave_one_out")


def log_odds(score: Score, label: str) -> float:
    return float(np.log(score.probabilities[label]) - np.log(1 - score.probabilities[label]))


def test_the_only_sentence_of_a_review_has_no_effect(scorer: Scorer) -> None:
    (row,) = table(scorer, ["Bad."], effects="exact_words").to_pylist()
    assert row["sentences"][0]["effect"] is None
    assert (row["effects"]["sum"], row["effects"]["interaction"]) == (None, None)
    assert row["effects"]["evidence"] > 0


def test_effects_depend_on_no_other_review_and_do_not_change_scores(scorer: Scorer) -> None:
    together = scorer.score(TEXTS, effects="words")
    for text, plain, answer in zip(TEXTS, scorer.score(TEXTS), together, strict=True):
        if isinstance(answer, Score) and isinstance(plain, Score):
            (alone,) = [each for each in scorer.score([text], effects="words") if isinstance(each, Score)]
            effects = [[sentence.effect or 0 for sentence in each.sentences or ()] for each in (alone, answer)]
            np.testing.assert_allclose(*effects, rtol=0, atol=1e-6)
            assert answer.probabilities == plain.probabilities


def test_omitted_attention_is_null_and_not_empty(scorer: Scorer) -> None:
    assert table(scorer, attention="none")["sentences"].null_count == 4
    sentences = pa.concat_arrays(table(scorer, attention="sentences")["sentences"].chunks).flatten()
    assert sentences.field("words").null_count == len(sentences) > 0


def test_the_schema_equals_the_documented_one(scorer: Scorer) -> None:
    word = "struct<start: int32, end: int32, attention: float, effect: float>"
    assert {field.name: str(field.type) for field in table(scorer).schema} == {
        "label": "string",
        "probability": "float",
        "probabilities": "struct<negative: float, positive: float>",
        "sentences": f"list<item: struct<start: int32, end: int32, attention: float, effect: float, words: list<item: {word}>>>",
        "num_tokens": "int32",
        "num_unknown": "int32",
        "num_characters_cut": "int32",
        "unfamiliar": "bool",
        "uncertain": "bool",
        "model": "dictionary<values=string, indices=int32, ordered=0>",
        "effects": "struct<evidence: float, nothing: float, sum: float, interaction: float, method: string, word_method: string>",
    }


def test_pandas_and_duckdb_read_the_nested_columns(scorer: Scorer, tmp_path: Path) -> None:
    pq.write_table(table(scorer), tmp_path / "scores.parquet")
    expected = answers(scorer, TEXTS)[0]
    frame = pd.read_parquet(tmp_path / "scores.parquet")
    assert frame["sentences"][0][0]["words"][1]["start"] == 2
    assert frame["probabilities"][0]["positive"] == pytest.approx(expected.probabilities["positive"])
    query = 'select probabilities.positive, sentences[1].words[2]."end", model from read_parquet(?) limit 1'
    found = duckdb.connect().execute(query, [str(tmp_path / "scores.parquet")])
    assert found.fetchall() == [(expected.probabilities["positive"], 7, scorer.fingerprint)]


def test_a_score_that_is_not_finite_is_refused_with_the_fingerprint_of_the_model(tiny_model: Path) -> None:
    model = artifact.load(tiny_model)
    model.network.read_out.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match=rf"model {model.fingerprint} gave logits that are not finite for 1 of 1 reviews"):
        Scorer(model).score(TEXTS[:1])


def test_the_compiled_scorer_equals_the_torch_scorer(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = Scorer(artifact.load(tiny_model))
    monkeypatch.setattr(scoring, "compiled", lambda: None)
    slow = Scorer(artifact.load(tiny_model))
    assert type(fast._network) is not type(slow._network)
    for ours, theirs in zip(answers(fast, TEXTS), answers(slow, TEXTS), strict=True):
        np.testing.assert_allclose(numbers(ours), numbers(theirs), rtol=0, atol=1e-6)


@pytest.mark.parametrize("text", ["\U0001f60d\U0001f60d\U0001f60d", "Der Film war leider langweilig."])
def test_a_text_of_unknown_words_is_flagged_as_unfamiliar(scorer: Scorer, text: str) -> None:
    familiar, foreign = answers(scorer, ["I loved it. The film was good!", text])
    assert (familiar.unfamiliar, foreign.unfamiliar) == (False, True)
    assert table(scorer, ["I loved it. The film was good!", text])["unfamiliar"].to_pylist() == [False, True]


def test_the_model_sets_the_threshold_of_unfamiliar_texts(tiny_model: Path) -> None:
    model = artifact.load(tiny_model)
    patient = Scorer(dataclasses.replace(model, metrics={**model.metrics, "unfamiliar_above": 1.0}))
    assert not answers(patient, ["Zyx qwv."])[0].unfamiliar


def test_a_score_is_uncertain_only_below_the_threshold_of_its_model(tiny_model: Path) -> None:
    model = artifact.load(tiny_model)
    (probability,) = [answer.probability for answer in answers(Scorer(model), TEXTS[:1])]
    for threshold, flagged in ((None, False), (probability - 0.001, False), (probability + 0.001, True)):
        thresholded = Scorer(dataclasses.replace(model, metrics={**model.metrics, "uncertain_below": threshold}))
        assert [answer.uncertain for answer in answers(thresholded, TEXTS[:1])] == [flagged]
        assert table(thresholded, TEXTS[:1])["uncertain"].to_pylist() == [flagged]


def test_the_documented_query_finds_the_words_with_the_largest_effects(scorer: Scorer, tmp_path: Path) -> None:
    texts = ["The film was good. Not dull!", "Bad film. It was bad, dull."] * 30
    (tmp_path / "scores" / "scores").mkdir(parents=True)
    scores = table(scorer, texts, effects="words")
    scores = scores.append_column("text", pa.array(texts)).append_column("review_id", pa.array([f"r{row:02}" for row in range(60)]))
    pq.write_table(scores, tmp_path / "scores" / "scores" / "part.parquet")
    document = (Path(__file__).parents[2] / "docs" / "explanations.md").read_text(encoding="utf-8")
    query = document.partition("```sql\n")[2].partition("```")[0].replace("scores/scores", str(tmp_path / "scores" / "scores"))
    found = duckdb.connect().execute(query).fetchall()
    rows = [word for row in scores.to_pylist() for sentence in row["sentences"] for word in sentence["words"]]
    assert sum(total for _, _, total, _, _, _ in found) == pytest.approx(sum(word["effect"] for word in rows), abs=1e-3)
    assert {(word, times) for _, word, _, _, times, _ in found} >= {("good", 30), ("bad", 60)}
    assert {example for *_, example in found} == {"r00", "r01"}


def test_without_what_a_removal_names_the_text_has_the_other_label(scorer: Scorer) -> None:
    found = {"sentences": 0, "phrase": 0}
    for number in range(20):
        draw = np.random.default_rng(number)
        text = " ".join(" ".join(draw.choice(["good", "bad", "not", "dull", "film", "loved"], size=5)).capitalize() + "." for _ in range(4))
        removals, (whole,) = scorer.removals(text), answers(scorer, [text])
        for name, removal in (("sentences", removals.sentences), ("phrase", removals.phrase)):
            if removal is not None:
                rest = text
                for start, end in reversed(removal.spans):
                    rest = rest[:start] + rest[end:]
                (answer,) = answers(scorer, [rest])
                if len(answer.sentences or ()) == 4 - (len(removal.spans) if name == "sentences" else 0):  # else the rest is cut elsewhere
                    assert answer.label == removal.label != whole.label
                    found[name] += 1
    assert min(found.values()) > 4
    assert scorer.removals("  ").sentences is None
