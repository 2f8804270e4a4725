"""Bundled data, written for this project: short film reviews to try things on, and (in `planted`) reviews whose evidence is known."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
REVIEWS = FOLDER / "reviews.jsonl"  # review_id, text, label (positive or negative, half and half), rating (1 to 4 or 7 to 10)
