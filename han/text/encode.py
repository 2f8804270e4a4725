"""THE preprocessing: text to numbers, the only way there is, and the fingerprint that says two encoders do the same.

Training data is encoded by the same two steps (`Tokeniser.tokenise`, then `Vocab.ids`) with the vocabulary built in between.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from han.config import TextConfig, as_json
from han.text.tokenise import Tokeniser
from han.text.vocabulary import Vocab
from han.types import Encoded, Refusal


class Encoder:
    """Turns a review's text into an `Encoded`."""

    def __init__(self, config: TextConfig, punkt: dict[str, Any] | None, vocab: Vocab) -> None:
        self.vocab = vocab
        self.tokeniser = Tokeniser(config, punkt)

    def encode(self, text: str) -> Encoded | Refusal:
        """The review as ids and spans, or a `Refusal` (`empty_text`, `too_long`); never cut without being counted."""
        tokens = self.tokeniser.tokenise(text)
        if isinstance(tokens, Refusal):
            return tokens
        return Encoded(
            token_ids=self.vocab.ids(tokens.words),
            spans=tokens.spans,
            sentence_lengths=tokens.sentence_lengths,
            num_characters_cut=tokens.num_characters_cut,
        )

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the SHA-256 over text settings, Punkt parameters and vocabulary: equal means equal ids."""
        digest = hashlib.sha256()
        for part in (as_json(self.tokeniser.config), self.tokeniser.punkt, self.vocab.words):
            digest.update(json.dumps(part, sort_keys=True).encode())
        return digest.hexdigest()[:16]
