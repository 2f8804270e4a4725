"""From a review's text to numbers: sentences, tokens, vocabulary rows, word vectors.

Every path from text to token ids goes through `Encoder`. No token is dropped, and each keeps its span in the original string.
This package imports neither torch nor Ray, except that `vectors` loads torchtext to read a file.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from han.text.encode import Encoder as Encoder
    from han.text.tokenise import Tokeniser as Tokeniser
    from han.text.vocabulary import Vocab as Vocab

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "encode": ["Encoder"],
        "tokenise": ["Tokeniser"],
        "vocabulary": ["Vocab"],
    },
)
