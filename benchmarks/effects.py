"""Measures the effects of the shipped model: their error against the definition, their time, and their faithfulness.

    python -m benchmarks.effects TEST.parquet [NUM_REVIEWS [NUM_REVIEWS_FOR_WORDS]]

TEST.parquet has a column `text`. One thread. Prints JSON.
"""

import json
import sys
import time
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from han.evaluate import faithfulness
from han.model import artifact, effects
from han.model.network import HAN, FoldedHAN
from han.model.ragged import flat_batch
from han.score.scorer import Scorer
from han.types import RaggedBatch, Score, Sentence


def main(path: str, num_reviews: int = 1_000, num_for_words: int = 200) -> None:
    torch.set_num_threads(1)
    model = artifact.load(artifact.find("imdb"))
    texts = pq.read_table(path, columns=["text"])["text"].to_pylist()
    chosen = np.random.default_rng(0).permutation(len(texts))[:num_reviews]
    encoded = model.encoder.encode_batch([texts[row] for row in chosen])
    batch = flat_batch(encoded.token_ids, encoded.sentence_lengths, encoded.review_lengths)
    folded = FoldedHAN(model.network)
    results: dict[str, Any] = {"through_scorer": through_scorer(Scorer(model), [texts[row] for row in chosen])}
    results |= {"exactness_and_time": exactness(model.network, folded, batch), "one_review_ms": word_times(model.network, batch)}
    results["sentences"] = faithfulness.report(model.network, batch, model=folded, words=False)["sentences"]
    results["words"] = faithfulness.report(model.network, first_reviews(batch, num_for_words), model=folded)["words"]
    print(json.dumps(results, indent=1))


def through_scorer(scorer: Scorer, texts: list[str]) -> dict[str, float]:
    """Compares the effect of every sentence with scoring the text without it. A text whose other sentences change is left out."""
    compared, left_out, largest_error = 0, 0, 0.0
    for text, whole in zip(texts, scorer.score(texts, effects="sentences"), strict=True):
        if not isinstance(whole, Score) or whole.sentences is None or whole.effects is None or len(whole.sentences) == 1:
            continue
        without = [text[: each.start] + " " + text[each.end :] for each in whole.sentences]
        for sentence, rest in zip(whole.sentences, scorer.score(without, effects="sentences"), strict=True):
            if not isinstance(rest, Score) or rest.effects is None or not same_sentences(whole, sentence, rest):
                left_out += 1
                continue
            evidence = rest.effects.evidence if rest.label == whole.label else -rest.effects.evidence
            largest_error = max(largest_error, abs(whole.effects.evidence - evidence - (sentence.effect or 0.0)))
            compared += 1
    return {"sentences": compared, "left_out": left_out, "largest_error": largest_error}


def same_sentences(whole: Score, sentence: Sentence, rest: Score) -> bool:
    """Whether the other sentences are as long as before, in words: those of the text without a sentence may be cut elsewhere."""
    kept = [len(each.words or ()) for each in whole.sentences or () if each != sentence]
    return kept == [len(each.words or ()) for each in rest.sentences or ()]


def exactness(network: HAN, folded: FoldedHAN, batch: RaggedBatch) -> dict[str, float]:
    """Compares all effects with scoring the encoded reviews again without each sentence."""
    folded(batch)
    started = time.perf_counter()
    folded(batch)
    forward = time.perf_counter() - started
    with torch.no_grad():
        vectors, _ = network.words(network.word_vectors(batch), batch.sentence_lengths)
    started = time.perf_counter()
    effect = effects.sentence_effects(network, vectors, batch.review_lengths)
    seconds = time.perf_counter() - started
    largest_error, empty = 0.0, np.asarray(network.read_out.bias.detach().double())
    review_of = np.repeat(np.arange(batch.num_reviews), batch.review_lengths)
    firsts = (torch.cumsum(batch.review_lengths, 0) - batch.review_lengths).numpy()
    for position in range(int(batch.review_lengths.max())):
        reviews = np.flatnonzero((batch.review_lengths.numpy() > position) & (batch.review_lengths.numpy() > 1))
        removed = np.zeros(len(review_of), dtype=bool)
        removed[firsts[reviews] + position] = True
        mask = np.repeat(~removed & np.isin(review_of, reviews), batch.sentence_lengths)
        logits = torch.from_numpy(faithfulness.logits_of_kept(folded, batch, mask, empty_logits=empty))[reviews]
        expected = effect.evidence[reviews] - effects.evidence(logits, effect.labels[reviews])
        largest_error = max(largest_error, float((expected - effect.effects[firsts[reviews] + position]).abs().max()))
    return {"largest_error": largest_error, "forward_seconds": forward, "effects_seconds": seconds}


def word_times(network: HAN, batch: RaggedBatch) -> dict[str, float]:
    """Milliseconds for the words of the median review, the best of 10."""
    tokens = np.add.reduceat(batch.sentence_lengths.numpy(), (torch.cumsum(batch.review_lengths, 0) - batch.review_lengths).numpy())
    review = nth_review(batch, int(np.argsort(tokens)[len(tokens) // 2]))
    times: dict[str, Any] = {}
    for method in ("leave_one_out", "attention_share", "gradient_input", "midpoint_gradient", "integrated_gradients"):
        runs = []
        for _ in range(10):
            started = time.perf_counter()
            effects.word_effects(network, review, method=method)  # type: ignore[arg-type]
            runs.append(time.perf_counter() - started)
        times[method] = round(min(runs) * 1e3, 2)
    return times


def first_reviews(batch: RaggedBatch, number: int) -> RaggedBatch:
    sentences = int(batch.review_lengths[:number].sum())
    tokens = int(batch.sentence_lengths[:sentences].sum())
    return RaggedBatch(
        token_ids=batch.token_ids[:tokens],
        sentence_lengths=batch.sentence_lengths[:sentences],
        review_lengths=batch.review_lengths[:number],
    )


def nth_review(batch: RaggedBatch, number: int) -> RaggedBatch:
    before, upto = first_reviews(batch, number), first_reviews(batch, number + 1)
    return RaggedBatch(
        token_ids=upto.token_ids[len(before.token_ids) :],
        sentence_lengths=upto.sentence_lengths[len(before.sentence_lengths) :],
        review_lengths=upto.review_lengths[number:],
    )


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
