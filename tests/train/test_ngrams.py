"""The weights of n-grams, the pretraining's targets and the mixture of teachers, against plain loops."""

import time
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.numpy import save

from han.config import SemiSupervisedConfig, TrainConfig
from han.model.metrics import fit_temperature
from han.model.ngrams import FOLDS
from han.train import ngrams
from han.train.encoded import EncodedFolder
from han.train.learn import SoftLabels
from han.train.ngrams import LARGEST_GROUP, NgramModel, similar_folds
from han.train.pretrain import CONTEXT, SMOOTHING, _Context
from han.train.semi_supervised import _Plan, enough_epochs, equal_weights, mixture

LABELS = (0, 1)


def reviews(number: int, seed: int = 0) -> pa.Table:
    """Reviews of one sentence; word 1 is in positive ones, the bigram (2, 3) in negative ones, which both have the words 2 and 3."""
    generator = np.random.default_rng(seed)
    ids, labels = [], []
    for row in range(number):
        label = row % 2
        words = generator.integers(10, 60, 12).tolist()
        ids.append([1, 3, 2, *words] if label else [2, 3, *words])
        labels.append(label)
    return pa.table(
        {
            "review_id": [f"r{row}" for row in range(number)],
            "label": pa.array(labels, pa.int32()),
            "token_ids": pa.array(ids, pa.list_(pa.int32())),
            "sentence_lengths": pa.array([[len(words)] for words in ids], pa.list_(pa.int32())),
        }
    )


class Folder:
    labels = ("negative", "positive")


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> NgramModel:
    monkeypatch.setattr(ngrams, "read_windows", lambda folder, split: iter([reviews(200)]))
    return ngrams.fit_ngrams(Folder(), lambda done, total: None)  # type: ignore[arg-type]


def test_ngrams_tell_labels_that_differ_in_a_bigram(fitted: NgramModel) -> None:
    test = reviews(60, seed=1)
    assert (fitted.logits(test).argmax(axis=1) == test["label"].to_numpy()).all()


def test_the_weights_of_a_fold_are_fitted_without_its_reviews(monkeypatch: pytest.MonkeyPatch) -> None:
    table = reviews(200)
    token_ids = [np.array(ids, np.int32) for ids in table["token_ids"].to_pylist()]
    similar = similar_folds(token_ids)
    folds = np.array([similar.of(ids) for ids in token_ids])
    changed = table.set_column(
        1, "label", pa.array(np.where(folds == 2, 1 - table["label"].to_numpy(), table["label"].to_numpy()), pa.int32())
    )
    models = []
    for some in (table, changed):
        monkeypatch.setattr(ngrams, "read_windows", lambda folder, split, some=some: iter([some]))
        models.append(ngrams.fit_ngrams(Folder(), lambda done, total: None))  # type: ignore[arg-type]
    parts = [np.array_equal(models[0].weights[part], models[1].weights[part]) for part in range(1 + FOLDS)]
    assert parts == [part == 1 + 2 for part in range(1 + FOLDS)]


def test_ngrams_learn_the_soft_labels_of_unlabelled_reviews(monkeypatch: pytest.MonkeyPatch) -> None:
    labelled, unlabelled = reviews(6), reviews(200, seed=2)
    truth = unlabelled["label"].to_numpy()
    names = [f"u{row}" for row in range(200)]
    unlabelled = unlabelled.set_column(0, "review_id", pa.array(names)).set_column(1, "label", pa.nulls(200, pa.int32()))
    by_split = {"train": [labelled], "unlabelled": [unlabelled], "train+unlabelled": [labelled, unlabelled]}
    monkeypatch.setattr(ngrams, "read_windows", lambda folder, split, seed=None: iter(by_split[split]))
    soft = SoftLabels(rows={name: row for row, name in enumerate(names)}, probabilities=np.eye(2, dtype=np.float32)[truth] * 0.8 + 0.1)
    fitted = ngrams.fit_ngrams(Folder(), lambda done, total: None, soft=soft)  # type: ignore[arg-type]
    assert (fitted.logits(reviews(60, seed=1)).argmax(axis=1) == reviews(60)["label"].to_numpy()).all()


def test_reviews_with_the_same_rare_words_share_a_fold() -> None:
    generator = np.random.default_rng(4)
    films = [list(range(100 + 3 * film, 103 + 3 * film)) for film in range(50)]  # three names, each in the 6 reviews of a film
    token_ids = [np.array([*generator.integers(1, 20, 10), *names], np.int32) for names in films for _ in range(6)]
    token_ids.append(token_ids[0].copy())
    folds = similar_folds(token_ids)
    by_film = np.array([folds.of(ids) for ids in token_ids[:-1]]).reshape(50, 6)
    assert (by_film == by_film[:, :1]).all()
    assert set(by_film[:, 0].tolist()) == set(range(FOLDS))
    assert folds.of(token_ids[-1]) == by_film[0, 0]


def test_few_reviews_are_not_similar_by_their_common_words() -> None:
    generator = np.random.default_rng(5)
    token_ids = [np.unique(generator.integers(1, 40, 30)).astype(np.int32) for _ in range(25)]
    folds = similar_folds(token_ids)
    assert len({folds.of(ids) for ids in token_ids}) == FOLDS


def test_a_group_of_similar_reviews_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each review shares 7 of its 8 words with the next one, so that all are one chain."""
    token_ids = [np.arange(row, row + 8, dtype=np.int32) for row in range(1, 1 + 20 * LARGEST_GROUP)]
    limited = similar_folds(token_ids)
    monkeypatch.setattr(ngrams, "LARGEST_GROUP", len(token_ids))
    whole = similar_folds(token_ids)
    assert np.bincount([limited.of(ids) for ids in token_ids]).max() < 0.5 * len(token_ids)
    assert len({whole.of(ids) for ids in token_ids}) == 1


def test_folds_of_a_file_without_groups_are_those_of_the_reviews_themselves(fitted: NgramModel, tmp_path: Path) -> None:
    (tmp_path / "old.safetensors").write_bytes(save({"hashes": fitted.hashes, "weights": fitted.weights, "biases": fitted.biases}))
    tables = NgramModel.read(tmp_path / "old.safetensors").tables()
    assert tables.folds.of(np.array([5, 6, 7], np.int32)) == zlib.crc32(np.array([5, 6, 7], np.int32).tobytes()) % FOLDS


def test_a_model_of_ngrams_is_read_as_it_was_written(fitted: NgramModel, tmp_path: Path) -> None:
    fitted.write(tmp_path / "ngrams.safetensors")
    read = NgramModel.read(tmp_path / "ngrams.safetensors")
    np.testing.assert_array_equal(read.weights, fitted.weights)
    np.testing.assert_array_equal(read.hashes, fitted.hashes)


def test_the_table_of_a_network_keeps_the_largest_weights(fitted: NgramModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngrams, "IN_NETWORK", 10)
    kept = fitted.tables().whole.hashes
    largest = np.argsort(-np.abs(fitted.weights[0, :, 0]), kind="stable")[:10]
    assert set(kept.tolist()) == set(fitted.hashes[largest].tolist())


def test_a_state_predicts_the_weighted_mean_of_the_words_around_it() -> None:
    torch.manual_seed(0)
    vectors, frequencies = torch.randn(20, 4), torch.rand(20)
    context = _Context(vectors, frequencies / frequencies.sum())
    lengths = [9, 1, 7]
    ids = torch.randint(0, 20, (sum(lengths),))
    (after, after_weight), (before, before_weight) = context.targets(ids, torch.tensor(lengths))
    first = 0
    for length in lengths:
        words = ids[first : first + length]
        for place in range(length):
            for found, weight, around in (
                (after, after_weight, words[place + 1 : place + 1 + CONTEXT]),
                (before, before_weight, words[max(0, place - CONTEXT) : place]),
            ):
                total = context.weights[around].sum()
                torch.testing.assert_close(weight[first + place], total, atol=1e-5, rtol=0)
                torch.testing.assert_close(found[first + place], context.weighted[around].sum(0) / (total + SMOOTHING), atol=1e-4, rtol=0)
        first += length


def test_a_mixture_gives_no_weight_to_a_teacher_that_guesses() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 500)
    good = np.eye(2)[labels] * 2 + generator.normal(0, 1, (500, 2))
    guess = generator.normal(0, 1, (500, 2))
    weights = mixture(np.stack([good, guess]).astype(np.float32), labels)
    assert weights[0] > 0.5
    assert 0 <= weights[1] < 0.1


def test_equal_weights_give_models_the_same_influence_and_calibrate_their_sum() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 2_000)
    scales = (1.0, 5.0, 0.2)
    logits = np.stack([scale * (np.eye(2)[labels] + generator.normal(0, 1, (2_000, 2))) for scale in scales]).astype(np.float32)
    weights = equal_weights(logits, labels, [False, True, False])
    spread = [(weight * each).std() for weight, each in zip(weights, logits, strict=True)]
    assert spread[0] == pytest.approx(spread[2])
    assert spread[1] == pytest.approx((weights[0] * logits[0] + weights[2] * logits[2]).std())
    assert fit_temperature(np.tensordot(weights, logits, 1), labels) == pytest.approx(1, abs=1e-3)


def test_few_reviews_get_more_epochs() -> None:
    assert enough_epochs(6_000_000, 16_384, 3) == 3
    assert enough_epochs(500_000, 16_384, 3) == 10
    assert enough_epochs(1_000, 16_384, 3) == 40


def test_stages_of_few_reviews_do_not_make_the_estimate_of_all_stages_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """100 of 72,066 reviews have labels. A training of them takes its fixed time of 1.7 minutes, which says nothing of the others."""
    now_s = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    numbers = {"train": 100, "unlabelled": 71_966}
    folder = SimpleNamespace(num_reviews=numbers.__getitem__, counts={"words_counted": 72_066 * 278})
    plan = _Plan(cast(EncodedFolder, folder), TrainConfig(), SemiSupervisedConfig())
    for minutes in (1, 8, 1.7, 1.7, 1.7, 1.7, 2.5, 0.5, 2.5, 9):
        plan.begin("")
        now_s += 60 * minutes
    estimates = [int(line.split()[-2]) for line in capsys.readouterr().out.splitlines()]
    assert len(estimates) == 10
    assert estimates[1:] == sorted(estimates[1:], reverse=True)
    assert estimates[3] <= 25
