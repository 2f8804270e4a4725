"""Bundled data, written for this project: short film reviews, and (in `planted`) generated reviews with known evidence."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
REVIEWS = FOLDER / "reviews.jsonl"  # review_id, text, label (half positive, half negative), rating (1 to 4 or 7 to 10)
