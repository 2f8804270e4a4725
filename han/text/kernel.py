"""The compiled loops of the tokeniser. They are all in this file, because numba recompiles when the file of a function changes.

Positions count code points. `chars` holds the texts of a chunk end to end, and review r is chars[offsets[r]:offsets[r + 1]].
The rules are those of NLTK's Punkt and WordPunct, in the order of NLTK's own passes; the oracle is the reference.

numba writes the compiled code into __pycache__ beside this file, or into the user's cache folder if that one is read-only, and replaces
its files atomically. Where neither folder is writable, each process compiles for itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from han.text.characters import (
    CASE_SHIFT,
    CLOSES,
    DIGIT,
    ENDS_WORD,
    LOWER,
    MEANING,
    SPACE,
    STARTS_NO_WORD,
    STRIPPED,
    UNSURE,
    UPPER,
    WORD,
)

DONE, EMPTY, FOR_ORACLE = 0, 1, 2  # states of a review
ABBREVIATION, STARTER = 1, 128  # bits of Punkt's knowledge of a word; those between are NLTK's orthographic contexts
_MIDDLE_UPPER, _ANY_UPPER, _BEGIN_LOWER, _ANY_LOWER = 4, 14, 16, 112
_NO, _YES, _UNKNOWN = 0, 1, 2  # does the token start a sentence?
_SEED = np.uint64(0xCBF29CE484222325)
_PRIME = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)
NAME_BASE = 38  # letters, digits and "!" of a tag's name are the digits of a number


class Words(NamedTuple):
    """Distinct words with an open-addressed hash table. A look-up reads two places of memory."""

    records: NDArray[np.uint32]  # of each word its row, its length and its code points
    slots: NDArray[np.uint64]  # [a power of two], 0 is empty, else half of the hash and the place of the record + 1


class Punkt(NamedTuple):
    """Punkt's parameters."""

    words: Words
    known: NDArray[np.uint8]  # per word: ABBREVIATION, STARTER and the orthographic contexts
    collocations: NDArray[np.uint64]  # [a power of two], 0 is empty, else one more than the two words
    number: int  # the word ##number##


class Rules(NamedTuple):
    """How texts are cut."""

    characters: NDArray[np.uint32]  # characters.character_table()
    tag_names: NDArray[np.int64]  # sorted; empty blanks whatever looks like a tag
    doctype: int  # its name as a number
    max_sentences: int
    max_tokens: int


class Cut(NamedTuple):
    """What `cut` returns. Only reviews that are DONE have tokens."""

    states: NDArray[np.int8]  # [R]
    num_tokens: NDArray[np.int32]  # [R]
    review_lengths: NDArray[np.int32]  # [R], sentences
    num_characters_cut: NDArray[np.int32]  # [R]
    sentence_lengths: NDArray[np.int32]  # [S]
    spans: NDArray[np.int32]  # [T, 2], in the review
    hashes: NDArray[np.uint64]  # [T], of the lower-cased word


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    try:
        compiled = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no folder for the cache
        compiled = numba.njit(nogil=True)(function)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        try:
            return compiled(*arguments)
        except OSError:  # the first call compiled the function but could not write the cache, as on a full disk
            return compiled(*arguments)

    call.dispatcher = compiled
    return call


_part = numba.njit(nogil=True, forceinline=True)  # of a compiled function


@intrinsic
def _pointer(_context: Any, address: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


@_part
def _borrow(array):
    """The same array without a reference count, which costs more than the loops themselves. The caller keeps the array alive."""
    return numba.carray(_pointer(array.ctypes.data), array.shape, array.dtype)


@_part
def _borrow_words(words):
    return Words(_borrow(words.records), _borrow(words.slots))


@_part
def _hash(chars, start, end, characters):
    value = _SEED
    for place in range(start, end):
        value = (value ^ np.uint64(characters[chars[place]] >> CASE_SHIFT)) * _PRIME
    return value ^ (value >> _HALF)


@_part
def _find(words, value, chars, start, end, characters):
    """The word that chars[start:end] is in lower case, or -1."""
    mask = len(words.slots) - 1
    slot = np.int64(value & np.uint64(mask))
    while words.slots[slot] != 0:
        if words.slots[slot] >> _HALF == value >> _HALF:
            record = np.int64(words.slots[slot] & _LOW) - 1
            same = words.records[record + 1] == end - start
            place = start
            while same and place < end:
                same = words.records[record + 2 + place - start] == characters[chars[place]] >> CASE_SHIFT
                place += 1
            if same:
                return np.int64(words.records[record])
        slot = (slot + 1) & mask
    return -1


@_part
def _look_up(words, chars, start, end, characters):
    return _find(words, _hash(chars, start, end, characters), chars, start, end, characters)


@_part
def _is_ascii_space(code):
    return code == 32 or 9 <= code <= 13


@_part
def _blank(chars, first, last, rules):
    """Replace tags by spaces (see tags.TAG and tags.ANY_TAG)."""
    place = first
    while place < last:
        if chars[place] != 60:  # <
            place += 1
            continue
        end = place + 1
        while end < last and chars[end] != 60 and chars[end] != 62:
            end += 1
        if end < last and chars[end] == 62 and _is_tag(chars, place + 1, end, rules):
            for inside in range(place, end + 1):
                chars[inside] = 32
        place = end


@_part
def _is_letter(code):
    return 97 <= (code | 32) <= 122


@_part
def _is_tag(chars, first, end, rules):
    if len(rules.tag_names) == 0:
        if chars[first] == 47 or chars[first] == 33:  # / !
            first += 1
        return first < end and _is_letter(chars[first])
    closing = chars[first] == 47
    if closing:
        first += 1
    name, place = 0, first
    while place < end and place - first < 11:
        code = np.int64(chars[place])
        if _is_letter(code):
            name = name * NAME_BASE + (code | 32) - 96
        elif 48 <= code <= 57:
            name = name * NAME_BASE + code - 21
        elif code == 33:
            name = name * NAME_BASE + 37
        else:
            break
        place += 1
    index = np.searchsorted(rules.tag_names, name)
    if index == len(rules.tag_names) or rules.tag_names[index] != name:
        return False
    if name == rules.doctype:
        return not closing and (place == end or (chars[place] != 47 and _may_follow_name(chars[place])))
    return _is_rest_of_tag(chars, place, end)


@_part
def _may_follow_name(code):
    return code == 32 or code == 9 or code == 10 or code == 12 or code == 13 or code == 47


@_part
def _is_rest_of_tag(chars, place, end):
    """Nothing, or at least one name=value."""
    if place == end:
        return True
    if not _may_follow_name(chars[place]):
        return False
    for inside in range(place, end):
        if chars[inside] == 61:
            return True
    while place < end and chars[place] != 47 and _may_follow_name(chars[place]):
        place += 1
    return place == end or (place == end - 1 and chars[place] == 47)


@_part
def _multiple_end(chars, place, end, characters):
    """The end of a dash, an ellipsis or a spaced ellipsis that starts here, or -1."""
    code = chars[place]
    if (code != 45 and code != 46) or place + 1 >= end:
        return -1
    if chars[place + 1] == code:
        place += 2
        while place < end and chars[place] == code:
            place += 1
        return place
    if code == 45:
        return -1
    pairs, next_place = 0, place
    while next_place + 1 < end and chars[next_place] == 46 and characters[chars[next_place + 1]] & SPACE:
        pairs += 1
        next_place += 2
    if pairs >= 2 and next_place < end and chars[next_place] == 46:
        return next_place + 1
    return next_place - 1 if pairs >= 3 else -1


@_part
def _starts_multiple(chars, place, end, characters):
    code = chars[place]
    if (code != 45 and code != 46) or place + 1 >= end:
        return False
    if chars[place + 1] == code:
        return True
    return (
        code == 46
        and place + 4 < end
        and characters[chars[place + 1]] & SPACE != 0
        and chars[place + 2] == 46
        and characters[chars[place + 3]] & SPACE != 0
        and chars[place + 4] == 46
    )


@_part
def _token_end(chars, place, end, characters):
    """The end of Punkt's token that starts here."""
    multiple = _multiple_end(chars, place, end, characters)
    if multiple >= 0:
        return multiple
    if characters[chars[place]] & STARTS_NO_WORD:
        return place + 1
    place += 1
    while place < end:
        if characters[chars[place]] & (SPACE | ENDS_WORD) or _starts_multiple(chars, place, end, characters):
            break
        if chars[place] == 44:  # a comma
            after = place + 1
            if after == end or characters[chars[after]] & (SPACE | ENDS_WORD) or _starts_multiple(chars, after, end, characters):
                break
        place += 1
    return place


@_part
def _is_number(chars, start, end, characters):
    if chars[start] == 45:
        start += 1
    if start < end and (chars[start] == 46 or chars[start] == 44):
        start += 1
    if start == end or not characters[chars[start]] & DIGIT:
        return False
    for place in range(start, end):
        code = chars[place]
        if not (characters[code] & DIGIT or 44 <= code <= 46):
            return False
    return True


@_part
def _is_abbreviation(chars, start, end, characters, punkt):
    """Whether chars[start:end] is one, or what follows its last hyphen."""
    word = _look_up(punkt.words, chars, start, end, characters)
    if word >= 0 and punkt.known[word] & ABBREVIATION:
        return True
    place = end
    while place > start and chars[place - 1] != 45:
        place -= 1
    if place == start:
        return False
    word = _look_up(punkt.words, chars, place, end, characters)
    return word >= 0 and punkt.known[word] & ABBREVIATION != 0


@_part
def _type(chars, start, end, without_period, characters, punkt):
    """Punkt's type of a token as one of its words, or -1."""
    if _is_number(chars, start, end, characters):
        return punkt.number
    if without_period and end - start > 1 and chars[end - 1] == 46:
        end -= 1
    return _look_up(punkt.words, chars, start, end, characters)


@_part
def _is_collocation(first, second, punkt):
    if first < 0 or second < 0:
        return False
    key = (np.uint64(first) << _HALF | np.uint64(second)) + np.uint64(1)
    mask = len(punkt.collocations) - 1
    slot = np.int64((key * _PRIME >> _HALF) & np.uint64(mask))
    while punkt.collocations[slot] != 0:
        if punkt.collocations[slot] == key:
            return True
        slot = (slot + 1) & mask
    return False


@_part
def _starts_sentence(chars, start, end, contexts, characters):
    """Punkt's orthographic heuristic."""
    code = chars[start]
    if end - start == 1 and (code == 59 or code == 58 or code == 44 or code == 46 or code == 33 or code == 63):
        return _NO
    if characters[code] & UPPER and contexts & _ANY_LOWER and not contexts & _MIDDLE_UPPER:
        return _YES
    if characters[code] & LOWER and (contexts & _ANY_UPPER or not contexts & _BEGIN_LOWER):
        return _NO
    return _UNKNOWN


@_part
def _first_pass(chars, start, end, characters, punkt):
    """Punkt's first decision about a token: whether it breaks, is an abbreviation, is an ellipsis."""
    code, last = chars[start], chars[end - 1]
    if end - start == 1:
        return code == 46 or code == 63 or code == 33, False, False
    if code == 46 and chars[start + 1] == 46:
        return False, False, True
    if last == 46 and chars[end - 2] != 46:
        abbreviation = _is_abbreviation(chars, start, end - 1, characters, punkt)
        return not abbreviation, abbreviation, False
    return False, False, False


@_part
def _second_pass(chars, start, middle, breaks, is_abbreviation, is_ellipsis, next_start, next_end, next_breaks, characters, punkt):
    """Whether the token chars[start:middle] breaks before the token chars[next_start:next_end]."""
    if chars[middle - 1] != 46:
        return breaks
    kind = _type(chars, start, middle, True, characters, punkt)
    next_kind = _type(chars, next_start, next_end, next_breaks, characters, punkt)
    if _is_collocation(kind, next_kind, punkt):
        return False
    contexts = punkt.known[next_kind] if next_kind >= 0 else np.uint8(0)
    is_upper = characters[chars[next_start]] & UPPER != 0
    code = characters[chars[start]]
    is_initial = middle - start == 2 and code & WORD != 0 and not code & DIGIT
    if not (is_abbreviation or is_ellipsis or is_initial or kind == punkt.number):
        return breaks
    starts = _starts_sentence(chars, next_start, next_end, contexts, characters)
    if (is_abbreviation or is_ellipsis) and not is_initial and (starts == _YES or (is_upper and contexts & STARTER)):
        return True
    if is_initial or kind == punkt.number:
        if starts == _NO:
            return False
        if starts == _UNKNOWN and is_initial and is_upper and not contexts & _ANY_LOWER:
            return False
    return breaks


@_part
def _has_break(chars, first, last, characters, punkt):
    """Whether any token of chars[first:last] but the last one ends a sentence."""
    start, middle = -1, -1
    breaks, is_abbreviation, is_ellipsis = False, False, False
    line = first
    while line <= last:
        end, is_blank = line, True
        while end < last and chars[end] != 10:
            is_blank = is_blank and characters[chars[end]] & STRIPPED != 0
            end += 1
        place = end if is_blank else line
        while place < end:
            if characters[chars[place]] & SPACE:
                place += 1
                continue
            next_end = _token_end(chars, place, end, characters)
            next_breaks, next_abbreviation, next_ellipsis = _first_pass(chars, place, next_end, characters, punkt)
            if start >= 0 and _second_pass(
                chars, start, middle, breaks, is_abbreviation, is_ellipsis, place, next_end, next_breaks, characters, punkt
            ):
                return True
            start, middle, breaks = place, next_end, next_breaks
            is_abbreviation, is_ellipsis = next_abbreviation, next_ellipsis
            place = next_end
        line = end + 1
    return False


@_part
def _context_end(chars, stop, next_word, last, characters):
    """The end of what Punkt reads of the text after a full stop."""
    if next_word < 0:
        return stop + 2
    while next_word < last and not characters[chars[next_word]] & SPACE:
        next_word += 1
    return next_word


@_part
def _cut_after(chars, before, stop, next_word, last, characters, punkt, bounds, count, begin):
    """Add a row to `bounds` if a sentence ends at `stop`. Returns the number of rows and the start of the next sentence."""
    if not _has_break(chars, before, _context_end(chars, stop, next_word, last, characters), characters, punkt):
        return count, begin
    bounds[count, 0], bounds[count, 1] = begin, stop + 1
    return count + 1, next_word if next_word >= 0 else stop + 1


@_part
def _slices(chars, first, last, characters, punkt, bounds):
    """Cut chars[first:last] after the full stops that end a sentence. Returns how many rows of `bounds` it filled."""
    count, begin = 0, first
    before, stop, next_word = first, -1, -1  # the candidate before this one: the start of its word, itself, the start of the next word
    floor = first
    for place in range(first, last - 1):
        code = chars[place]
        if code != 46 and code != 63 and code != 33:
            continue
        following = place + 1
        if not characters[chars[following]] & ENDS_WORD:
            if not characters[chars[following]] & SPACE:
                continue
            while following < last and characters[chars[following]] & SPACE:
                following += 1
            if following == last:
                continue
        else:
            following = -1
        word = place - 1
        while word > floor and not _is_ascii_space(chars[word]):
            word -= 1
        word = word + 1 if word > floor else before
        if stop >= 0 and stop <= word:
            count, begin = _cut_after(chars, before, stop, next_word, last, characters, punkt, bounds, count, begin)
        before, stop, next_word, floor = word, place, following, place
    if stop >= 0:
        count, begin = _cut_after(chars, before, stop, next_word, last, characters, punkt, bounds, count, begin)
    while last > first and characters[chars[last - 1]] & STRIPPED:
        last -= 1
    bounds[count, 0], bounds[count, 1] = begin, last
    return count + 1


@_part
def _closing_end(chars, first, last, characters):
    """The end of quotes and brackets, with the white space after them, that belong to the sentence before; -1 if there are none."""
    place = first
    while place < last and characters[chars[place]] & CLOSES:
        place += 1
        if place == last:
            return place
        if characters[chars[place]] & SPACE:
            while place < last and characters[chars[place]] & SPACE:
                place += 1
            return place
        if place + 1 < last and chars[place] == 45 and chars[place + 1] == 45:
            return place
    return -1


@_part
def _realign(chars, characters, bounds, count):
    """Move closing quotes and brackets to the sentence before. Returns how many sentences are left in `bounds`."""
    kept, moved = 0, 0
    for row in range(count):
        begin, end = bounds[row, 0] + moved, bounds[row, 1]
        moved = 0
        closing = _closing_end(chars, bounds[row + 1, 0], bounds[row + 1, 1], characters) if row + 1 < count else -1
        if closing >= 0:
            moved = closing - bounds[row + 1, 0]
            while characters[chars[closing - 1]] & STRIPPED:
                closing -= 1
            end = closing
        if begin < end:
            bounds[kept, 0], bounds[kept, 1] = begin, end
            kept += 1
    return kept


@_part
def _words(chars, review, bounds, row, rules, spans, hashes, count):
    """WordPunct's words of a sentence: appends the kept ones. Returns the new count, tokens kept, end of all, end of the kept ones."""
    characters = rules.characters
    place, last = bounds[row, 0], bounds[row, 1]
    kept, kept_end, end = 0, -1, -1
    while place < last:
        kind = characters[chars[place]] & (WORD | SPACE)
        if kind & SPACE:
            place += 1
            continue
        start, value = place, _SEED
        while place < last:
            entry = characters[chars[place]]
            if entry & (WORD | SPACE) != kind:
                break
            value = (value ^ np.uint64(entry >> CASE_SHIFT)) * _PRIME
            place += 1
        end = place
        if kept < rules.max_tokens:
            spans[count, 0], spans[count, 1] = start - review, end - review
            hashes[count] = value ^ (value >> _HALF)
            count += 1
            kept += 1
            kept_end = end
    return count, kept, end, kept_end


@_compiled
def cut(chars, offsets, rules, punkt):
    """Sentences and words of many reviews (see Cut). Tags in `chars` are overwritten by spaces."""
    chars = _borrow(chars)
    rules = Rules(_borrow(rules.characters), _borrow(rules.tag_names), rules.doctype, rules.max_sentences, rules.max_tokens)
    punkt = Punkt(_borrow_words(punkt.words), _borrow(punkt.known), _borrow(punkt.collocations), punkt.number)
    num_reviews, size = len(offsets) - 1, len(chars)
    states = np.zeros(num_reviews, np.int8)
    num_tokens = np.zeros(num_reviews, np.int32)
    review_lengths = np.zeros(num_reviews, np.int32)
    num_characters_cut = np.zeros(num_reviews, np.int32)
    sentence_lengths = np.empty(size, np.int32)
    spans = np.empty((size, 2), np.int32)
    hashes = np.empty(size, np.uint64)
    bounds = np.empty((np.max(np.diff(offsets)) + 1, 2), np.int64)
    tokens, sentences = 0, 0
    for review in range(num_reviews):
        first, last = offsets[review], offsets[review + 1]
        _blank(chars, first, last, rules)
        classes = np.uint32(0)
        for place in range(first, last):
            classes |= rules.characters[chars[place]]
        if not classes & MEANING:
            states[review] = EMPTY
            continue
        if classes & UNSURE:
            states[review] = FOR_ORACLE
            continue
        first_token, first_sentence = tokens, sentences
        count = _slices(chars, first, last, rules.characters, punkt, bounds)
        count = _realign(chars, rules.characters, bounds, count)
        for row in range(count):
            if row >= rules.max_sentences:
                num_characters_cut[review] += bounds[row, 1] - bounds[row, 0]
                continue
            tokens, kept, end, kept_end = _words(chars, first, bounds, row, rules, spans, hashes, tokens)
            sentence_lengths[sentences] = kept
            sentences += 1
            num_characters_cut[review] += end - kept_end
            if kept == 0:
                states[review] = FOR_ORACLE
        if states[review] == FOR_ORACLE:
            tokens, sentences = first_token, first_sentence
            num_characters_cut[review] = 0
            continue
        num_tokens[review] = tokens - first_token
        review_lengths[review] = sentences - first_sentence
    return Cut(
        states,
        num_tokens,
        review_lengths,
        num_characters_cut,
        sentence_lengths[:sentences].copy(),
        spans[:tokens].copy(),
        hashes[:tokens].copy(),
    )


@_compiled
def look_up(chars, offsets, pieces, characters, words):
    """The word of each token of a Cut: int32 [T], -1 where `words` does not hold it.

    The slots and the records of a review are read before its words are compared, so that the processor waits for many of them at once.
    """
    chars, characters, words = _borrow(chars), _borrow(characters), _borrow_words(words)
    spans, hashes = _borrow(pieces.spans), _borrow(pieces.hashes)
    token_ids = np.empty(len(hashes), np.int32)
    most = 0
    for review in range(len(pieces.num_tokens)):
        most = max(most, pieces.num_tokens[review])
    slots, lengths = np.empty(most, np.uint64), np.empty(most, np.uint32)
    mask = np.uint64(len(words.slots) - 1)
    token = 0
    for review in range(len(pieces.num_tokens)):
        num_tokens, first = pieces.num_tokens[review], offsets[review]
        for own in range(num_tokens):
            slots[own] = words.slots[hashes[token + own] & mask]
        for own in range(num_tokens):
            lengths[own] = words.records[slots[own] & _LOW]
        for own in range(num_tokens):
            start, end, value = first + spans[token, 0], first + spans[token, 1], hashes[token]
            if slots[own] == 0:
                token_ids[token] = -1
            else:
                token_ids[token] = _find(words, value, chars, start, end, characters)
            token += 1
    return token_ids


@_compiled
def intern(chars, offsets, pieces, characters):
    """Numbers of the tokens' words in order of first appearance, int32 [T], and where each word first stands in `chars`, int64 [U, 2]."""
    num_tokens = len(pieces.hashes)
    numbers = np.empty(num_tokens, np.int32)
    places = np.empty((num_tokens, 2), np.int64)
    mask = 15
    while mask < 2 * num_tokens:
        mask = 2 * mask + 1
    slots = np.zeros(mask + 1, np.uint64)
    token, count = 0, 0
    for review in range(len(offsets) - 1):
        first = offsets[review]
        for _ in range(pieces.num_tokens[review]):
            start, end, value = first + pieces.spans[token, 0], first + pieces.spans[token, 1], pieces.hashes[token]
            slot = np.int64(value & np.uint64(mask))
            number = -1
            while slots[slot] != 0:
                if slots[slot] >> _HALF == value >> _HALF:
                    other = np.int64(slots[slot] & _LOW) - 1
                    same = places[other, 1] - places[other, 0] == end - start
                    step = 0
                    while same and step < end - start:
                        one, two = characters[chars[places[other, 0] + step]], characters[chars[start + step]]
                        same = one >> CASE_SHIFT == two >> CASE_SHIFT
                        step += 1
                    if same:
                        number = other
                        break
                slot = (slot + 1) & mask
            if number < 0:
                number = count
                places[count, 0], places[count, 1] = start, end
                count += 1
                slots[slot] = (value >> _HALF << _HALF) | np.uint64(count)
            numbers[token] = number
            token += 1
    return numbers, places[:count].copy()


@_compiled
def build_words(chars, starts, characters):
    """The hash table of distinct words in lower case; word w is chars[starts[w]:starts[w + 1]]."""
    num_words = len(starts) - 1
    mask = 15
    while mask < 2 * num_words:
        mask = 2 * mask + 1
    slots = np.zeros(mask + 1, np.uint64)
    records = np.empty(len(chars) + 2 * num_words, np.uint32)
    record = 0
    for word in range(num_words):
        first, last = starts[word], starts[word + 1]
        records[record], records[record + 1] = word, last - first
        records[record + 2 : record + 2 + last - first] = chars[first:last]
        value = _hash(chars, first, last, characters)
        slot = np.int64(value & np.uint64(mask))
        while slots[slot] != 0:
            slot = (slot + 1) & mask
        slots[slot] = (value >> _HALF << _HALF) | np.uint64(record + 1)
        record += 2 + last - first
    return Words(records, slots)


@_compiled
def build_pairs(pairs):
    """The hash table of distinct collocations, int64 [N, 2]."""
    mask = 15
    while mask < 2 * len(pairs):
        mask = 2 * mask + 1
    slots = np.zeros(mask + 1, np.uint64)
    for row in range(len(pairs)):
        key = (np.uint64(pairs[row, 0]) << _HALF | np.uint64(pairs[row, 1])) + np.uint64(1)
        slot = np.int64((key * _PRIME >> _HALF) & np.uint64(mask))
        while slots[slot] != 0:
            slot = (slot + 1) & mask
        slots[slot] = key
    return slots
