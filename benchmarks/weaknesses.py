"""What the shipped model does on short texts of known difficulty: `python -m benchmarks.weaknesses [--model M]`.

Every text is made from words of clear polarity, so its label is known. The kinds differ in what the model has to understand: nothing but
the word; a negation; which side of a contrast counts; a word about something else than a film. Prints JSON: the accuracy of each kind.
"""

from __future__ import annotations

import argparse
import json
from itertools import product

from han.score import load
from han.types import Score

GOOD = ("good", "great", "wonderful", "funny", "beautiful", "excellent", "charming", "moving", "enjoyable", "brilliant")
BAD = ("bad", "awful", "terrible", "boring", "ugly", "poor", "annoying", "dull", "disappointing", "stupid")
FILMS = ("The film is {}.", "I found this movie {}.", "The acting was {}.", "What a {} story.")
NEGATED = ("The film is not {}.", "I did not find this movie {}.", "The acting was never {}.", "This is not a {} story.")
CONTRASTED = ("The music was {}, but the film as a whole is {}.", "Some scenes are {}; all in all I found the movie {}.")
PRODUCTS = (
    "The battery of this phone is {}.",
    "The service in this restaurant was {}.",
    "This vacuum cleaner is {}.",
    "The hotel room was {}.",
)


def texts() -> dict[str, list[tuple[str, str]]]:
    """(text, label) by kind."""
    words = [(word, "positive") for word in GOOD] + [(word, "negative") for word in BAD]
    other = {"positive": "negative", "negative": "positive"}
    return {
        "plain": [(form.format(word), label) for form, (word, label) in product(FILMS, words)],
        "negated": [(form.format(word), other[label]) for form, (word, label) in product(NEGATED, words)],
        "contrasted": [
            (form.format(first, last), label)
            for form, (first, of_first), (last, label) in product(CONTRASTED, words, words)
            if of_first != label
        ],
        "about products": [(form.format(word), label) for form, (word, label) in product(PRODUCTS, words)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="imdb", help="imdb, or the folder of an artifact")
    scorer = load(parser.parse_args().model)
    results = {}
    for kind, labelled in texts().items():
        answers = [answer for answer in scorer.score([text for text, _ in labelled], attention="none") if isinstance(answer, Score)]
        right = [answer.label == label for answer, (_, label) in zip(answers, labelled, strict=True)]
        results[kind] = {
            "texts": len(labelled),
            "accuracy": sum(right) / len(right),
            "uncertain": sum(answer.uncertain for answer in answers) / len(answers),
        }
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
