"""Text to numbers: the only path, for one review or for many, and the fingerprint of what it depends on.

Training data takes the same path, with an `Interner` until the vocabulary is built (`Tokeniser.tokenise_batch`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from han.config import TextConfig, as_json
from han.text.tokenise import Tokeniser
from han.text.vocabulary import Vocab
from han.types import Encoded, EncodedBatch, Refusal


class Encoder:
    """Turns the texts of reviews into ids and spans."""

    def __init__(self, config: TextConfig, punkt: dict[str, Any] | None, vocab: Vocab) -> None:
        self.vocab = vocab
        self.tokeniser = Tokeniser(config, punkt)

    def encode(self, text: str) -> Encoded | Refusal:
        """The review as ids and spans, or a `Refusal` (`empty_text`, `too_long`)."""
        batch = self.encode_batch([text])
        if batch.refused:
            return batch.refused[0][1]
        return Encoded(
            token_ids=batch.token_ids,
            spans=batch.spans,
            sentence_lengths=batch.sentence_lengths,
            num_characters_cut=int(batch.num_characters_cut[0]),
        )

    def encode_batch(self, texts: Sequence[str]) -> EncodedBatch:
        """The same for many reviews at once. A review's numbers do not depend on the others."""
        return self.tokeniser.tokenise_batch(texts, self.vocab)

    def warm_up(self) -> None:
        """Load the compiled loops and the tables (0.6 s), or the first text waits for them. A fresh installation compiles them first."""
        self.encode("It works.")

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the SHA-256 over text settings, Punkt parameters and vocabulary: equal means equal ids."""
        settings = as_json(self.tokeniser.config)
        if settings["tags"] == "any":  # version 0.1.0 had no such setting
            del settings["tags"]
        digest = hashlib.sha256()
        for part in (settings, self.tokeniser.punkt, self.vocab.words):
            digest.update(json.dumps(part, sort_keys=True).encode())
        return digest.hexdigest()[:16]
