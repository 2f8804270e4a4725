import subprocess
import sys

from han.config import TextConfig
from han.text.encode import Encoder
from han.text.vocabulary import Vocab
from han.types import Encoded, Refusal

VOCAB = Vocab(["<unk>", "i", "loved", "it", "."])
ENCODER = Encoder(TextConfig(), None, VOCAB)


def test_a_review_becomes_ids_spans_and_lengths() -> None:
    encoded = ENCODER.encode("I LOVED it. Truly!")
    assert isinstance(encoded, Encoded)
    assert encoded.token_ids.tolist() == [1, 2, 3, 4, 0, 0]
    assert encoded.sentence_lengths.tolist() == [4, 2]
    assert encoded.spans[1].tolist() == [2, 7]


def test_refusals_pass_through() -> None:
    assert isinstance(ENCODER.encode("..."), Refusal)


def test_the_fingerprint_changes_with_whatever_changes_an_id() -> None:
    same = Encoder(TextConfig(), None, Vocab(VOCAB.words))
    others = [Encoder(TextConfig(max_tokens=9), None, VOCAB), Encoder(TextConfig(), None, Vocab([*VOCAB.words, "x"]))]
    assert same.fingerprint == ENCODER.fingerprint
    assert len({encoder.fingerprint for encoder in [ENCODER, *others]}) == 3


def test_a_worker_that_tokenises_never_loads_torch() -> None:
    check = "import sys, han.text.encode; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
