from collections import Counter
from pathlib import Path

import pytest

from han.config import VocabConfig
from han.text.vocabulary import Vocab, build
from han.types import UserError


def test_words_are_sorted_by_frequency_and_then_by_spelling() -> None:
    vocab = build(Counter(b=3, a=3, c=5, d=1), VocabConfig(min_count=2, max_size=10))
    assert vocab.words == ("<unk>", "c", "a", "b")


def test_the_size_counts_the_unknown_word() -> None:
    assert len(build(Counter(a=3, b=2, c=1), VocabConfig(min_count=1, max_size=3))) == 3


def test_the_unknown_word_keeps_its_index() -> None:
    assert Vocab(["<unk>", "good"]).ids(["so", "good"]).tolist() == [0, 1]


def test_a_vocabulary_is_saved_and_loaded(tmp_path: Path) -> None:
    words = ("<unk>", "naïve", "👍", ".", '"')
    Vocab(words).write(tmp_path / "vocab.txt")
    assert Vocab.read(tmp_path / "vocab.txt").words == words


@pytest.mark.parametrize("words", [[], ["good"], ["<unk>", "a", "a"]])
def test_invalid_vocabularies_are_refused(words: list[str]) -> None:
    with pytest.raises(UserError):
        Vocab(words)
