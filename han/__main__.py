"""One review, typed or piped, drawn in the terminal: `python -m han "A dull film with one good scene."`"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from typing import Annotated

import torch
import tyro

from han.explain.terminal import terminal
from han.model.artifact import find, load
from han.score.scorer import Scorer
from han.types import AttentionDetail, Mistake, Refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """Say what a review is, and show where the network looked."""

    text: Annotated[str | None, tyro.conf.Positional] = None
    """the review; without it, all of the standard input"""
    model: str = "imdb"
    """the folder of a run, a sweep or an artifact, models/best once one is promoted, or imdb, the shipped model"""
    attention: AttentionDetail = "words"
    """how much of the attention is drawn"""


def main(arguments: Arguments) -> None:
    torch.set_num_threads(1)  # one review keeps one core busy; more threads only wait for each other
    scorer = Scorer(load(find(arguments.model)))
    text = _read_stdin() if arguments.text is None else arguments.text
    answer = scorer.score([text], attention=arguments.attention)[0]
    if isinstance(answer, Refusal):
        raise Mistake(f"the review cannot be scored ({answer.reason}): {answer.message}")
    print(terminal(text, answer, width=shutil.get_terminal_size().columns, colour=sys.stdout.isatty()), end="")


def _read_stdin() -> str:
    if sys.stdin.isatty():
        print("Type a review, then Ctrl-D on a line of its own:", file=sys.stderr)
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise Mistake(f"the standard input is not UTF-8: {error}") from None


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, prog="python -m han"))
    except Mistake as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        sys.exit(2)
