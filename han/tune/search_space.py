"""The search space: which settings a sweep varies, and their ranges. Names are those of the flags: `train.learning_rate`.

`SPACE` is searched unless a TOML file or `--vary` changes it. Both use the same syntax:

    "train.learning_rate" = { low = 1e-4, high = 1e-2, log = true }
    "model.word_hidden" = [25, 50, 100]
    "model.dropout" = false                      # not varied: it keeps the value of its flag
    "model.sentence_hidden" = { low = 16, high = 64, when = "model.sentence_encoder" }
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from han import config
from han.config import ModelConfig, TrainConfig
from han.types import UserError

if TYPE_CHECKING:
    import optuna

Value: TypeAlias = bool | int | float | str
DATA = "data"  # the one name that is no flag: which encoded folder, and so which word vectors, a trial reads
_NOT_VARIED = (
    "train.seed",
    "train.epochs",
    "train.num_workers",
    "train.cpus_per_worker",
    "train.gpu",
    "train.precision",
    "train.max_failures",
    "train.soft_labels",
    "train.semi_supervised",
    "train.coverage",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Values from low to high, both included; integers if the setting is an integer."""

    low: float
    high: float
    log: bool = False  # drawn uniformly on a logarithmic scale
    when: str | None = None  # a boolean setting; if it is false, this one has no effect and is not drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One of several values."""

    choices: tuple[Value, ...]
    when: str | None = None


Space: TypeAlias = dict[str, Range | Choice]

SPACE: Space = {
    "model.word_hidden": Range(low=16, high=100, log=True),
    "model.sentence_encoder": Choice(choices=(True, False)),
    "model.sentence_hidden": Range(low=16, high=100, log=True, when="model.sentence_encoder"),
    "model.embedding_dropout": Range(low=0.0, high=0.6),
    "model.dropout": Range(low=0.0, high=0.6),
    "train.learning_rate": Range(low=3e-4, high=1e-2, log=True),
    "train.batch_tokens": Choice(choices=(4_096, 8_192, 16_384)),
}


def flat(model: ModelConfig, train: TrainConfig) -> dict[str, Value]:
    """All settings of a training, by flag name."""
    return {
        f"{group}.{field.name}": getattr(config, field.name)
        for group, config in (("model", model), ("train", train))
        for field in dataclasses.fields(config)
    }


def override(model: ModelConfig, train: TrainConfig, overrides: Mapping[str, Value]) -> tuple[ModelConfig, TrainConfig]:
    """The settings with some values replaced (see `flat`; `data` is ignored). An unknown name or a wrong value is a `UserError`."""
    known = flat(model, train)
    groups: dict[str, dict[str, Any]] = {"model": {}, "train": {}}
    for name, value in overrides.items():
        if name == DATA:
            continue
        if name not in known:
            raise UserError(f"there is no setting {name}: give one of {', '.join(known)}")
        group, _, field = name.partition(".")
        groups[group][field] = value
    return dataclasses.replace(model, **groups["model"]), dataclasses.replace(train, **groups["train"])


def read_space(file: Path | None, vary: Sequence[str], data: Sequence[str]) -> Space:
    """`SPACE`, changed by a TOML file, then by `NAME=VALUE` lines, with the encoded folders as a choice if there are several."""
    space = dict(SPACE)
    for entry in ([_toml(_text(file), str(file))] if file else []) + [_line(line) for line in vary]:
        for name, value in entry.items():
            if value is False:
                space.pop(name, None)
            else:
                space[name] = _entry(name, value)
    if len(data) > 1:
        space = {DATA: Choice(choices=tuple(data)), **space}
    if not space:
        raise UserError("nothing is varied: leave a setting in the space, or train once with `train`")
    return space


def as_json(space: Space) -> dict[str, Any]:
    """A space as JSON-ready dicts, in the syntax of the file."""
    return {name: {key: value for key, value in config.as_json(entry).items() if value is not None} for name, entry in space.items()}


def check(space: Space, model: ModelConfig, train: TrainConfig) -> None:
    """Check that every end of the space is a valid setting and that the flags' own settings, trial 0, lie in it; else a `UserError`."""
    base = flat(model, train)
    for name, entry in space.items():
        if name == DATA:
            continue
        if name in _NOT_VARIED:
            raise UserError(f"{name} is no choice of a sweep: give it as a flag for all trials")
        ends = entry.choices if isinstance(entry, Choice) else (entry.low, entry.high)
        for value in ends:
            if name in base and not _alike(value, base[name]):
                raise UserError(f"{name} is {value!r} in the space: give values like its flag's, {base[name]!r}")
            override(model, train, {name: value})
        if entry.when is not None and not isinstance(base.get(entry.when), bool):
            raise UserError(f"{name} depends on {entry.when}, which is not a boolean setting")
        inside = base[name] in entry.choices if isinstance(entry, Choice) else entry.low <= float(base[name]) <= entry.high
        if not inside:
            wanted = ", ".join(map(str, ends)) if isinstance(entry, Choice) else f"{entry.low} to {entry.high}"
            raise UserError(
                f"{name} is {base[name]}, and the space {wanted}: trial 0 is what the flags say, so widen the space or give --{name}"
            )


def default(space: Space, model: ModelConfig, train: TrainConfig) -> dict[str, Value]:
    """The flags' own settings as a trial, restricted to parameters that apply."""
    base = flat(model, train)
    first = space.get(DATA)
    base |= {DATA: first.choices[0]} if isinstance(first, Choice) else {}
    return {name: base[name] for name, entry in space.items() if entry.when is None or base[entry.when]}


def suggest(trial: optuna.Trial, space: Space, model: ModelConfig, train: TrainConfig) -> dict[str, Value]:
    """Draw a trial's settings, conditions first. A trial that has them already keeps them."""
    base, drawn = flat(model, train), dict[str, Value]()
    for name, entry in sorted(space.items(), key=lambda item: item[1].when is not None):
        if entry.when is not None and not drawn.get(entry.when, base[entry.when]):
            continue
        if isinstance(entry, Choice):
            drawn[name] = cast(Value, trial.suggest_categorical(name, entry.choices))
        elif isinstance(base[name], int):
            drawn[name] = trial.suggest_int(name, int(entry.low), int(entry.high), log=entry.log)
        else:
            drawn[name] = trial.suggest_float(name, entry.low, entry.high, log=entry.log)
    return drawn


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError):
        raise UserError(f"--space {file} cannot be read: give a TOML file such as han/tune/search_space.py shows") from None


def _line(line: str) -> dict[str, Any]:
    name, equals, value = line.partition("=")
    if not equals:
        raise UserError(
            f"--vary {line} has no value: give it as train.learning_rate={{low=1e-4,high=1e-2,log=true}} or model.word_hidden=[25,50]"
        )
    return _toml(f'"{name.strip()}" = {value}', f"--vary {line}")


def _toml(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where} is not TOML: {error}") from None


def _entry(name: str, value: object) -> Range | Choice:
    when = value.get("when") if isinstance(value, dict) else None
    if isinstance(value, dict) and set(value) in ({"choices"}, {"choices", "when"}):
        value = value["choices"]
    if isinstance(value, list) and value:
        return Choice(choices=tuple(value), when=when)
    if isinstance(value, dict) and {"low", "high"} <= set(value) <= {"low", "high", "log", "when"}:
        if value["low"] > value["high"] or (value.get("log") and value["low"] <= 0):
            raise UserError(f"{name} goes from {value['low']} to {value['high']}: give low below high, and above 0 on a log scale")
        return Range(**value)
    raise UserError(f"{name} is {value!r} in the space: give {{low, high, log, when}}, a list of choices, or false to keep it fixed")


def _alike(value: object, flag: object) -> bool:
    if isinstance(flag, bool) or isinstance(value, bool) or isinstance(flag, str):
        return type(value) is type(flag)
    return isinstance(value, int) if isinstance(flag, int) else isinstance(value, int | float)
