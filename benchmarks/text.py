"""Compare the encoder with NLTK's own loops, results and time: `python -m benchmarks.text --data FILE [FILE ...] [--all]`.

Both blank tags, find sentences and words with their spans, lower-case the words and look them up, on one core. They encode blocks of
reviews alternately. The times are processor times, so that other processes on the machine disturb less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from nltk.tokenize import WordPunctTokenizer
from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

from han.config import TextConfig
from han.text.encode import Encoder
from han.text.raw import blank_tags
from han.text.vocabulary import Vocab

MODEL = Path(__file__).parents[1] / "han" / "pretrained" / "imdb"
SAMPLE, BLOCK = 2_000, 500


class NltkLoops:
    """NLTK used as in its documentation, one review at a time."""

    def __init__(self, punkt: dict[str, Any], words: Sequence[str]) -> None:
        parameters = PunktParameters()
        parameters.abbrev_types = set(punkt["abbreviations"])
        parameters.collocations = set(map(tuple, punkt["collocations"]))
        parameters.sent_starters = set(punkt["sentence_starters"])
        parameters.ortho_context.update(punkt["orthography"])
        self.sentences, self.words = PunktSentenceTokenizer(parameters), WordPunctTokenizer()
        self.ids = {word: row for row, word in enumerate(words)}

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]], list[int]]:
        """Ids, spans and the number of words in each sentence."""
        text = blank_tags(text)
        ids, spans, lengths = [], [], []
        for first, last in self.sentences.span_tokenize(text):
            sentence = text[first:last]
            words = list(self.words.span_tokenize(sentence))
            ids += [self.ids.get(sentence[start:end].lower(), 0) for start, end in words]
            spans += [(first + start, first + end) for start, end in words]
            lengths.append(len(words))
        return ids, spans, lengths


def blocks(files: Sequence[Path], every: bool) -> Iterator[list[str]]:
    """Lists of BLOCK reviews, from all reviews or from SAMPLE reviews at equal distances in each file."""
    for file in files:
        texts = pq.read_table(file, columns=["text"])["text"].to_pylist()
        if not every:
            texts = texts[:: max(1, len(texts) // SAMPLE)][:SAMPLE]
        yield from (texts[first : first + BLOCK] for first in range(0, len(texts), BLOCK))


def count_differences(texts: Sequence[str], reference: Sequence[tuple[list[int], list[tuple[int, int]], list[int]]], batch: Any) -> int:
    """Number of reviews with different ids, spans or sentences. Reviews without a word are refused and not in `batch`."""
    expected = {index: encoded for index, encoded in enumerate(reference) if len(encoded[0]) or index in batch.kept}
    tokens, sentences = np.cumsum(batch.num_tokens), np.cumsum(batch.review_lengths)
    different = 0
    for row, index in enumerate(batch.kept.tolist()):
        ids, spans, lengths = expected.pop(index)
        own = slice(tokens[row] - batch.num_tokens[row], tokens[row])
        rows = slice(sentences[row] - batch.review_lengths[row], sentences[row])
        different += not (
            ids == batch.token_ids[own].tolist()
            and spans == [tuple(span) for span in batch.spans[own].tolist()]
            and lengths == batch.sentence_lengths[rows].tolist()
        )
    return different + len(expected)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Both sides over the same reviews, on one core."""

    count: int
    different: int  # reviews whose ids, spans or sentences are not NLTK's
    nltk_ms: float  # a review
    ours_ms: float
    ratios: list[float]  # NLTK's time over ours, by block


def compare(files: Sequence[Path], *, every: bool, model: Path = MODEL) -> Found:
    """Encode the same blocks of reviews in both ways."""
    punkt, vocab = json.loads((model / "punkt.json").read_text()), Vocab.read(model / "vocab.txt")
    encoder, nltk = Encoder(TextConfig(), punkt, vocab), NltkLoops(punkt, vocab.words)
    encoder.encode("It was good.")
    nltk_s, ours_s, ratios, different, count = 0.0, 0.0, [], 0, 0
    for texts in blocks(files, every):
        began = time.process_time()
        reference = [nltk.encode(text) for text in texts]
        between = time.process_time()
        batch = encoder.encode_batch(texts)
        ended = time.process_time()
        nltk_s, ours_s = nltk_s + between - began, ours_s + ended - between
        ratios.append((between - began) / (ended - between))
        different += count_differences(texts, reference, batch)
        count += len(texts)
    return Found(count=count, different=different, nltk_ms=1e3 * nltk_s / count, ours_ms=1e3 * ours_s / count, ratios=ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", nargs="+", type=Path, required=True, help="Parquet files with a column text")
    parser.add_argument("--all", action="store_true", help=f"compare every review, not {SAMPLE:,} of each file")
    parser.add_argument("--model", type=Path, default=MODEL, help="folder with punkt.json and vocab.txt")
    arguments = parser.parse_args()
    result = compare(arguments.data, every=arguments.all, model=arguments.model)
    print(f"reviews {result.count:,}, different {result.different:,}")
    print(f"NLTK's loops {result.nltk_ms:.3f} ms a review, encode_batch {result.ours_ms:.4f} ms")
    print(
        f"ratio of times: median of {len(result.ratios)} blocks {statistics.median(result.ratios):.1f}, smallest {min(result.ratios):.1f}"
    )
    sys.exit(result.different > 0)


if __name__ == "__main__":
    main()
