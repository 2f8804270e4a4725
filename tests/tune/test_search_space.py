"""The search space: declared beside the config, changed by a file or the command line, checked before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest

from han.config import ModelConfig, TrainConfig
from han.tune import search_space
from han.tune.search_space import SPACE, Choice, Range
from han.types import UserError

MODEL, TRAIN = ModelConfig(), TrainConfig()


def drawn(what: search_space.Space, fixed: dict[str, Any]) -> dict[str, Any]:
    """A trial whose settings are partly fixed by the queue."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    study.enqueue_trial(fixed)
    return search_space.suggest(study.ask(), what, MODEL, TRAIN)


def test_the_default_settings_lie_in_the_space() -> None:
    search_space.check(SPACE, MODEL, TRAIN)
    first = search_space.default(SPACE, MODEL, TRAIN)
    assert search_space.override(MODEL, TRAIN, first) == (MODEL, TRAIN)
    assert drawn(SPACE, first) == first


def test_a_conditional_setting_is_drawn_only_if_it_has_an_effect() -> None:
    with_gru, without = (drawn(SPACE, {"model.sentence_encoder": encoder}) for encoder in (True, False))
    assert 16 <= with_gru["model.sentence_hidden"] <= 100
    assert "model.sentence_hidden" not in without
    still = {name: entry for name, entry in SPACE.items() if name != "model.sentence_encoder"}
    assert "model.sentence_hidden" in drawn(still, {})  # what it depends on is then what the flags say


def test_drawn_values_have_the_type_of_their_setting() -> None:
    found = drawn(SPACE, {})
    model, train = search_space.override(MODEL, TRAIN, found)
    assert isinstance(model.word_hidden, int)
    assert isinstance(train.batch_tokens, int)
    assert isinstance(train.learning_rate, float)


def test_a_file_and_the_command_line_change_the_space_in_this_order(tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    file.write_text(
        '"train.learning_rate" = { low = 1e-4, high = 1e-2, log = true }\n"model.dropout" = false\n"train.clip_norm" = [0.5, 1.0]\n'
        '"model.sentence_hidden" = { choices = [25, 50], when = "model.sentence_encoder" }\n'
    )
    found = search_space.read_space(file, ["train.learning_rate=[1e-3, 1e-2]", "model.embedding_dropout=false"], ["data"])
    assert found["train.learning_rate"] == Choice(choices=(1e-3, 1e-2))
    assert found["train.clip_norm"] == Choice(choices=(0.5, 1.0))
    assert found["model.sentence_hidden"] == Choice(choices=(25, 50), when="model.sentence_encoder")
    assert found["model.word_hidden"] == SPACE["model.word_hidden"]
    assert not {"model.dropout", "model.embedding_dropout", "data"} & set(found)
    search_space.check(found, MODEL, TRAIN)


def test_several_encoded_folders_add_a_choice() -> None:
    found = search_space.read_space(None, [], ["in-domain", "random"])
    assert found["data"] == Choice(choices=("in-domain", "random"))
    assert search_space.default(found, MODEL, TRAIN)["data"] == "in-domain"
    assert search_space.override(MODEL, TRAIN, {"data": "random"}) == (MODEL, TRAIN)


@pytest.mark.parametrize(
    ("vary", "said"),
    [
        ("model.width=[1]", "there is no setting model.width"),
        ("train.learning_rate", "has no value"),
        ("train.learning_rate={low=1e-4}", "give {low, high, log, when}"),
        ("train.learning_rate={low=1e-2,high=1e-4}", "give low below high"),
        ("train.learning_rate={low=0.0,high=1e-2,log=true}", "above 0 on a log scale"),
        ("train.learning_rate={low=0.1,high=0.2}", "train.learning_rate is 0.001, and the space 0.1 to 0.2"),
        ("train.learning_rate=nonsense", "is not TOML"),
        ("model.dropout={low=0.0,high=1.0}", "give a share from 0 to below 1"),
        ("model.word_hidden=[50, 12.5]", "give values like its flag's, 50"),
        ("model.sentence_encoder=[1, 0]", "give values like its flag's, True"),
        ("train.seed=[1, 2]", "is no choice of a sweep"),
        ("train.epochs=[1, 2]", "is no choice of a sweep"),
        ('model.dropout={low=0.0,high=0.5,when="model.word_hidden"}', "not a boolean setting"),
    ],
)
def test_an_invalid_space_is_an_error_of_one_line(vary: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        search_space.check(search_space.read_space(None, [vary], ["data"]), MODEL, TRAIN)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_to_vary_is_a_mistake() -> None:
    with pytest.raises(UserError, match="nothing is varied"):
        search_space.read_space(None, [f"{name}=false" for name in SPACE], ["data"])


def test_a_range_is_recorded_as_written() -> None:
    assert search_space.as_json({"a": Range(low=1, high=2)}) == {"a": {"low": 1, "high": 2, "log": False}}
    written = search_space.as_json(SPACE)
    assert json.loads(json.dumps(written)) == written
