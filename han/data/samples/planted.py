"""Generate reviews with planted evidence: the deciding sentence and its deciding words are known.

A review has 6 to 16 filler sentences that are independent of its label, and one deciding sentence. All sentences use the same frames. The
deciding sentence takes its qualities ("superb", "tedious") from the list of its label, whose words occur nowhere else. Only those words can
be learnt, so they test accuracy, effects and, with neutral reviews, attention (see `write_jsonl`).
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Literal, TypeAlias

from han.types import Refusal, Score, Sentence, Word

Label: TypeAlias = Literal["positive", "negative"]
Span: TypeAlias = tuple[int, int]  # start and end (exclusive), in code points

LABELS: tuple[Label, Label] = ("positive", "negative")
FEWEST_FILLERS, MOST_FILLERS = 6, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """One review and its evidence. Spans are code points of `text`, end exclusive."""

    review_id: str  # planted/<seed>/<number>
    text: str  # sentences joined by one space; each starts with a capital and ends in . ! or ?
    label: Label
    sentence: int  # index of the deciding sentence among the sentences of the text
    sentence_start: int
    sentence_end: int  # after its stop
    words: tuple[Span, ...]  # the deciding words, two or three, in order


def generate(num_reviews: int, *, seed: int) -> Iterator[Planted]:
    """Generate `num_reviews` reviews, half of them positive (up to one). Review n does not depend on `num_reviews`."""
    for number in range(num_reviews):
        first_of_pair = _random(f"{seed}/pair/{number // 2}").randrange(2)
        yield _planted(f"planted/{seed}/{number}", LABELS[(first_of_pair + number) % 2])


def write_jsonl(path: Path, num_reviews: int, seed: int, *, num_neutral: int = 0) -> None:
    """Write the reviews of `generate` without their evidence in random order, one {"review_id", "text", "label"} per line.

    num_neutral: additional reviews with the label neutral and without evidence. With two labels, a network may learn the words of one label
    and treat their absence as the other: a HAN was right in 100% and attended to the evidence in 55%. With one neutral review for every
    four others it must learn the words of both labels: 100% and 100%.
    """
    lines = [{"review_id": review.review_id, "text": review.text, "label": review.label} for review in generate(num_reviews, seed=seed)]
    for review_id in (f"planted/{seed}/neutral/{number}" for number in range(num_neutral)):
        sentences, _, _ = _review(_random(review_id), QUALITIES)
        lines.append({"review_id": review_id, "text": " ".join(sentences), "label": "neutral"})
    _random(f"{seed}/order").shuffle(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8", newline="\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Shares of reviews, 0 to 1, whose planted evidence comes first. A refused review counts as not found."""

    attention: float  # the deciding sentence has the most attention
    effect: float  # the deciding sentence has the largest effect
    word: float  # the word with the largest effect is a deciding word


def shares_found(reviews: Sequence[Planted], answers: Sequence[Score | Refusal]) -> Shares:
    """The shares of `reviews` whose evidence is found. `answers`: their scores in order, with sentences and the effects of words."""
    places = [_places(review, answer) for review, answer in zip(reviews, answers, strict=True)]
    attention, effect, word = (sum(found) / len(reviews) for found in zip(*places, strict=True))
    return Shares(attention=attention, effect=effect, word=word)


def _places(review: Planted, answer: Score | Refusal) -> tuple[bool, bool, bool]:
    if isinstance(answer, Refusal) or not answer.sentences:
        return False, False, False
    words = [word for sentence in answer.sentences for word in sentence.words or ()]
    attended = max(answer.sentences, key=lambda sentence: sentence.attention)
    strongest = max(answer.sentences, key=_effect)
    word = max(words, key=_effect, default=None)
    return (
        review.sentence_start <= attended.start < review.sentence_end,
        strongest.effect is not None and review.sentence_start <= strongest.start < review.sentence_end,
        word is not None and word.effect is not None and (word.start, word.end) in review.words,
    )


def _effect(part: Sentence | Word) -> float:
    return -math.inf if part.effect is None else part.effect


def _planted(review_id: str, label: Label) -> Planted:
    sentences, position, spans = _review(_random(review_id), DECIDING[label])
    start = sum(len(sentence) + 1 for sentence in sentences[:position])
    return Planted(
        review_id=review_id,
        text=" ".join(sentences),
        label=label,
        sentence=position,
        sentence_start=start,
        sentence_end=start + len(sentences[position]),
        words=tuple((start + word_start, start + word_end) for word_start, word_end in spans),
    )


def _review(rng: random.Random, qualities: Sequence[str]) -> tuple[list[str], int, list[Span]]:
    """The sentences, the index of the sentence with qualities from `qualities`, and the spans of the qualities within it."""
    frames = rng.sample(DESCRIBING + TELLING, rng.randint(FEWEST_FILLERS, MOST_FILLERS))
    sentences = [_sentence(frame, QUALITIES, rng)[0] for frame in frames]
    evidence, spans = _sentence(rng.choice(DESCRIBING), qualities, rng)
    position = rng.randint(0, len(sentences))
    sentences.insert(position, evidence)
    return sentences, position, spans


def _sentence(frame: str, qualities: Sequence[str], rng: random.Random) -> tuple[str, list[Span]]:
    """The frame with all slots filled, and the spans of the words in its {quality} slots."""
    sentence, spans = "", []
    unused = rng.sample(qualities, frame.count("{quality}"))
    for literal, slot, _, _ in Formatter().parse(frame):
        sentence += literal
        if slot == "quality":
            word = unused.pop()
            spans.append((len(sentence), len(sentence) + len(word)))
            sentence += word
        elif slot is not None:
            sentence += rng.choice(WORDS[slot])
    return sentence[0].upper() + sentence[1:], spans


def _random(key: str) -> random.Random:
    return random.Random(key)  # noqa: S311 - repeatable text, not a secret


DECIDING: dict[Label, tuple[str, ...]] = {
    "positive": (
        *("superb", "wonderful", "brilliant", "delightful", "gripping", "charming", "hilarious", "masterful", "excellent"),
        *("dazzling", "touching", "flawless", "magnificent", "terrific", "marvellous", "captivating", "splendid", "fantastic"),
        *("riveting", "exquisite", "enchanting", "inspired", "unforgettable", "breathtaking"),
    ),
    "negative": (
        *("dreadful", "boring", "awful", "terrible", "tedious", "clumsy", "lifeless", "lazy", "pointless"),
        *("laughable", "horrible", "dismal", "ghastly", "bland", "shoddy", "feeble", "unwatchable", "insipid"),
        *("tiresome", "atrocious", "dull", "abysmal", "amateurish", "forgettable"),
    ),
}

# Describing frames. Each may hold the evidence, so none negates or doubts its {quality}.
DESCRIBING = (
    "The {part} is {quality} and {quality}.",
    "The {part} is {quality} and the {part} is {quality}.",
    "The {quality}, {quality} {part} is by {name}, who also made the {part}.",
    "What the {thing} has to do with the {quality} and {quality} {part} is left to us!",
    "{name} plays the {person}, and the {part} is {quality}, even {quality}.",
    "It has the {quality} {part} and the {quality} {part} of every {genre} with {name} in it.",
    "I thought that the {part} was {quality} and the {part} {quality} when the {person} {did} the {thing}.",
    "My {relative} and I found the {part} {quality}, {quality} and {quality}.",
    "From the first {part} to the last it is {quality} and {quality}.",
    "This is the {quality}, {quality} {genre} that {name} made after the {thing}.",
    "After the {quality} {part} comes the {quality} {part} with the {person} and the {thing}.",
    "The {part} in the {place} is {quality}, as is the {quality} {part} with the {thing}.",
    "How {quality} the {part} is, and how {quality} and {quality} the {part} with the {person}!",
    "Between the {place} and the {place} there is the {quality}, {quality}, {quality} {part}.",
    "They showed us the {quality}, {quality} {part} at the {hall}.",
)

# Filler frames: plot, cast, cinema and snacks, with negation, doubt and neutral opinions.
TELLING = (
    "The {person} {did} the {thing} in the {place}.",
    "One {person} from the {place} meets {name}, who once {did} the {thing}.",
    "{name} never {did} the {thing}, and nobody in the {place} asks why.",
    "On {day} the {person} takes the {thing} to the {place}, but it is not there.",
    "We sat in the {hall} with {number} bags of {snack} and the {quality} {relative} of {name}.",
    "My {relative} had the {snack} and I had the {snack}.",
    "The {hall} was not {quality} and the bag of {snack} was not {quality}.",
    "I would not call the {part} {quality}, nor would I call it {quality}.",
    "Who {did} the {thing}, and who hid it behind the {thing}?",
    "Is it a {genre}, or is it a {genre} with the {thing} in it?",
    "Some will love the {part}, some will hate it, and that is that.",
    "Nobody says whether the {part} is good or bad.",
    "I did not love the {thing}, and I did not hate it either.",
    "Is the {person} better or worse than the one in the {genre} of {name}?",
    "It runs for {number} reels and has {number} songs.",
    "There are {number} people in the {place}, and {number} of them know the {person}.",
    "{name} is the {person} and {name} is the {person}.",
    "The {thing} falls off the {thing} and the {person} laughs!",
    "Then comes {day}, and the {quality} {person} returns to the {place}.",
    "You do not need to know the {genre} of {name} to follow it.",
    "It was made in the {place} with the {quality} {thing} of the {person}.",
    "Where the {thing} is, the {person} wants to know, and no one answers.",
    "The {person} and the {person} do not agree about the {quality} {thing}.",
    "My {relative} went out for {snack} while the {person} {did} the {thing}.",
    "We saw it on {day}, in the {quality} {hall} next to the {place}.",
)

QUALITIES: tuple[str, ...] = (
    *("tall", "northern", "blue", "square", "quiet", "loud", "Belgian", "wet", "early", "late", "narrow", "yellow", "round"),
    *("distant", "nearby", "foggy", "striped", "wintry", "coastal", "rural", "urban", "modern", "ancient", "red", "green"),
    *("brown", "grey", "silent", "brief", "lengthy", "familiar", "foreign", "local", "annual", "Danish", "Peruvian", "southern"),
    *("eastern", "western", "spoken", "painted", "folded", "hidden", "open", "closed", "empty", "full", "cold", "warm"),
    *("tiny", "huge", "thin", "thick", "curved", "straight", "dusty", "salty", "sunny", "cloudy", "shaded", "rented"),
)

WORDS: dict[str, tuple[str, ...]] = {
    slot: tuple(words.split())
    for slot, words in {
        "part": """plot story script ending opening score music song chorus dance chase scene dialogue acting cast camera lighting editing
            costume wardrobe makeup set backdrop duel wedding trial speech letter flashback dream montage narration title sound colour
            animation puppetry choreography prologue epilogue interval""",
        "thing": """kettle ferry piano ladder lantern suitcase bicycle umbrella teapot violin compass barrel telescope wagon tractor clock
            parcel map bucket basket canoe typewriter anvil blanket bottle candle carpet chair chimney coat coin curtain drum engine fence
            feather flag fountain guitar hammer hat helmet jar key kite knife lamp lock medal mirror needle net oar oven painting pillow
            plate rope saddle scarf shovel spoon stamp statue sword table tent ticket trumpet vase wheel whistle window""",
        "person": """baker sergeant dentist sailor widow farmer judge clerk miller tailor nurse pilot priest teacher plumber painter butcher
            gardener porter driver captain singer drummer banker barber beekeeper blacksmith carpenter cook detective diver doctor
            fisherman grocer hunter inspector jeweller librarian locksmith magician mayor mechanic miner monk poet postman potter queen
            scientist shepherd soldier spy student thief translator violinist waiter weaver""",
        "name": """Odile Marek Tamsin Bertram Ilka Rufus Zelda Anselm Noor Casper Leonie Dragan Petra Olwen Mateo Sunniva Horace Yusuf
            Delphine Kwame Ingrid Tobias Rosalba Fergus Mina Lucian Agatha Stellan Priya Emeric Wanda Jarek Beatrix Otto Salome Viggo""",
        "place": """village harbour valley forest market station castle bakery orchard quarry lighthouse island desert canal bridge library
            museum school monastery tavern vineyard mill barn cellar attic tower square meadow swamp glacier airport factory laundry
            hospital prison palace cottage greenhouse workshop warehouse""",
        "did": """carried painted borrowed buried repaired sold bought washed lost found polished weighed measured followed opened closed
            dropped lifted counted traded wrapped drew burned chased copied cut delivered drove emptied filled folded guarded heard
            inherited kept lit loaded mended moved noticed packed posted pulled pushed raised sealed shared sketched stored swapped
            threw tied turned watched""",
        "snack": """popcorn nuts crisps lemonade chocolate liquorice toffee raisins pretzels nachos ice peanuts coffee tea soup crackers
            apples cherries sandwiches biscuits gum mints pickles olives cider""",
        "hall": """foyer balcony cinema theatre gallery lobby auditorium multiplex playhouse hall tent marquee basement club""",
        "genre": """western comedy thriller musical mystery romance drama documentary cartoon biography satire fable tragedy sequel remake
            serial travelogue melodrama farce""",
        "relative": """aunt uncle sister brother cousin mother father neighbour nephew niece grandmother grandfather flatmate roommate
            colleague boss landlord godmother""",
        "day": """Monday Tuesday Wednesday Thursday Friday Saturday Sunday Christmas Easter Midsummer""",
        "number": """two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen twenty thirty""",
    }.items()
}
