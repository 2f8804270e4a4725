"""Reviews scored in the terminal: `han predict "A dull film with one good scene."`."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from han.types import AttentionDetail, EffectDetail, Refusal, UserError
from jobs import cli

EXAMPLES = (
    '"A dull film with one good scene."',
    "review.txt other.txt --json",
    "- < review.txt",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Predict:
    """Print the label of each review and the attention of the network on its text."""

    texts: tyro.conf.Positional[tuple[str, ...]] = ()
    """reviews: texts, or files with one review each; - or nothing reads one review from standard input"""
    model: str = "imdb"
    """folder of a run, a sweep or an artifact; models/best after `promote`; or imdb, the shipped model"""
    attention: AttentionDetail = "words"
    """detail of the attention"""
    effects: Literal["none", "sentences", "exact_words"] = "sentences"
    """print the effect of each sentence, or of each word too, and the smallest removals found that change the label"""
    json: bool = False
    """print one JSON object for each review, with the fields of the scores in Parquet"""


def main(job: Predict) -> None:
    model = cli.model(job.model)
    texts = [_text(argument) for argument in job.texts or ("-",)]
    with cli.loading():
        import torch

        from han.explain.terminal import terminal
        from han.score import as_json, load

        torch.set_num_threads(1)  # a few reviews keep one core busy; more threads only wait for each other
        scorer = load(model)
    answers = scorer.score(texts, attention=job.attention, effects=_effects(job))
    refusal = next((answer for answer in answers if isinstance(answer, Refusal)), None)
    if refusal is not None:
        raise UserError(f"a review cannot be scored ({refusal.reason}): {refusal.message}")
    scores = [answer for answer in answers if not isinstance(answer, Refusal)]
    if job.json:
        print("\n".join(json.dumps(as_json(score)) for score in scores))
        return
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    width = shutil.get_terminal_size().columns
    removals = [None if score.effects is None else scorer.removals(text) for text, score in zip(texts, scores, strict=True)]
    drawn = [
        terminal(text, score, width=width, colour=colour, removals=each) for text, score, each in zip(texts, scores, removals, strict=True)
    ]
    print("\n".join(drawn), end="")


def _effects(job: Predict) -> EffectDetail:
    if job.effects == "exact_words" and job.attention != "words":
        raise UserError(f"--effects exact_words needs --attention words, not {job.attention}")
    return "none" if job.attention == "none" else job.effects


def _text(argument: str) -> str:
    if argument == "-":
        return _read_stdin()
    try:
        is_file = Path(argument).is_file()
    except (OSError, ValueError):  # no name of a file: too long, or with a NUL
        return argument
    return _decode(Path(argument).read_bytes(), argument) if is_file else argument


def _read_stdin() -> str:
    if sys.stdin.isatty():
        print("Type a review, then Ctrl-D on a line of its own:", file=sys.stderr)
    return _decode(sys.stdin.buffer.read(), "the standard input")


def _decode(content: bytes, name: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8: {error}") from None


def run() -> None:
    cli.run(Predict, main, examples=EXAMPLES)


if __name__ == "__main__":
    run()
