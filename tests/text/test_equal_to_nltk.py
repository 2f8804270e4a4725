"""The compiled loops return what NLTK returns, for every text."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.tokenize import WordPunctTokenizer
from nltk.tokenize.punkt import PunktLanguageVars, PunktSentenceTokenizer

from han.config import TextConfig
from han.text import compiled
from han.text.characters import CLOSES, ENDS_WORD, PUNCTUATION, STARTS_NO_WORD
from han.text.encode import Encoder
from han.text.oracle import Oracle
from han.text.raw import blank_tags
from han.text.tokenise import CHUNK_CHARACTERS, Tokeniser, learn_punkt
from han.text.vocabulary import Interner, Vocab
from han.types import EncodedBatch, Refusal
from tests.helpers.hostile import PROBES, REVIEWS
from tests.helpers.texts import TEXTS

CORPUS = [
    "We met Mr. Smith. Then Mr. Jones came, and the St. Paul people left. He sat. It was good. I saw J. Smith the 7. time.",
    "Ltd. companies e.g. x-ltd. are good. The U.S. is the U.S. it was. A good smith. The good the bad. It is. it was. He he I i.",
]


@functools.cache
def learnt() -> dict[str, Any]:
    punkt = learn_punkt(CORPUS * 20)
    punkt["collocations"] += [["j", "smith"], ["##number##", "good"], ["u.s", "it"]]
    punkt["sentence_starters"] += ["he", "the"]
    return punkt


CONFIGS: dict[str, Callable[[], tuple[TextConfig, dict[str, Any] | None]]] = {
    "plain": lambda: (TextConfig(), None),
    "learnt": lambda: (TextConfig(), learnt()),
    "limited": lambda: (TextConfig(max_sentences=2, max_tokens=3, max_characters=150), learnt()),
    "any tag": lambda: (TextConfig(tags="any"), learnt()),
}


@functools.cache
def both(name: str) -> tuple[Tokeniser, Oracle]:
    config, punkt = CONFIGS[name]()
    return Tokeniser(config, punkt), Oracle(config, punkt)


def rows(batch: EncodedBatch, words: Sequence[str], num_texts: int) -> list[Any]:
    """The encoding of each text of a batch, as plain lists."""
    answers: list[Any] = [None] * num_texts
    for place, refusal in batch.refused:
        answers[place] = refusal
    tokens, sentences = np.cumsum(batch.num_tokens), np.cumsum(batch.review_lengths)
    for row, place in enumerate(batch.kept.tolist()):
        own = slice(tokens[row] - batch.num_tokens[row], tokens[row])
        lengths = batch.sentence_lengths[sentences[row] - batch.review_lengths[row] : sentences[row]]
        named = [words[number] for number in batch.token_ids[own].tolist()]
        answers[place] = (named, batch.spans[own].tolist(), lengths.tolist(), int(batch.num_characters_cut[row]))
    return answers


def by_oracle(oracle: Oracle, text: str) -> Any:
    tokens = oracle.tokenise(text)
    if isinstance(tokens, Refusal):
        return tokens
    return tokens.words, tokens.spans.tolist(), tokens.sentence_lengths.tolist(), tokens.num_characters_cut


def check(name: str, texts: Sequence[str]) -> None:
    tokeniser, oracle = both(name)
    words = Interner()
    batch = tokeniser.tokenise_batch(texts, words)
    assert rows(batch, words.words, len(texts)) == [by_oracle(oracle, text) for text in texts]


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=100, deadline=None)
@given(texts=st.lists(TEXTS, max_size=6))
def test_any_text_is_tokenised_like_nltk(name: str, texts: list[str]) -> None:
    check(name, texts)


@pytest.mark.parametrize("name", CONFIGS)
def test_hostile_texts_are_tokenised_like_nltk(name: str) -> None:
    check(name, [case.text(3_000) for case in REVIEWS] + [make(3_000) for make in PROBES.values()])


@settings(max_examples=100, deadline=None)
@given(text=TEXTS)
def test_the_loops_blank_the_same_tags_as_the_regular_expressions(text: str) -> None:
    for rule in ("html", "any"):
        chunk = compiled.Chunk([text], compiled.rules(TextConfig(tags=rule)), compiled.knowledge(None))
        assert chunk.chars.tobytes().decode("utf-32-le", "surrogatepass") == blank_tags(text, rule)


@settings(max_examples=100, deadline=None)
@given(text=TEXTS)
def test_ids_equal_those_of_the_words_of_nltk(text: str) -> None:
    vocab = Vocab(["<unk>", "the", ".", "good", "mr", "i\u0307", "\u03bf\u03b4\u03bf\u03c2", "\u03c2", "\U0001f600", "a\u0301", "br"])
    batch = Encoder(TextConfig(), learnt(), vocab).encode_batch([text])
    tokens = both("learnt")[1].tokenise(text)
    assert batch.token_ids.tolist() == ([] if isinstance(tokens, Refusal) else vocab.ids(tokens.words).tolist())
    assert batch.num_unknown.sum() == np.count_nonzero(batch.token_ids == 0)


def test_reviews_in_several_groups_keep_their_order() -> None:
    long = "It was good. " * (CHUNK_CHARACTERS // 30)
    texts = [long, "", "\u03a3 first.", long, "Mr. Smith.", "\u0130", long, "...", "end"]
    config = TextConfig(max_characters=CHUNK_CHARACTERS)
    words = Interner()
    batch = Tokeniser(config, None).tokenise_batch(texts, words)
    assert rows(batch, words.words, len(texts)) == [by_oracle(Oracle(config, None), text) for text in texts]


def test_nltk_is_used_without_numba_and_one_warning_is_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(config: TextConfig) -> None:
        raise ImportError("No module named 'numba'")

    monkeypatch.setattr(compiled, "rules", broken)
    compiled.load_kernel.cache_clear()
    try:
        for _ in range(2):
            check("learnt", ["Here is Mr. Smith.", "", "He sat. \u0130"])
    finally:
        compiled.load_kernel.cache_clear()
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_the_classes_of_punctuation_equal_those_of_nltk() -> None:
    variables = PunktLanguageVars()
    every = [chr(code) for code in range(0x3000)]
    ends = {character for character in every if _matches(variables._re_non_word_chars, character)}
    starts_none = {character for character in every if not _matches(variables._re_word_start, character)}
    closes = {character for character in every if variables.re_boundary_realignment.match(character)}
    assert ends == set(PUNCTUATION[ENDS_WORD])
    assert starts_none == set(PUNCTUATION[STARTS_NO_WORD])
    assert closes == set(PUNCTUATION[CLOSES])


def test_the_other_rules_of_nltk_have_not_changed() -> None:
    """If NLTK changes, this test fails, and han/text/kernel.py must be adapted."""
    assert PunktLanguageVars.sent_end_chars == (".", "?", "!")
    assert PunktLanguageVars._re_multi_char_punct == r"(?:\-{2,}|\.{2,}|(?:\.\s){2,}\.)"
    assert tuple(";:,.!?") == PunktSentenceTokenizer.PUNCTUATION
    assert WordPunctTokenizer()._pattern == r"\w+|[^\w\s]+"


def _matches(pattern: str, character: str) -> bool:
    import regex

    return regex.fullmatch(pattern, character) is not None
