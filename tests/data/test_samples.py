"""The bundled data and the generator of planted evidence have their documented properties."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from nltk.tokenize.punkt import PunktSentenceTokenizer

from han.data import samples
from han.data.samples import planted
from han.types import Refusal, Score, Sentence, Word

SPLITS = Path(__file__).parent / "splits.jsonl"
LISTED = {word for words in planted.DECIDING.values() for word in words}


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def reviews() -> list[dict[str, Any]]:
    return read_lines(samples.REVIEWS)


@pytest.fixture(scope="module")
def generated() -> list[planted.Planted]:
    return list(planted.generate(301, seed=5))


def spans_of(text: str) -> list[tuple[int, int]]:
    return list(PunktSentenceTokenizer().span_tokenize(text))


def lower_words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def test_the_bundled_reviews_are_half_positive_and_half_negative(reviews: list[dict[str, Any]]) -> None:
    assert Counter(review["label"] for review in reviews) == {"positive": 160, "negative": 160}


def test_bundled_ratings_agree_with_their_labels(reviews: list[dict[str, Any]]) -> None:
    assert {review["rating"] for review in reviews if review["label"] == "positive"} == {7, 8, 9, 10}
    assert {review["rating"] for review in reviews if review["label"] == "negative"} == {1, 2, 3, 4}


def test_bundled_ids_and_texts_are_unique(reviews: list[dict[str, Any]]) -> None:
    assert [review["review_id"] for review in reviews] == [f"sample/{number:04d}" for number in range(1, len(reviews) + 1)]
    assert len({" ".join(lower_words(review["text"])) for review in reviews}) == len(reviews)


def test_bundled_reviews_are_short(reviews: list[dict[str, Any]]) -> None:
    assert {len(spans_of(review["text"])) for review in reviews} <= set(range(1, 13))


def test_no_two_bundled_reviews_share_seven_words_in_a_row(reviews: list[dict[str, Any]]) -> None:
    seen: Counter[tuple[str, ...]] = Counter()
    for review in reviews:
        words = lower_words(review["text"])
        seen.update({tuple(words[start : start + 7]) for start in range(len(words) - 6)})
    assert [run for run, count in seen.items() if count > 1] == []


def test_bundled_labels_are_mixed(reviews: list[dict[str, Any]]) -> None:
    runs = re.findall("p+|n+", "".join(review["label"][0] for review in reviews))
    assert max(map(len, runs)) <= 4


def test_the_word_lists_are_long_and_disjoint() -> None:
    assert all(len(set(words)) >= 20 for words in planted.DECIDING.values())
    assert len(LISTED) == sum(map(len, planted.DECIDING.values()))


def test_the_numbers_of_planted_labels_differ_by_at_most_one(generated: list[planted.Planted]) -> None:
    counts = Counter(review.label for review in generated)
    assert abs(counts["positive"] - counts["negative"]) == 1


def test_planted_ids_and_texts_are_unique(generated: list[planted.Planted]) -> None:
    assert [review.review_id for review in generated] == [f"planted/5/{number}" for number in range(301)]
    assert len({review.text for review in generated}) == 301


def test_listed_words_occur_only_in_the_deciding_sentence(generated: list[planted.Planted]) -> None:
    for review in generated:
        elsewhere = review.text[: review.sentence_start] + review.text[review.sentence_end :]
        assert LISTED.isdisjoint(lower_words(elsewhere))


def test_word_spans_are_the_listed_words_of_the_deciding_sentence(generated: list[planted.Planted]) -> None:
    for review in generated:
        deciding = [review.text[start:end] for start, end in review.words]
        evidence = review.text[review.sentence_start : review.sentence_end]
        assert deciding == [word for word in re.findall(r"\w+", evidence) if word.lower() in LISTED]
        assert set(deciding) <= set(planted.DECIDING[review.label])
        assert len(deciding) >= 2


def test_untrained_punkt_splits_exactly_at_the_planted_boundaries(generated: list[planted.Planted]) -> None:
    for review in generated:
        spans = spans_of(review.text)
        assert spans[review.sentence] == (review.sentence_start, review.sentence_end)
        assert planted.FEWEST_FILLERS + 1 <= len(spans) <= planted.MOST_FILLERS + 1
        for start, end in spans:
            assert re.fullmatch(r"[A-Z][^.!?]+[.!?]", review.text[start:end])


def test_the_deciding_sentence_can_have_any_position(generated: list[planted.Planted]) -> None:
    assert {review.sentence for review in generated} >= set(range(planted.MOST_FILLERS - 2))


def test_filler_has_hundreds_of_words_and_each_occurs_under_both_labels() -> None:
    met: dict[str, Counter[str]] = {label: Counter() for label in planted.LABELS}
    for review in planted.generate(2_000, seed=6):
        met[review.label].update(word for word in lower_words(review.text) if word not in LISTED)
    assert met["positive"].keys() == met["negative"].keys()
    assert len(met["positive"]) >= 400
    frequent = {word: count + met["negative"][word] for word, count in met["positive"].items() if count >= 30}
    # Half of n throws of a coin: 5 standard deviations are 2.5 sqrt(n), never passed by chance in 500 words.
    assert all(abs(met["positive"][word] - total / 2) <= 2.5 * total**0.5 + 0.05 * total for word, total in frequent.items())


def test_a_seed_gives_the_same_reviews_and_a_larger_set_starts_with_them(generated: list[planted.Planted]) -> None:
    assert list(planted.generate(100, seed=5)) == generated[:100]


def test_seeds_give_different_reviews(generated: list[planted.Planted]) -> None:
    assert {review.text for review in planted.generate(100, seed=6)}.isdisjoint(review.text for review in generated)


def test_the_file_holds_the_generated_reviews_without_their_evidence(tmp_path: Path) -> None:
    planted.write_jsonl(tmp_path / "planted.jsonl", 50, 5)
    written = {line["review_id"]: line for line in read_lines(tmp_path / "planted.jsonl")}
    assert written == {
        review.review_id: {"review_id": review.review_id, "text": review.text, "label": review.label}
        for review in planted.generate(50, seed=5)
    }


def test_neutral_reviews_hold_no_evidence_and_are_mixed_with_the_others(tmp_path: Path) -> None:
    planted.write_jsonl(tmp_path / "planted.jsonl", 40, 5, num_neutral=10)
    lines = read_lines(tmp_path / "planted.jsonl")
    assert Counter(line["label"] for line in lines) == {"positive": 20, "negative": 20, "neutral": 10}
    assert all(LISTED.isdisjoint(lower_words(line["text"])) for line in lines if line["label"] == "neutral")
    assert {line["label"] for line in lines[-10:]} != {"neutral"}


def test_shares_found_count_reviews_whose_planted_evidence_comes_first() -> None:
    first, second, third = planted.generate(3, seed=5)
    refusal = Refusal(reason="empty_text", message="no word")
    shares = planted.shares_found([first, second, third], [looked(first, True), looked(second, False), refusal])
    assert (shares.attention, shares.effect, shares.word) == pytest.approx((1 / 3, 2 / 3, 1 / 3))


def looked(review: planted.Planted, found: bool) -> Score:
    """A score with most attention on the deciding sentence and the largest effect on a deciding word, or with both elsewhere.

    The deciding sentence always has the largest effect of a sentence.
    """
    (start, end), decided = review.words[0], {True: 0.9, False: -0.9}[found]
    word = (Word(start=start, end=end, attention=0.5, effect=decided), Word(start=start, end=start, attention=0.5, effect=0.0))
    sentences = tuple(
        Sentence(
            start=start,
            end=end,
            attention=0.9 if (index == review.sentence) == found else 0.1,
            words=word if index == review.sentence else (),
            effect=2.0 if index == review.sentence else None,
        )
        for index, (start, end) in enumerate(spans_of(review.text))
    )
    return Score(
        label=review.label,
        probability=1.0,
        probabilities={review.label: 1.0},
        sentences=sentences,
        num_tokens=1,
        num_unknown=0,
        num_characters_cut=0,
        unfamiliar=False,
        uncertain=False,
        model="none",
    )


def test_the_hundred_splits_are_substrings_in_order_with_only_space_and_tags_between() -> None:
    cases = read_lines(SPLITS)
    assert len(cases) == len({case["text"] for case in cases}) == 100
    for case in cases:
        rest = case["text"]
        for sentence in case["sentences"]:
            gap, found, rest = rest.partition(sentence)
            assert found, f"{sentence!r} is not in {case['text']!r}"
            assert re.fullmatch(r"(\s|<br ?/?>)*", gap)
        assert re.fullmatch(r"(\s|<br ?/?>)*", rest)
