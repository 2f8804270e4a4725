"""Initial word vectors, a row for each word of a vocabulary: trained on these reviews, read from a file, or random.

Each function imports gensim or torchtext itself, because each of the two takes two seconds to load.
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
from han.types import Float32s, UserError

RANDOM_SCALE = 0.1  # standard deviation of an element; that of trained vectors is larger
MIN_WIDTH = 3  # torchtext reads narrower lines as headers


def train_in_domain(
    corpus: Path,
    words: Sequence[str],
    *,
    config: VectorsConfig,
    seed: int,
    num_threads: int,
    progress: Callable[[int, int], None] | None = None,
) -> Float32s:
    """word2vec on a text file: float32 [V, E], a row for each of `words`. A word that the file lacks gets a random row.

    `corpus` has a sentence or a review on each line, with a space between tokens. It is streamed, so memory grows with the number of
    different words and not with the file. Only a single thread gives the same vectors every time. `progress(epoch, epochs)` is called
    after each pass; the first epoch is 1.

    The algorithm is skip-gram with negative sampling (Mikolov et al., NIPS 2013), not CBOW. After 3 passes over 5,000 reviews a linear
    classifier of their mean vectors was right in 83% of cases against 73%. The neighbours of "excellent" were outstanding, superb and
    incredible against wonderful, extremely and mediocre. It takes three times as long: about 165,000 tokens a second on a core.
    """
    from gensim.models import Word2Vec
    from gensim.models.word2vec import LineSentence
    from gensim.utils import RULE_DISCARD, RULE_KEEP

    rows = {word: row for row, word in enumerate(words)}
    # gensim's `corpus_file` is slower than an iterator over lines (264,000 tokens a second against 326,000 on 2 shared cores): it gives
    # each thread a fixed part of the file, so all wait for the slowest. It also drops the end of a line of more than 10,000 words.
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
    """Vectors from a text file (.vec of fastText or word2vec, .txt of GloVe): float32 [V, E] and the number of `words` in the file.

    The rows of the other words are random. The file decides E. It is streamed, and only the lines of `words` are kept. A `UserError` is
    raised if the file is missing, its lines differ in width, a number is not finite, or it has none of the words.
    """
    with tempfile.TemporaryDirectory(prefix="han-vectors-") as folder:
        kept_lines = Path(folder) / "known.vec"
        width = _copy_lines(path, kept_lines, set(words))
        with _torchtext_contained():
            from torchtext.vocab import Vectors

            try:
                loaded = Vectors(str(kept_lines), cache=folder)
            except ValueError as error:
                raise UserError(f"{path} has a vector with something that is not a number: {error}") from None
    values = loaded.vectors.numpy()
    if not np.isfinite(values).all():
        raise UserError(f"{path} has a number that is not finite: give a file of finite vectors")
    vectors = random(len(words), width, seed=seed)
    rows = {word: row for row, word in enumerate(words)}
    vectors[[rows[word] for word in loaded.itos]] = values
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
    """Copy the first line of each of `words`, without the header. Returns the number of elements in each line.

    torchtext makes a tensor of every line that it reads (2.6 GB for GloVe's 840B file). It also refuses words with a space in them.
    """
    wanted = {word.encode() for word in words}
    with _open(source) as lines, target.open("wb") as kept:
        first = next(lines, b"").split()
        has_header = len(first) == 2 and all(number.isdigit() for number in first)
        width = int(first[1]) if has_header else len(first) - 1
        if width < MIN_WIDTH:
            raise UserError(
                f"{source} begins with {len(first)} fields: each line of a file of vectors has a word and at least {MIN_WIDTH} numbers"
            )
        if not has_header:
            lines.seek(0)
        for number, line in enumerate(lines, start=1 + has_header):
            if line.isspace():
                continue
            word, *entries = line.rstrip().rsplit(b" ", width)
            if len(entries) != width or _ends_in_a_number(word):
                raise UserError(f"{source}, line {number} has {len(line.split()) - 1} numbers, not {width}: give a text file of vectors")
            if word in wanted:
                wanted.remove(word)
                kept.write(line)
    if len(wanted) == len(words):
        raise UserError(f"{source} has none of the vocabulary's {len(words)} words: give vectors of the same language")
    return width


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path} is not a file: give a file of word vectors (.vec or .txt), in-domain or random") from None


def _ends_in_a_number(word: bytes) -> bool:
    """Whether the "word" is a word and one number too many. Some files have words with spaces, such as `. . .`."""
    _, space, last = word.rpartition(b" ")
    try:
        return bool(space) and float(last) is not None
    except ValueError:
        return False


@contextlib.contextmanager
def _torchtext_contained() -> Iterator[None]:
    """Undo two effects of torchtext 0.6.0: it turns off certificate checks for the whole process, and it draws a progress bar."""
    verified = ssl._create_default_https_context
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        ssl._create_default_https_context = verified
