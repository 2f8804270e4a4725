"""Word vectors: trained here, read from a file, or random."""

import ssl
from pathlib import Path

import numpy as np
import pytest

from han.config import VectorsConfig
from han.text import vectors
from han.types import Float32s, UserError

WORDS = ("<unk>", "good", "fine", "bad", "awful", "nowhere")
PLEASANT, UNPLEASANT = ("sun", "warm", "smile", "song"), ("rain", "cold", "frown", "noise")
PLAIN = "good 1 2 3\nbad -1 -2 -3\nunheard 7 7 7\n"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A corpus in which good and fine share contexts, and bad and awful share others."""
    rng = np.random.default_rng(1)
    lines = []
    for _ in range(300):
        company, words = (PLEASANT, ("good", "fine")) if rng.random() < 0.5 else (UNPLEASANT, ("bad", "awful"))
        lines.append(" ".join([*rng.permutation(company)[:3], rng.choice(words)]))
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def train(corpus: Path, words: tuple[str, ...] = WORDS, *, num_threads: int = 1, epochs: int = 5, **options: object) -> Float32s:
    config = VectorsConfig(size=8, epochs=epochs, window=3)
    return vectors.train_in_domain(corpus, words, config=config, seed=1, num_threads=num_threads, **options)  # type: ignore[arg-type]


def write(folder: Path, text: str) -> Path:
    path = folder / "some.vec"
    path.write_text(text, encoding="utf-8")
    return path


def similarity(one: Float32s, other: Float32s) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_words_of_similar_contexts_have_closer_vectors(corpus: Path) -> None:
    _, good, fine, bad, awful, *_ = train(corpus, WORDS + PLEASANT + UNPLEASANT, epochs=150)
    assert min(similarity(good, fine), similarity(bad, awful)) > max(similarity(good, bad), similarity(fine, awful))


def test_every_word_has_a_row_and_unseen_words_keep_their_random_row(corpus: Path) -> None:
    trained, untrained = train(corpus), vectors.random(len(WORDS), 8, seed=1)
    assert (trained.dtype, trained.shape) == (np.float32, (6, 8))
    np.testing.assert_array_equal((trained == untrained).all(axis=1), [True, False, False, False, False, True])


def test_one_thread_gives_the_same_vectors_every_time(corpus: Path) -> None:
    np.testing.assert_array_equal(train(corpus), train(corpus))


def test_several_threads_train_the_same_rows(corpus: Path) -> None:
    untrained = vectors.random(len(WORDS), 8, seed=1)
    np.testing.assert_array_equal((train(corpus, num_threads=2) == untrained).all(axis=1), [True, False, False, False, False, True])


def test_a_line_over_the_gensim_limit_of_10_000_words_is_used_completely(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    others = tuple(f"word{number}" for number in range(12_000))  # all different: repeated ones would be thinned out before the limit
    path.write_text(" ".join(others) + " good fine" * 500 + "\n")
    first_values_within = 0.5 / 8  # gensim begins with values from -0.5 / E to 0.5 / E
    assert np.abs(train(path, WORDS + others)[1:3]).max() > 2 * first_values_within


def test_progress_is_reported_after_each_pass(corpus: Path) -> None:
    reports: list[tuple[int, int]] = []
    train(corpus, progress=lambda epoch, epochs: reports.append((epoch, epochs)))
    assert reports == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


def test_a_vocabulary_of_only_the_unknown_word_gets_random_vectors(corpus: Path) -> None:
    np.testing.assert_array_equal(train(corpus, ("<unk>",)), vectors.random(1, 8, seed=1))


@pytest.mark.parametrize("text", [PLAIN, "3 3\n" + PLAIN], ids=["GloVe, no header", "fastText, header"])
def test_a_word_of_the_file_gets_its_vector_and_a_missing_word_a_random_one(tmp_path: Path, text: str) -> None:
    loaded, num_found = vectors.load_file(write(tmp_path, text), WORDS, seed=2)
    expected = vectors.random(len(WORDS), 3, seed=2)
    expected[1], expected[3] = [1, 2, 3], [-1, -2, -3]
    np.testing.assert_array_equal(loaded, expected)
    assert (loaded.dtype, num_found) == (np.float32, 2)


def test_trailing_spaces_empty_lines_and_words_with_spaces_are_accepted(tmp_path: Path) -> None:
    text = "3 3\n. . . 9 9 9\ngood 1 2 3 \n\nname at x@example.org 9 9 9\ncafé 4 5 6"
    loaded, num_found = vectors.load_file(write(tmp_path, text), ("<unk>", "good", "café", "."), seed=2)
    np.testing.assert_array_equal(loaded[1:3], [[1, 2, 3], [4, 5, 6]])
    assert num_found == 2


def test_the_first_vector_of_a_repeated_word_is_used(tmp_path: Path) -> None:
    loaded, _ = vectors.load_file(write(tmp_path, "good 1 2 3\ngood 4 5 6\n"), WORDS, seed=2)
    np.testing.assert_array_equal(loaded[1], [1, 2, 3])


def test_reading_does_not_change_the_https_context_the_terminal_or_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path, context = write(tmp_path, PLAIN), ssl._create_default_https_context
    monkeypatch.chdir(tmp_path)
    vectors.load_file(path, WORDS, seed=2)
    assert ssl._create_default_https_context is context
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("good 1 2 3\nbad 1 2\n", "line 2 has 2 numbers, not 3"),
        ("good 1 2 3\nbad 1 2 3 4\n", "line 2 has 4 numbers, not 3"),
        ("2 3\ngood 1 2 3\nbad 1 2 3 4\n", "line 3 has 4 numbers, not 3"),
        ("", "begins with 0 fields"),
        ("good 1 2\n", "begins with 3 fields"),
        ("good 1 2 3\nbad 1 2 three\n", "not a number.*three"),
        ("good 1 2 nan\n", "not finite"),
        ("unheard 1 2 3\n", "none of the vocabulary's 6 words"),
    ],
)
def test_a_file_without_vectors_is_a_mistake_of_one_line(tmp_path: Path, text: str, message: str) -> None:
    context = ssl._create_default_https_context
    with pytest.raises(UserError, match=message) as caught:
        vectors.load_file(write(tmp_path, text), WORDS, seed=2)
    assert "\n" not in str(caught.value)
    assert ssl._create_default_https_context is context


def test_a_path_that_is_not_a_file_is_a_mistake(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.vec"):
        with pytest.raises(UserError, match="is not a file"):
            vectors.load_file(path, WORDS, seed=2)
