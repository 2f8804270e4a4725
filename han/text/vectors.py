"""What the embedding starts from: a row for each word of a vocabulary, trained on these reviews, read from a file, or random.

gensim and torchtext are loaded by the function that needs them: each takes two seconds that no other step should wait for.
"""

from __future__ import annotations

import contextlib
import io
import ssl
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from han.config import VectorsConfig
from han.types import Float32s, Mistake

RANDOM_SCALE = 0.1  # standard deviation of a random element, below that of trained ones: a row nobody has learnt says little
MIN_WIDTH = 3  # torchtext takes narrower lines for headers


def train_in_domain(
    corpus: Path,
    words: Sequence[str],
    *,
    config: VectorsConfig,
    seed: int,
    num_threads: int,
    progress: Callable[[int, int], None] | None = None,
) -> Float32s:
    """word2vec on a text file: float32 [V, E], a row for each of `words`; random where the file does not hold the word.

    `corpus` has a sentence or a review on each line, its tokens separated by a space, and is streamed: memory grows with the number of
    different words, not with the file. One thread gives the same vectors every time, several do not. `progress(epoch, epochs)` is called
    after each pass, counted from 1.

    Skip-gram with negative sampling (Mikolov et al., NIPS 2013), not CBOW: after 3 passes over 5,000 reviews a linear read-out of
    their mean vectors was right in 83% against 73%, and the neighbours of "excellent" were outstanding, superb, incredible against
    wonderful, extremely, mediocre. It costs three times the time: about 165,000 tokens a second and core.
    """
    from gensim.models import Word2Vec
    from gensim.models.word2vec import LineSentence
    from gensim.utils import RULE_DISCARD, RULE_KEEP

    rows = {word: row for row, word in enumerate(words)}
    # A line iterator and not gensim's `corpus_file`: that one gives each thread a fixed part of the file, so all wait for the slowest
    # (264,000 tokens a second against 326,000 on 2 shared cores), and drops the end of lines that overflow its batch of 10,000 words.
    lines = LineSentence(str(corpus))
    model = Word2Vec(
        vector_size=config.size,
        window=config.window,
        epochs=config.epochs,
        sg=1,
        negative=5,
        min_count=1,
        seed=seed,
        workers=num_threads,
    )
    model.build_vocab(lines, trim_rule=lambda word, count, min_count: RULE_KEEP if word in rows else RULE_DISCARD)
    vectors = random(len(words), config.size, seed=seed)
    if len(model.wv):
        report = [_epoch_reporter(progress, config.epochs)] if progress else []
        model.train(lines, total_examples=model.corpus_count, epochs=config.epochs, callbacks=report)
        vectors[[rows[word] for word in model.wv.index_to_key]] = model.wv.vectors
    return vectors


def load_file(path: Path, words: Sequence[str], *, seed: int) -> tuple[Float32s, int]:
    """Vectors from a local file (fastText's or word2vec's .vec text, GloVe's .txt): float32 [V, E] and how many of `words` it holds.

    The other rows are random. E is the file's. The file is streamed; only the lines of `words` are kept. A file that is missing, holds
    lines of another width, numbers that are not finite, or none of the words is a `Mistake`.
    """
    with tempfile.TemporaryDirectory(prefix="han-vectors-") as folder:
        known = Path(folder) / "known.vec"
        width = _copy_lines(path, known, set(words))
        with _torchtext_contained():
            from torchtext.vocab import Vectors

            try:
                loaded = Vectors(str(known), cache=folder)
            except ValueError as error:
                raise Mistake(f"{path} holds something that is not a number: {error}") from None
    found = loaded.vectors.numpy()
    if not np.isfinite(found).all():
        raise Mistake(f"{path} holds a number that is not finite: give a file of finite vectors")
    vectors = random(len(words), width, seed=seed)
    rows = {word: row for row, word in enumerate(words)}
    vectors[[rows[word] for word in loaded.itos]] = found
    return vectors, len(loaded.itos)


def random(num_words: int, size: int, *, seed: int) -> Float32s:
    """Small normal vectors: float32 [V, E]."""
    return np.random.default_rng(seed).standard_normal((num_words, size), dtype=np.float32) * np.float32(RANDOM_SCALE)


def _epoch_reporter(progress: Callable[[int, int], None], epochs: int) -> object:
    from gensim.models.callbacks import CallbackAny2Vec

    class Reporter(CallbackAny2Vec):  # type: ignore[misc]
        epoch = 0

        def on_epoch_end(self, model: object) -> None:
            self.epoch += 1
            progress(self.epoch, epochs)

    return Reporter()


def _copy_lines(source: Path, target: Path, words: set[str]) -> int:
    """Copy the first line of each of `words`, without the header; returns the width of all lines.

    torchtext makes a tensor of every line it is given (2.6 GB of GloVe's 840B file), and refuses that file's words with a space in them.
    """
    wanted = {word.encode() for word in words}
    with _open(source) as lines, target.open("wb") as kept:
        first = next(lines, b"").split()
        has_header = len(first) == 2 and all(number.isdigit() for number in first)
        width = int(first[1]) if has_header else len(first) - 1
        if width < MIN_WIDTH:
            raise Mistake(
                f"{source} begins with {len(first)} fields: a file of vectors has lines of a word and {MIN_WIDTH} or more numbers"
            )
        if not has_header:
            lines.seek(0)
        for number, line in enumerate(lines, start=1 + has_header):
            if line.isspace():
                continue
            word, *entries = line.rstrip().rsplit(b" ", width)
            if len(entries) != width or _ends_in_a_number(word):
                raise Mistake(f"{source}, line {number} has {len(line.split()) - 1} numbers, not {width}: give a text file of vectors")
            if word in wanted:
                wanted.remove(word)
                kept.write(line)
    if len(wanted) == len(words):
        raise Mistake(f"{source} holds none of the vocabulary's {len(words)} words: give vectors of the same language")
    return width


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except (FileNotFoundError, IsADirectoryError):
        raise Mistake(f"{path} is not a file: give one of word vectors (.vec or .txt), or in-domain, or random") from None


def _ends_in_a_number(word: bytes) -> bool:
    """Whether a "word" is really a word and a number too many: files do hold words with spaces in them, such as `. . .`."""
    _, space, last = word.rpartition(b" ")
    try:
        return bool(space) and float(last) is not None
    except ValueError:
        return False


@contextlib.contextmanager
def _torchtext_contained() -> Iterator[None]:
    """torchtext 0.6.0 turns certificate checks off for the whole process and draws a progress bar; neither leaves this block."""
    verified = ssl._create_default_https_context
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        ssl._create_default_https_context = verified
