"""Plausibility: do attention and effects point at what people marked as evidence? On data in the ERASER layout (DeYoung et al. 2020).

A split is one file; its documents are beside it:

  SPLIT.jsonl   {"annotation_id": ID, "evidences": [[{"docid": ID, "start_token": N, "end_token": N}, ...], ...]}, one document a line
  docs/ID       the document, or docs.jsonl with {"docid": ID, "document": text}; tokens are separated by spaces and line ends

Tokens are counted from 0 in the document, the end is exclusive. Classes and queries are not read. A token of the document has the largest
value of the model's tokens that overlap it. A sentence, as the model cuts it, is evidence if it overlaps a marked token. Plausible is not
faithful: people mark what convinces them, not what the network used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from han.evaluate.faithfulness import bootstrap
from han.score.scorer import Scorer
from han.types import Refusal, Score, Sentence, UserError, Word

PRECISION_AT = (1, 5)

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotated:
    """A document and the tokens that are marked as evidence."""

    name: str
    text: str
    spans: NDArray[np.int64]  # [N, 2], start and end (exclusive) of the document's tokens in code points
    is_evidence: Bools  # [N]


def read(split: Path) -> list[Annotated]:
    """The documents of a split that have evidence. A `UserError` names the line that cannot be used."""
    if not split.is_file():
        raise UserError(f"--rationales {split} is not a file: give a split in the ERASER layout, such as movies/val.jsonl")
    document = _documents(split.parent)
    found = []
    for number, line in enumerate(split.read_text(encoding="utf-8").splitlines(), 1):
        try:
            annotated = _annotated(json.loads(line), document) if line.strip() else None
        except UserError as mistake:
            raise UserError(f"{split}, line {number}: {mistake}") from None
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(
                f"{split}, line {number}: not an annotation with annotation_id and evidences of docid, start_token, end_token"
            ) from None
        found += [annotated] if annotated else []
    if not found:
        raise UserError(f"{split} has no document with evidence")
    return found


def _documents(folder: Path) -> Callable[[str], str]:
    if (folder / "docs.jsonl").is_file():
        lines = map(json.loads, (folder / "docs.jsonl").read_text(encoding="utf-8").splitlines())
        texts = {str(line["docid"]): str(line["document"]) for line in lines}
        return texts.__getitem__
    docs = folder / "docs"
    if not docs.is_dir():
        raise UserError(f"{folder} has no docs folder and no docs.jsonl: put the documents of a split beside it")

    def read_document(name: str) -> str:
        path = docs / name
        if path.parent != docs or not path.is_file():
            raise UserError(f"document {name} is not in {docs}")
        return path.read_text(encoding="utf-8")

    return read_document


def _annotated(line: Mapping[str, Any], document: Callable[[str], str]) -> Annotated | None:
    """The document of a line, or several as one text. None without evidence."""
    marks = [mark for group in line["evidences"] for mark in group]
    if not marks:
        return None
    texts: list[str] = []
    spans: list[tuple[int, int]] = []
    is_evidence: list[bool] = []
    for name in dict.fromkeys(str(mark["docid"]) for mark in marks):
        try:
            text = document(name)
        except KeyError:
            raise UserError(f"document {name} is not in docs.jsonl") from None
        first = sum(len(earlier) + 1 for earlier in texts)
        tokens = [(first + match.start(), first + match.end()) for match in re.finditer(r"\S+", text)]
        marked = [False] * len(tokens)
        for mark in marks:
            start, end = int(mark["start_token"]), int(mark["end_token"])
            if str(mark["docid"]) != name:
                continue
            if not 0 <= start < end <= len(tokens):
                raise UserError(f"tokens {start} to {end} of document {name}, which has {len(tokens)}")
            marked[start:end] = [True] * (end - start)
        texts.append(text)
        spans += tokens
        is_evidence += marked
    return Annotated(name=str(line["annotation_id"]), text="\n".join(texts), spans=np.array(spans), is_evidence=np.array(is_evidence))


def measure(scorer: Scorer, documents: Sequence[Annotated], *, seed: int = 0, report: Callable[[int, int], None]) -> dict[str, Any]:
    """Plausibility of each method, means over the documents with 95% bootstrap intervals, ready for JSON."""
    words: dict[str, list[float]] = {}
    sentences: dict[str, list[list[float]]] = {}
    refused = 0
    for number, document in enumerate(documents):
        report(number, len(documents))
        estimate, exact = (scorer.score([document.text], effects=effects)[0] for effects in ("words", "exact_words"))
        if isinstance(estimate, Refusal) or isinstance(exact, Refusal):
            refused += 1
            continue
        generator = np.random.default_rng((seed, number))
        for name, values in word_values(estimate, exact, generator).items():
            words.setdefault(name, []).append(average_precision(of_tokens(document, exact, values), document.is_evidence))
        evidence = sentence_evidence(document, exact)
        for name, values in sentence_values(exact, generator).items():
            sentences.setdefault(name, []).append([precision_at(values, evidence, k) for k in (*PRECISION_AT, int(evidence.sum()))])
    report(len(documents), len(documents))
    if not words:
        raise UserError(f"none of {len(documents)} documents can be scored")
    return {
        "num_documents": len(documents) - refused,
        "refused": refused,
        "evidence": float(np.mean([document.is_evidence.mean() for document in documents])),
        "tokens": {name: {"auprc": _mean(values, seed)} for name, values in words.items()},
        "sentences": {
            name: {key: _mean(column, seed) for key, column in zip(_keys(), zip(*values, strict=True), strict=True)}
            for name, values in sentences.items()
        },
    }


def _keys() -> list[str]:
    return [*(f"precision_at_{k}" for k in PRECISION_AT), "precision_at_evidence"]


def _mean(values: Sequence[float], seed: int) -> dict[str, Any]:
    return {"mean": float(np.mean(values)), "interval": list(bootstrap(np.array(values), seed=seed))}


def word_values(estimate: Score, exact: Score, generator: np.random.Generator) -> dict[str, Floats]:
    """Values [T] of the model's tokens by each method; larger values rank first."""
    pairs = list(_words(exact))
    name = estimate.effects.word_method if estimate.effects else None
    return {
        "leave_one_out": np.array([_effect(word) for _, word in pairs]),
        name or "estimate": np.array([_effect(word) for _, word in _words(estimate)]),
        "attention": np.array([word.attention * sentence.attention for sentence, word in pairs]),
        "random": generator.random(len(pairs)),
    }


def sentence_values(score: Score, generator: np.random.Generator) -> dict[str, Floats]:
    """Values [S] of the sentences by each method; larger values rank first."""
    sentences = score.sentences or ()
    return {
        "leave_one_out": np.array([_effect(sentence) for sentence in sentences]),
        "attention": np.array([sentence.attention for sentence in sentences]),
        "random": generator.random(len(sentences)),
    }


def of_tokens(document: Annotated, score: Score, values: Floats) -> Floats:
    """Values [N] of the document's tokens: the largest of the model's tokens that overlap them, the smallest of all where none does."""
    of_characters = np.full(len(document.text) + 1, values.min())
    for (_, word), value in zip(_words(score), values, strict=True):
        of_characters[word.start : word.end] = np.maximum(of_characters[word.start : word.end], value)
    return np.array([of_characters[start:end].max() for start, end in document.spans.tolist()])


def sentence_evidence(document: Annotated, score: Score) -> Bools:
    """Whether each sentence [S] overlaps a marked token."""
    marked = document.spans[document.is_evidence]
    return np.array([bool(((marked[:, 0] < each.end) & (marked[:, 1] > each.start)).any()) for each in score.sentences or ()])


def average_precision(values: Floats, truth: Bools) -> float:
    """Area under the precision-recall curve of a ranking, without interpolation. Equal values are one step. NaN without any truth."""
    order = np.argsort(-values, kind="stable")
    hits = np.cumsum(truth[order])
    if not hits[-1]:
        return float("nan")
    ends = np.flatnonzero(np.diff(values[order], append=np.nan) != 0)
    precision, recall = hits[ends] / (ends + 1), hits[ends] / hits[-1]
    return float((precision * np.diff(recall, prepend=0)).sum())


def precision_at(values: Floats, truth: Bools, k: int) -> float:
    """Share of the first k parts, or of all if there are fewer, that are evidence. NaN for k = 0."""
    first = np.argsort(-values, kind="stable")[:k]
    return float(truth[first].mean()) if len(first) else float("nan")


def _words(score: Score) -> Iterator[tuple[Sentence, Word]]:
    return ((sentence, word) for sentence in score.sentences or () for word in sentence.words or ())


def _effect(part: Sentence | Word) -> float:
    return 0.0 if part.effect is None else part.effect
