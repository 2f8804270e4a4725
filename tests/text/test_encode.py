import copy
import hashlib
import json
import subprocess
import sys

import psutil

from han.config import TextConfig, from_json
from han.text.encode import Encoder
from han.text.tokenise import learn_punkt
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


def test_a_batch_encodes_like_its_reviews_alone() -> None:
    texts = ["I LOVED it. Truly!", "...", "It.", "x" * 60_000, "Loved <br/> it. \u0130"]
    batch = ENCODER.encode_batch(texts)
    alone = [encoded for encoded in map(ENCODER.encode, texts) if isinstance(encoded, Encoded)]
    assert batch.kept.tolist() == [0, 2, 4]
    assert [(place, refusal.reason) for place, refusal in batch.refused] == [(1, "empty_text"), (3, "too_long")]
    assert batch.token_ids.tolist() == [number for encoded in alone for number in encoded.token_ids]
    assert batch.spans.tolist() == [span for encoded in alone for span in encoded.spans.tolist()]
    assert batch.sentence_lengths.tolist() == [length for encoded in alone for length in encoded.sentence_lengths]
    assert batch.review_lengths.tolist() == [len(encoded.sentence_lengths) for encoded in alone]
    assert batch.num_tokens.tolist() == [6, 2, 4]
    assert batch.num_unknown.tolist() == [2, 0, 1]


def test_a_copy_of_an_encoder_has_no_tables() -> None:
    encoder = Encoder(TextConfig(), None, VOCAB)
    encoder.warm_up()
    encoder.encode("I loved it \u0130")
    assert {"_rules", "_knowledge", "_oracle"} < set(vars(encoder.tokeniser))
    assert set(vars(copy.copy(encoder.tokeniser))) == {"config", "punkt"}
    assert set(vars(copy.copy(VOCAB))) == {"words", "_ids"}


def test_refusals_are_returned() -> None:
    assert isinstance(ENCODER.encode("..."), Refusal)


def test_the_fingerprint_changes_with_every_setting_that_changes_an_id() -> None:
    same = Encoder(TextConfig(), None, Vocab(VOCAB.words))
    others = [
        Encoder(TextConfig(max_tokens=9), None, VOCAB),
        Encoder(TextConfig(tags="any"), None, VOCAB),
        Encoder(TextConfig(), None, Vocab([*VOCAB.words, "x"])),
    ]
    assert same.fingerprint == ENCODER.fingerprint
    assert len({encoder.fingerprint for encoder in [ENCODER, *others]}) == 4


def test_settings_written_without_a_rule_of_tags_keep_the_rule_and_the_fingerprint_of_0_1_0() -> None:
    written = {"max_characters": 50_000, "max_sentences": None, "max_tokens": None}
    digest = hashlib.sha256()
    for part in (written, None, VOCAB.words):
        digest.update(json.dumps(part, sort_keys=True).encode())
    encoder = Encoder(from_json(TextConfig, written), None, VOCAB)
    assert encoder.fingerprint == digest.hexdigest()[:16]
    assert isinstance(encoded := encoder.encode("I <what a wonderful cast> loved it"), Encoded)
    assert encoded.token_ids.tolist() == [1, 2, 3]


def test_a_worker_that_tokenises_never_loads_torch() -> None:
    check = "import sys, han.text; han.text.Tokeniser; han.text.Encoder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_the_import_of_the_encoder_loads_neither_numba_nor_nltk() -> None:
    check = "import sys, han.text.encode; sys.exit(bool({'numba', 'nltk'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_texts_without_repetition_do_not_grow_memory() -> None:
    process = psutil.Process()
    encoder = Encoder(TextConfig(), learn_punkt(["Mr. Smith went to St. Paul. He liked it there."]), VOCAB)
    sizes_mb = []
    for number in range(600):
        encoder.encode_batch(["".join(f" 7. Qwert{number}x{place} 7. asdfg{number}x{place}." for place in range(1_000))])
        if number % 300 == 299:
            sizes_mb.append(process.memory_info().rss / 1e6)
    assert sizes_mb[1] - sizes_mb[0] < 5
    assert len(VOCAB.words) == len(VOCAB._ids) == 5
