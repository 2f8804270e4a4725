"""The reviews that a page shows: chosen and ordered by their answers, and searched and sorted in the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Literal, TypeAlias

import numpy as np

from han.explain.pieces import largest_effects
from han.types import Score

Order: TypeAlias = Literal["input", "random", "surest", "least_sure", "wrong", "most_changed"]


def choose(scores: Sequence[Score], labels: Sequence[str | None], *, order: Order, number: int, seed: int = 0) -> list[int]:
    """Returns the places of at most `number` scores, the first ones of the order.

    `wrong` keeps the answers that differ from their label, the surest first. `most_changed` puts the largest effect of one sentence
    first. labels: the known label of each review, or None.
    """
    places = list(range(len(scores)))
    if order == "random":
        places = [int(place) for place in np.random.default_rng(seed).permutation(len(scores))]
    elif order in ("surest", "least_sure"):
        places.sort(key=lambda place: scores[place].probability * (-1 if order == "surest" else 1))
    elif order == "wrong":
        places = [place for place in places if is_wrong(scores[place], labels[place])]
        places.sort(key=lambda place: -scores[place].probability)
    elif order == "most_changed":
        places.sort(key=lambda place: -largest_effects(scores[place].sentences or ())[0])
    return places[:number]


def is_wrong(score: Score, label: str | None) -> bool:
    """Whether the label is known and differs from the answer."""
    return label is not None and label != score.label


def controls(orders: Mapping[str, str]) -> str:
    """Returns a search box and a choice of orders as HTML. It stays hidden until `script` runs.

    orders: the name of each order by its key, the order of the page first. The key is empty for that one, else the name of a data
    attribute of the articles, with a leading "-" where the largest value comes first.
    """
    options = "".join(f'<option value="{escape(key)}">{escape(name)}</option>' for key, name in orders.items())
    return (
        '<div class="find" hidden><label>Search <input type="search" autocomplete="off" spellcheck="false"></label>'
        f'<label>Order <select autocomplete="off">{options}</select></label><output></output></div>'
    )


def script() -> str:
    """Returns the script of `controls`. It contains nothing of the reviews."""
    return files("han.explain").joinpath("gallery.js").read_text(encoding="utf-8")
