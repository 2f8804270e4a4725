"""From texts to answers: `Scorer` in one process, `pool` on many, `publish` for folders that are complete or absent.

An answer is the same in Parquet, over HTTP, in the terminal and in a notebook.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from han.score.scorer import Scored as Scored
    from han.score.scorer import Scorer as Scorer
    from han.score.scorer import as_json as as_json
    from han.score.scorer import load as load

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "scorer": ["Scored", "Scorer", "as_json", "load"],
    },
)
