"""Texts that use every rule of NLTK's tokenisers, for tests of the compiled loops."""

from hypothesis import strategies as st

PIECES = [
    *(" ", "  ", "\n", "\r\n", "\r", "\t", "\x0b", "\x0c", "\x1c", "\x85", "\xa0", "\u2028", "\u3000", "\u200b", "\x00"),
    *(".", "..", "...", ". . .", ". .", "?", "!", "?!", "--", "-", ",", ";", ":", "(", ")", "[", "]", "{", "}", "*", "@", "#", "&", "`"),
    *('"', "'", "\u2018", "\u2019", "\u201c", "\u201d", "\xab", "\xbb", "$", "/", "_", "=", "<", ">"),
    *("Mr.", "mr.", "Dr", "St.", "e.g.", "U.S.", "x-ltd.", "a.b.c", "J.", "j.", "_.", "7.", "3.14", "-1,000.", "10/10", "\u0663.", "1a."),
    *("Smith", "smith", "The", "the", "It", "it", "He", "he", "good", "I", "a", "don't", "\u01c5a", "\u24b6", "\u2167"),
    *("<br />", "<BR>", "</p>", "<i>", "<what a>", "<a great film>", "<a href='x.y'>", "<!doctype html>", "<!-- x -->", "<br/", "<h1 />"),
    *(
        "\u0130",
        "\u03a3",
        "\u039f\u0394\u039f\u03a3",
        "\u03c2.",
        "\u0307",
        "a\u0301",
        "\u1e9e",
        "\ud800",
        "\udc00",
        "\U0001f600",
        "\u597d",
        "\u0e23\u0e31\u0e01",
        "\U0001d7d9.",
    ),
]
WORDS = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)
SPACED = st.lists(st.sampled_from(PIECES), max_size=40).map(" ".join)
TEXTS = st.one_of(WORDS, SPACED, st.text(max_size=200))
