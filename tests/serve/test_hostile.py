"""Hostile reviews through the tokeniser and the tiny network: none crashes, and all scores are valid."""

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from han.config import TextConfig
from han.data.files import is_unicode
from han.model import artifact
from han.score.scorer import Scorer
from han.text.tokenise import Tokeniser, blank_tags
from han.types import Refusal, Tokens
from tests.helpers.hostile import PROBES, REVIEWS, Hostile
from tests.helpers.spans import is_sound

LIMIT = 5_000  # of the tiny model


@pytest.fixture(scope="module")
def scorer(tiny_model: Path) -> Scorer:
    return Scorer(artifact.load(tiny_model))


@pytest.mark.parametrize("case", REVIEWS, ids=lambda case: case.name)
def test_a_hostile_review_has_its_expected_outcome(scorer: Scorer, case: Hostile) -> None:
    text = case.text(LIMIT)
    (answer,) = scorer.score([text])
    assert (answer.reason if isinstance(answer, Refusal) else "scored") == case.expected
    assert isinstance(answer, Refusal) or is_sound(answer, text)


def test_hostile_reviews_score_the_same_in_one_batch_and_alone(scorer: Scorer) -> None:
    texts = [case.text(LIMIT) for case in REVIEWS]
    reasons = [answer.reason if isinstance(answer, Refusal) else "scored" for answer in scorer.score(texts)]
    assert reasons == [case.expected for case in REVIEWS]


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_is_scored_with_valid_spans(scorer: Scorer, name: str) -> None:
    text = PROBES[name](LIMIT)
    assert len(text) <= LIMIT
    (answer,) = scorer.score([text])
    assert not isinstance(answer, Refusal)
    assert is_sound(answer, text)


def test_a_text_over_the_limit_is_refused_before_it_is_processed(scorer: Scorer) -> None:
    text = "a. " * 4_000_000
    began = time.perf_counter()
    (answer,) = scorer.score([text])
    took_s = time.perf_counter() - began
    assert isinstance(answer, Refusal)
    assert took_s < 1  # some 0.1 ms; to cut it into sentences takes minutes


def test_the_refusal_of_a_hostile_review_does_not_echo_it(scorer: Scorer) -> None:
    for answer in scorer.score([case.text(LIMIT) for case in REVIEWS]):
        assert not isinstance(answer, Refusal) or (is_unicode(answer.message) and len(answer.message) < 100)


def test_a_text_that_is_not_utf8_is_recognised() -> None:
    assert {case.name: is_unicode(case.text(LIMIT)) for case in REVIEWS} == {case.name: case.is_unicode for case in REVIEWS}


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(
        alphabet=st.sampled_from(list(".!?,;:-()[]\"'<>/ \n\t\r\x0b\x1c\x85\u2028\u3000\u200b\u201d\u0301\ud800aA1_é\U0001f600")),
        max_size=80,
    )
)
def test_any_mix_of_characters_that_punkt_uses_gives_valid_spans(text: str) -> None:
    found = Tokeniser(TextConfig(), None).tokenise(text)
    if isinstance(found, Tokens):
        assert [blank_tags(text)[start:end].lower() for start, end in found.spans] == found.words
        assert found.sentence_lengths.sum() == len(found.words)
        assert found.sentence_lengths.min() >= 1
    else:
        assert found.reason == "empty_text"
