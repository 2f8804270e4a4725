import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from han.config import TextConfig
from han.text.oracle import Oracle
from han.text.raw import blank_tags, has_word
from han.text.tokenise import Tokeniser, learn_punkt
from han.types import Refusal, Tokens

TOKENISER = Tokeniser(TextConfig(), None)


def tokens(text: str, tokeniser: Tokeniser = TOKENISER) -> Tokens:
    found = tokeniser.tokenise(text)
    assert isinstance(found, Tokens)
    return found


@given(st.text(max_size=300))
def test_every_span_slices_its_word_out_of_the_raw_text(text: str) -> None:
    found = TOKENISER.tokenise(text)
    if isinstance(found, Refusal):
        assert found.reason == "empty_text"
    else:
        assert [blank_tags(text)[start:end].lower() for start, end in found.spans] == found.words
        assert found.sentence_lengths.sum() == len(found.words)
        assert found.sentence_lengths.min() >= 1
        assert (np.diff(found.spans.reshape(-1)) >= 0).all()


def test_texts_whose_words_never_repeat_do_not_grow_memory() -> None:
    tokeniser = Oracle(TextConfig(), learn_punkt(["Mr. Smith went to St. Paul. He liked it there."]))
    orthography = tokeniser._sentences._params.ortho_context
    before = dict(orthography)
    for number in range(200):
        tokeniser.tokenise("".join(f" 7. Word{number}x{place} 7. other{number}x{place}" for place in range(50)))
    assert dict(orthography) == before


def test_only_white_space_and_tags_are_dropped() -> None:
    text = "I loved it.<br /><br />Not dull! 10/10 <b>really</b>..."
    assert tokens(text).words == ["i", "loved", "it", ".", "not", "dull", "!", "10", "/", "10", "really", "..."]
    assert tokens(text).sentence_lengths.tolist() == [4, 3, 5]


def test_tags_are_blanked_to_equal_length_and_a_heart_is_not_a_tag() -> None:
    assert blank_tags("a<br />b <3 c</i>") == "a" + " " * 6 + "b <3 c" + " " * 4


@pytest.mark.parametrize("text", ["", "  \n", "...!?", "<br /><p></p>", "\u200b\u202e", "___"])
def test_a_text_without_a_word_is_refused_as_empty(text: str) -> None:
    assert not has_word(blank_tags(text))
    assert TOKENISER.tokenise(text).reason == "empty_text"  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["好看", "👍🏽", "รัก", "İ", "a\u0301" * 50])
def test_words_of_any_script_and_pictographs_are_words(text: str) -> None:
    assert len(tokens(text).words) >= 1


def test_the_limit_of_characters_is_inclusive() -> None:
    tokeniser = Tokeniser(TextConfig(max_characters=5), None)
    assert isinstance(tokeniser.tokenise("abcde"), Tokens)
    assert tokeniser.tokenise("abcdef").reason == "too_long"  # type: ignore[union-attr]


def test_text_beyond_the_limits_is_counted() -> None:
    tokeniser = Tokeniser(TextConfig(max_sentences=1, max_tokens=2), None)
    found = tokens("One two three. Four five.", tokeniser)
    assert found.words == ["one", "two"]
    assert found.num_characters_cut == len(" three.") + len("Four five.")


def test_punkt_learns_abbreviations_and_its_parameters_survive_json() -> None:
    import json

    learnt = learn_punkt(["We met Mr. Smith. Then Mr. Jones came, and Mr. Brown left."] * 20)
    tokeniser = Tokeniser(TextConfig(), json.loads(json.dumps(learnt)))
    assert tokens("Here is Mr. Smith. He sat.", tokeniser).sentence_lengths.tolist() == [6, 3]
    assert tokens("Here is Mr. Smith. He sat.").sentence_lengths.tolist() == [4, 2, 3]
